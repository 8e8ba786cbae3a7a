//! Runs whose passes compute in bf16 (`--dtype bf16`): what they compute, what they leave as it was, what they refuse to mix with f32.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{ModelFolder, ParamStore, expected_tensors};
use tinyonn::data::{NovelTask, Sampler};
use tinyonn::decoder::Pass;
use tinyonn::decoder::smk_rule::Select;
use tinyonn::imaging::{Form, Shard, StoredScan};
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::metrics::{self, MetricsLog, Stopwatch, series};
use tinyonn::ops::GradSite;
use tinyonn::phases::{
    ForgettingConfig, ImageConfig, Method, PlannedTraining, Prepared, RunConfig, SparsifyConfig, Stages, TextConfig,
    forgetting, image, phase1, phase2, phase2_from, plan, sparsify,
};
use tinyonn::train::{Checkpoints, Memory, OptimizerConfig, Precision, PretrainConfig, SmkConfig, pretrain, train_smk};
use tinyonn::{Error, Result};

use crate::models::{self, CPU, message};
use crate::phase2::setting;
use crate::tiny;

/// The run of [`setting`] in bf16.
fn in_bf16(dir: &Path, stored: DType) -> RunConfig {
    RunConfig { dtype: Precision::Bf16, ..setting(dir, stored) }
}

/// Whatever the dense model is stored in, frozen weights are written byte for byte as they were read, experts in their type; and all active the logits in bf16 are the
/// dense model's.
#[rstest]
fn what_does_not_learn_is_left_as_it_was(#[values(DType::F32, DType::BF16, DType::F16)] stored: DType) {
    let dir = TempDir::new().unwrap();
    let config = in_bf16(dir.path(), stored);
    let summary = phase2(&config, None).unwrap();
    assert!(summary.phase1.lossless.bit_equal && summary.smk.routed.is_finite());
    let [dense, trained] =
        [dir.path().join("dense"), config.out.join("tiny-onn")].map(|path| ModelFolder::open(path).unwrap());
    for name in expected_tensors(&tiny::config(tiny::TEXT_VOCAB)).keys() {
        let info = |folder: &ModelFolder| folder.tensors().find(|(other, _)| other == name).unwrap().1.clone();
        assert_eq!(info(&trained), info(&dense), "{name}");
        let moved = trained.bytes(name).unwrap() != dense.bytes(name).unwrap();
        assert_eq!(moved, name.contains(".mlp."), "{name}");
    }
}

/// Passes do compute in it: the figures differ from those of f32, by its rounding.
#[test]
fn figures_are_those_of_f32_but_for_rounding() {
    let dir = TempDir::new().unwrap();
    let narrow = in_bf16(dir.path(), DType::F32);
    let wide = RunConfig { dtype: Precision::F32, out: dir.path().join("wide"), ..narrow.clone() };
    let [wide, narrow] = [wide, narrow].map(|config| phase2(&config, None).unwrap());
    let of = |summary: &tinyonn::phases::Summary| [summary.phase1.loss.dense, summary.smk.all_active];
    for (a, b) in of(&wide).into_iter().zip(of(&narrow)) {
        assert!(a.to_bits() != b.to_bits());
        // Eight bits of mantissa in each of some tens of roundings.
        approx::assert_relative_eq!(a, b, max_relative = 5e-3);
    }
}

/// Whatever a variant declares goes all the way.
#[rstest]
fn every_kind_of_variant_runs(
    #[values("Cortex", "Custom3x4", "SegmentOf3", "ByTask", "BySurprisal", "EvenByBias", "EvenByLoss", "Merged")]
    name: &str,
) {
    let dir = TempDir::new().unwrap();
    let mut config = RunConfig { variant: name.into(), length: 40, ..in_bf16(dir.path(), DType::BF16) };
    config.smk.routers = name != "Merged";
    let summary = phase2(&config, None).unwrap();
    assert!(summary.phase1.lossless.bit_equal && summary.smk.routed.is_finite());
}

/// Labels of tokens, refits, and a partition that reads what neurons do.
#[test]
fn what_reads_activations_runs() {
    let dir = TempDir::new().unwrap();
    let mut config = in_bf16(dir.path(), DType::BF16);
    config.label = tinyonn::phases::LabelUnit::Token;
    config.partition = Some(tinyonn::imaging::Partition::Coactivation);
    config.router.refit_rounds = 1;
    assert!(phase2(&config, None).unwrap().phase1.lossless.bit_equal);
}

/// What lies in the folder of a run that experts learnt in.
fn written(out: &Path) -> Vec<Vec<u8>> {
    ["tiny-onn/model.safetensors", "metrics.jsonl"].map(|name| fs::read(out.join(name)).unwrap()).into()
}

/// A run that is stopped in each step goes on to the same bits.
#[test]
fn a_run_that_is_stopped_goes_on_to_the_same_bits() {
    let dir = TempDir::new().unwrap();
    let config = in_bf16(dir.path(), DType::BF16);
    phase2(&config, None).unwrap();
    let expected = written(&config.out);
    let states = Checkpoints { dir: dir.path().join("states"), every: 100, keep: 2, interrupt: Interrupt::default() };
    states.interrupt.request(Signal::Terminate);
    let stopped = RunConfig { out: dir.path().join("stopped"), ..config };
    let mut stops = 0;
    loop {
        match phase2(&stopped, Some(&states)) {
            Err(Error::Interrupted { .. }) => stops += 1,
            done => break drop(done.unwrap()),
        }
    }
    assert!(stops > 1 && written(&stopped.out) == expected, "{stops}");
}

/// A state, a phase and a scan of another type are refused by name.
#[test]
fn what_was_computed_in_another_type_is_not_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let config = in_bf16(dir.path(), DType::BF16);
    phase1(&config, None).unwrap();
    let other = RunConfig { dtype: Precision::F32, out: dir.path().join("two"), ..config.clone() };
    let refused = message(phase2_from(&config.out, &other, None));
    assert!(refused.contains("`dtype`: is not what phase 1 had"), "{refused}");
    let out = RunConfig { out: dir.path().join("two"), ..config.clone() };
    assert!(phase2_from(&config.out, &out, None).is_ok());

    let states = Checkpoints { dir: dir.path().join("states"), every: 100, keep: 2, interrupt: Interrupt::default() };
    states.interrupt.request(Signal::Terminate);
    assert!(matches!(phase2(&config, Some(&states)), Err(Error::Interrupted { .. })));
    let refused = message(phase2(&RunConfig { dtype: Precision::F32, ..config }, Some(&states)));
    assert!(refused.contains("`smk.memory.weights` was \"bf16\" and is \"f32\""), "{refused}");
}

fn scanned(dir: &Path, config: &RunConfig, file: &Path) -> Result<StoredScan> {
    let RunConfig { seed, device, dtype, variant, data, .. } = config.clone();
    let model = dir.join("dense");
    let out = dir.join("image");
    fs::create_dir_all(&out).unwrap();
    let text = TextConfig {
        data,
        length: 16,
        batch: 4,
        tokens: 400,
        shard: Shard::default(),
        grad_site: GradSite::Weight,
        form: Form::default(),
        scan_file: Some(file.to_path_buf()),
        out,
    };
    Ok(image(&ImageConfig { model, variant, partition: None, seed, device, dtype }, &text)?.stored)
}

#[test]
fn scans_of_two_types_are_not_mixed() {
    let dir = TempDir::new().unwrap();
    let narrow = in_bf16(dir.path(), DType::BF16);
    let wide = RunConfig { dtype: Precision::F32, ..narrow.clone() };
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let mut of_narrow = scanned(dir.path(), &narrow, &a).unwrap();
    let refused = message(scanned(dir.path(), &wide, &a));
    assert!(refused.contains("passes in another dtype (bf16)"), "{refused}");
    let of_wide = scanned(dir.path(), &wide, &b).unwrap();
    let refused = message(of_narrow.merge(&of_wide));
    assert!(refused.contains("computed in bf16 and f32") && refused.contains("--dtype"), "{refused}");
    // The sums are f64 over values of 8 bits.
    for (narrow, wide) in of_narrow.scan.sums.iter().flatten().zip(of_wide.scan.sums.iter().flatten()) {
        let [a, b] = [narrow, wide].map(|sums| sums.activation_squared.iter().sum::<f64>());
        assert!(a.to_bits() != b.to_bits());
        approx::assert_relative_eq!(a, b, max_relative = 2e-2);
    }
}

/// What f32 runs record is what they recorded before there was a choice.
#[test]
fn records_name_the_type_where_it_is_not_f32() {
    let said = |dtype| serde_json::to_value(RunConfig { dtype, ..RunConfig::default() }).unwrap().get("dtype").cloned();
    assert_eq!(said(Precision::F32), None);
    assert_eq!(said(Precision::Bf16), Some("bf16".into()));
    assert_eq!(serde_json::from_str::<RunConfig>("{}").unwrap().dtype, Precision::F32);
    assert!(message("f16".parse::<Precision>()).contains("`--dtype`: there is no `f16`; use f32 or bf16"));
}

/// A plan counts it: half the weights where they are stored so, and masters of those alone that learn.
#[test]
fn a_plan_counts_it() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoders/published/qwen3_1_7b.json");
    let of = |dtype| {
        let config = RunConfig { model: Some(path.clone()), dtype, ..RunConfig::default() };
        plan(&config, Stages::Both).unwrap()
    };
    let [wide, narrow] = [Precision::F32, Precision::Bf16].map(of);
    for (wide, narrow) in wide.stages.iter().zip(&narrow.stages) {
        assert_eq!(wide.weights, 2 * narrow.weights, "{}", wide.name);
    }
    let PlannedTraining { learning, weights, values, .. } = narrow.trainings[0];
    let frozen = weights - learning as u64 * (2 + 18);
    assert!(frozen > 0 && frozen < 2 * narrow.parameters as u64, "{frozen}");
    assert_eq!(wide.trainings[0].values, 2 * values);
}

/// The losses of a training in bf16 stay within half a percent of those in f32, on the same batches.
#[test]
fn losses_of_a_training_stay_within_half_a_percent() {
    let (train, _) = tiny::text();
    let cfg = tiny::config(tiny::TEXT_VOCAB);
    let dir = TempDir::new().unwrap();
    let sampler = Sampler::new(&train, 32, 8, 0, &CPU).unwrap();
    let losses = |memory: Memory, name: &str| {
        let path = dir.path().join(name);
        let mut log = MetricsLog::create(&path).unwrap();
        let optimizer = OptimizerConfig { rate: 4e-3, ..OptimizerConfig::DEFAULT };
        let config = PretrainConfig { steps: 60, batch: 8, warmup: 5, optimizer, memory, ..PretrainConfig::DEFAULT };
        let store = pretrain(&cfg, &config, (&sampler, None), 0, &mut log, None).unwrap();
        let (variant, sparse) = tiny::upcycled(&cfg, "Moe2x4", &store);
        let config = SmkConfig { steps: 30, batch: 8, min_k: 3, memory, ..SmkConfig::DEFAULT };
        train_smk((&sparse, &cfg, variant), &Pass::all(), (&sampler, None), &config, &mut log, None).unwrap();
        drop(log);
        let read = metrics::read(&path).unwrap();
        ["pretrain", "smk"].map(|stage| series(&read, stage, "loss")).concat()
    };
    let wide = losses(Memory::DEFAULT, "wide");
    let narrow = losses(Memory::DEFAULT.within(Precision::Bf16), "narrow");
    assert!(wide.len() > 8 && wide.len() == narrow.len());
    for ((step, a), (_, b)) in wide.into_iter().zip(narrow) {
        assert!((a - b).abs() < 5e-3 * a, "step {step}: {a} {b}");
    }
}

/// Of a store that is held in bf16, what is to learn is given masters, and nothing else.
#[test]
fn only_what_learns_is_widened() {
    let cfg = tiny::config(40);
    let mut store: ParamStore = models::weights(&cfg, DType::BF16).passing_in(DType::BF16);
    let before: Vec<_> = store.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().id())).collect();
    store.widen(|name| name.contains("up_proj")).unwrap();
    for (name, id) in before {
        let var = store.get(&name).unwrap();
        let widened = name.contains("up_proj");
        assert_eq!(var.dtype(), if widened { DType::F32 } else { DType::BF16 }, "{name}");
        assert_eq!(var.as_tensor().id() == id, !widened, "{name}");
    }
    assert!(store.share().passes() == DType::BF16 && store.deep_copy().unwrap().passes() == DType::BF16);
}

/// Single neurons: chosen, repaired and distilled in bf16 nearly as in f32; all active bit-equal.
#[rstest]
#[case::gate("OwnGate")]
#[case::fixed_set("Pruned")]
fn single_neurons_are_chosen_in_it(#[case] variant: &str) {
    let dir = TempDir::new().unwrap();
    let run = setting(dir.path(), DType::BF16);
    let of = |dtype: Precision, name: &str| {
        let out = dir.path().join(name);
        let mut config = SparsifyConfig {
            model: run.model.clone(),
            variant: variant.into(),
            data: run.data.clone(),
            dtype,
            out,
            length: 16,
            batch: 4,
            calibration_tokens: 400,
            validation_tokens: 200,
            test_tokens: 200,
            ..SparsifyConfig::default()
        };
        (config.distil.steps, config.distil.batch) = (3, 4);
        sparsify(&config, None).unwrap()
    };
    let [wide, narrow] = [of(Precision::F32, "wide"), of(Precision::Bf16, "narrow")];
    assert!(narrow.lossless.bit_equal);
    approx::assert_relative_eq!(wide.loss.sparse, narrow.loss.sparse, max_relative = 2e-2);
    approx::assert_abs_diff_eq!(wide.operations, narrow.operations, epsilon = 5e-2);
}

/// Tasks are taught in it by every kind of method.
#[rstest]
#[case::dense(Method::DENSE)]
#[case::routed(Method::Experts { select: Select::Smk, routed: true })]
#[case::low_rank(Method::Lora { rank: 2 })]
#[case::decay(Method::Decay { strength: 1.0, fisher: true })]
fn tasks_are_taught_in_it(#[case] method: Method, #[values(DType::F32, DType::BF16)] stored: DType) {
    let dir = TempDir::new().unwrap();
    let optimizer = OptimizerConfig { rate: 1e-2, decay: 0.0, ..OptimizerConfig::DEFAULT };
    let smk = SmkConfig { steps: 4, batch: 4, look: 2, min_k: 2, optimizer, ..SmkConfig::DEFAULT };
    let config = RunConfig { smk, ..in_bf16(dir.path(), stored) };
    let of = ForgettingConfig {
        order: vec![NovelTask::Ledger, NovelTask::LetterSums],
        task_bytes: 12_000,
        method,
        fisher_sequences: 2,
    };
    let prepared = Prepared::new(&config, &mut Stopwatch::new(), None).unwrap();
    let record = forgetting(&prepared, &config, &of, None).unwrap();
    assert!(record.diverged.is_none() && record.moved > 0, "{:?}", record.diverged);
    // It learns: the task's loss falls.
    assert!(record.losses[1][0] < record.losses[0][0], "{:?}", record.losses);
}
