//! The whole of phase 2 on a tiny model of several stored types.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use experiments::runs;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder, expected_tensors, is_delta, load_model};
use tinyonn::data::{Corpus, TextTokenizer, arithmetic, sorting};
use tinyonn::decoder::Pass;
use tinyonn::imaging::{Form, LabelBalance, Partition, Score, Shard};
use tinyonn::ops::GradSite;
use tinyonn::phases::{ImageConfig, RunConfig, Text, TextConfig, image, phase2};
use tinyonn::train::evaluate::EvaluateOptions;
use tinyonn::train::{RouterFitConfig, SmkConfig, evaluate};

use crate::models::{self, CPU, message};
use crate::tiny;

/// A dense model with its tokenizer, and a run on two tasks of generated text.
pub(crate) fn setting(dir: &Path, dtype: DType) -> RunConfig {
    let corpus = Corpus { tasks: vec![arithmetic(0, 24_000), sorting(0, 24_000)] };
    let data = corpus.tasks.iter().map(|task| {
        let path = dir.join(format!("{}.txt", task.name));
        fs::write(&path, task.documents.iter().map(|document| document.text.as_str()).collect::<String>()).unwrap();
        format!("{}={}", task.name, path.display())
    });
    let data = data.collect();
    let (cfg, model) = (tiny::config(tiny::TEXT_VOCAB), dir.join("dense"));
    ModelFolder::save(&model, &cfg.to_json(), &models::weights(&cfg, dtype), None).unwrap();
    TextTokenizer::train(&corpus, tiny::TEXT_VOCAB).unwrap().save(model.join("tokenizer.json")).unwrap();
    let (router, smk) = (RouterFitConfig::default(), SmkConfig::DEFAULT);
    RunConfig {
        model: Some(model),
        variant: "Moe2x4".into(),
        data,
        out: dir.join("out"),
        length: 16,
        batch: 4,
        scan_tokens: 400,
        test_tokens: 200,
        router: RouterFitConfig { steps: 2, ..router },
        smk: SmkConfig { steps: 3, batch: 4, min_k: 2, ..smk },
        ..RunConfig::default()
    }
}

#[rstest]
fn checkpoints_keep_the_types_of_the_dense_model(#[values(DType::F32, DType::BF16, DType::F16)] dtype: DType) {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path(), dtype);
    let summary = phase2(&config, None).unwrap();
    assert!(summary.phase1.lossless.bit_equal);
    let [dense, upcycled, trained] =
        [dir.path().join("dense"), config.out.join("upcycled"), config.out.join("tiny-onn")].map(|path| {
            let folder = ModelFolder::open(path).unwrap();
            assert_eq!(folder.arch().unwrap(), tiny::config(tiny::TEXT_VOCAB));
            folder
        });
    let types =
        |folder: &ModelFolder| folder.tensors().map(|(name, info)| (name.to_owned(), info.clone())).collect::<Vec<_>>();
    assert_eq!(types(&upcycled), types(&trained));
    for name in expected_tensors(&tiny::config(tiny::TEXT_VOCAB)).keys() {
        assert_eq!(upcycled.bytes(name).unwrap(), dense.bytes(name).unwrap(), "{name}");
        let expert = name.contains(".mlp.");
        assert_eq!(trained.bytes(name).unwrap() != dense.bytes(name).unwrap(), expert, "{name}");
        assert!(types(&dense).iter().all(|(name, info)| types(&trained).contains(&(name.clone(), info.clone()))));
    }
    // It runs as what it is stored in.
    let model = load_model(config.out.join("tiny-onn"), &CPU, None).unwrap();
    let logits = model.logits(&models::ids((1, 5)), &model.active().pass()).unwrap();
    assert_eq!(logits.dtype(), dtype);

    // Again into the same folder: every part is replaced, and nothing is left beside it.
    let again = phase2(&config, None).unwrap();
    assert_eq!(again.smk.routed.to_bits(), summary.smk.routed.to_bits());
    let mut names: Vec<_> = fs::read_dir(&config.out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let events = "events.out.tfevents.0000000001.metrics.tinyonn";
    assert_eq!(names, [events, "metrics.jsonl", "summary.json", "tiny-onn", "upcycled"]);
}

/// Whatever a variant declares, it can be fitted, run and trained, its routers with it.
#[rstest]
fn every_kind_of_variant_goes_all_the_way(
    #[values("Cortex", "Deep3", "Custom3x4", "SegmentOf3", "ByTask", "BySurprisal", "EvenByBias", "EvenByLoss")]
    name: &str,
) {
    let dir = TempDir::new().unwrap();
    let mut config = RunConfig { variant: name.into(), ..setting(dir.path(), DType::F32) };
    config.smk.routers = true;
    let summary = phase2(&config, None).unwrap();
    assert!(summary.phase1.lossless.bit_equal);
    assert!(summary.smk.routed.is_finite());
    assert!(summary.phase1.active_share > 0.0 && summary.phase1.active_share <= 1.0, "{}", summary.phase1.active_share);
    let folder = config.out.join("tiny-onn");
    let model = load_model(&folder, &CPU, None).unwrap();
    let opened = TinyOnnFolder::open(&folder).unwrap();
    assert_eq!(opened.variant().spec.name, name);
    let (ids, ctx) = (models::ids((2, 9)), model.active().pass());
    // A checkpoint has the paths of its tasks, and takes the tasks of the sequences from its caller.
    let by_task = name == "ByTask";
    assert_eq!(model.logits(&ids, &ctx).is_err(), by_task);
    assert_eq!(
        opened.config().paths.iter().map(|path| path.task.as_str()).collect::<Vec<_>>(),
        if by_task { vec!["arithmetic", "sorting"] } else { vec![] }
    );
    if by_task {
        // They are those that the run measured: the loaded model along them loses what the summary says.
        let text = Text::new(&config.data, config.seed).unwrap();
        let tokenizer = TextTokenizer::load(folder.join("tokenizer.json"), None).unwrap();
        let mut test = text.encode(&tokenizer).unwrap().test;
        test.truncate(config.test_tokens);
        let store = opened.load(&CPU, None).unwrap();
        let lm = opened.model(&store, DType::F32).unwrap();
        let options = EvaluateOptions { length: config.length, batch: config.batch, skip: 0 };
        let paths = opened.config().path_table().map(Arc::new);
        let losses = evaluate(lm.lm(), &test, options, &Pass { paths, ..Pass::routed() }, &CPU).unwrap();
        approx::assert_relative_eq!(losses.mean, summary.smk.routed, max_relative = 1e-6);
        let [a, b] = [0, 1].map(|task| &opened.config().paths[task].experts);
        assert_ne!(a, b, "tasks share a path: the test is blind");
    }
    let of = |task: u32, paths| Pass { tasks: Some([task, task].into()), paths, ..ctx.clone() };
    let given = opened.config().path_table().map(Arc::new);
    for task in 0..2 {
        let [stored, given] =
            [of(task, None), of(task, given.clone())].map(|ctx| models::bits(&model.logits(&ids, &ctx).unwrap()));
        assert_eq!(stored, given);
    }
}

/// What an image is worth is measured beside what it is compared with, all on the same tokens.
#[test]
fn every_source_of_labels_has_its_loss() {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path(), DType::F32);
    let summary = runs::phase2(&config, None).unwrap();
    let sources = &summary.studies.label_sources;
    let names: Vec<&str> = sources.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "activation",
            "activation_plus_surprise",
            "calm",
            "dense",
            "random",
            "sps",
            "sps_contrasted",
            "sps_lowest",
            "sps_one_path",
            "sps_permuted",
            "sps_sinkhorn",
            "surprise",
            "taylor",
            "taylor_magnitude"
        ]
    );
    // The part of the test split is the whole of it here.
    approx::assert_relative_eq!(sources["dense"].loss, summary.phase1.loss.dense, max_relative = 1e-12);
    approx::assert_relative_eq!(sources["sps"].loss, summary.phase1.loss.label_paths, max_relative = 1e-12);
    assert!(sources["sps_lowest"].loss.to_bits() != sources["sps"].loss.to_bits());
    for (task, loss) in &summary.phase1.loss_by_task["label_paths"] {
        approx::assert_relative_eq!(sources["sps"].by_task[task], *loss, max_relative = 1e-12);
    }
    // The load is reported of what labels ask for, and of what routers did, before and after.
    assert!(
        summary
            .phase1
            .load
            .asked
            .layers
            .iter()
            .all(|layer| layer.experts_taken.is_empty() && layer.max_over_mean >= 1.0)
    );
    for load in [&summary.phase1.load.before, &summary.smk.as_ref().unwrap().load] {
        assert_eq!(load.layers.len(), 2);
        let tokens: Vec<u64> = load.layers.iter().map(|layer| layer.experts_taken.values().sum()).collect();
        assert!(tokens[0] > 0 && tokens[0] == tokens[1], "{tokens:?}");
    }
    // Labels by another score are that source's.
    let other = RunConfig { labels: Score::Taylor, out: dir.path().join("taylor"), ..config.clone() };
    approx::assert_relative_eq!(
        phase2(&other, None).unwrap().phase1.loss.label_paths,
        sources["taylor"].loss,
        max_relative = 1e-12
    );
    let label_balance = LabelBalance::Sinkhorn;
    let even = phase2(&RunConfig { label_balance, out: dir.path().join("even"), ..config }, None).unwrap();
    assert_eq!(even.phase1.labels_by, "sps_sinkhorn");
    approx::assert_relative_eq!(even.phase1.loss.label_paths, sources["sps_sinkhorn"].loss, max_relative = 1e-12);
}

/// Every partition goes all the way, whatever it has to read first.
#[rstest]
fn every_partition_goes_all_the_way(
    #[values(Partition::Kmeans, Partition::Coactivation, Partition::Taylor)] strategy: Partition,
) {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path(), DType::BF16);
    let summary = phase2(&RunConfig { partition: Some(strategy), ..config.clone() }, None).unwrap();
    assert!(summary.phase1.lossless.bit_equal);
    assert_eq!(summary.phase1.model.partition.as_deref(), Some(strategy.word()));
    // So it does where only an image is made, of a stored model.
    let out = dir.path().join("image");
    fs::create_dir(&out).unwrap();
    let RunConfig { seed, device, dtype, variant, .. } = config;
    let image_config =
        ImageConfig { model: dir.path().join("dense"), variant, partition: Some(strategy), seed, device, dtype };
    let text = TextConfig {
        data: config.data,
        length: 16,
        batch: 4,
        tokens: 400,
        shard: Shard::default(),
        grad_site: GradSite::Weight,
        form: Form::default(),
        scan_file: None,
        out: out.clone(),
    };
    image(&image_config, &text).unwrap();
    let tensors = candle_core::safetensors::load(out.join("integral.safetensors"), &CPU).unwrap();
    let units = tensors["layers.1.neuron_expert"].to_vec1::<u32>().unwrap();
    let widths = (0..8).map(|expert| units.iter().filter(|unit| **unit == expert).count());
    assert_eq!(widths.collect::<Vec<_>>(), [4, 4, 3, 3, 3, 3, 3, 3]);
}

/// Replicas name no partition, have no scores to label by, and store what they learnt like the weights it is added to.
#[rstest]
fn replicas_store_deltas_like_their_bases(#[values(DType::F32, DType::BF16)] dtype: DType) {
    let dir = TempDir::new().unwrap();
    let config = RunConfig { variant: "Merged".into(), length: 40, ..setting(dir.path(), dtype) };
    let summary = runs::phase2(&config, None).unwrap();
    assert!(summary.studies.label_sources.is_empty() && summary.phase1.model.partition.is_none());
    let folder = TinyOnnFolder::open(config.out.join("tiny-onn")).unwrap();
    assert!(folder.config().partition.is_none());
    let deltas = folder.folder().tensors().filter(|(name, _)| is_delta(name));
    let types: Vec<Option<DType>> = deltas.map(|(_, info)| info.computed()).collect();
    assert!(!types.is_empty() && types.iter().all(|found| *found == Some(dtype)), "{types:?}");
    let model = load_model(config.out.join("tiny-onn"), &CPU, None).unwrap();
    assert_eq!(model.logits(&models::ids((1, 5)), &model.active().pass()).unwrap().dtype(), dtype);
}

#[rstest]
#[case::longer_than_a_task(20_000, &["`length`"])]
#[case::longer_than_the_model(65, &["`length`", "65", "64"])]
fn sequences_that_do_not_fit_are_refused_before_the_scan(#[case] length: usize, #[case] words: &[&str]) {
    let dir = TempDir::new().unwrap();
    let refused = message(phase2(&RunConfig { length, ..setting(dir.path(), DType::F32) }, None));
    assert!(words.iter().all(|word| refused.contains(word)) && !refused.contains('\n'), "{refused}");
    assert!(!dir.path().join("out/upcycled").exists());
}

#[test]
fn a_task_shorter_than_a_sequence_is_refused_before_the_scan() {
    let dir = TempDir::new().unwrap();
    let mut config = setting(dir.path(), DType::F32);
    let short = dir.path().join("short");
    fs::create_dir(&short).unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(short.join(name), name).unwrap();
    }
    config.data.push(format!("short={}", short.display()));
    let refused = message(phase2(&config, None));
    assert!(refused.contains("`length`: task `short` has") && refused.contains("give the task more text"), "{refused}");
    assert!(!config.out.join("upcycled").exists());
}

/// What a layer's routers see depends on the routers before it: a second round leaves the first layer's routers and moves the second's.
#[test]
fn routers_are_fitted_again_to_the_routed_pass() {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path(), DType::F32);
    let written = |refit_rounds: usize| {
        let router = RouterFitConfig { refit_rounds, ..config.router };
        let out = dir.path().join(format!("rounds{refit_rounds}"));
        let config = RunConfig { router, out, ..config.clone() };
        phase2(&config, None).unwrap();
        let folder = ModelFolder::open(config.out.join("tiny-onn")).unwrap();
        [0, 1].map(|layer| folder.bytes(&format!("model.layers.{layer}.mlp.group_router.mean")).unwrap().to_vec())
    };
    let [none, one] = [0, 1].map(written);
    assert_eq!(none[0], one[0]);
    assert!(none[1] != one[1]);
}
