//! What holds on every device: losslessness bit for bit, and the processor's figures within rounding.
//! A build for a GPU runs all of it there too; others run it twice on the processor, where figures must repeat exactly.

use candle_core::{DType, Device};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::upcycle;
use tinyonn::data::Sampler;
use tinyonn::decoder::{CausalLm, Learn, Pass};
use tinyonn::imaging::inputs::{Thinning, Window};
use tinyonn::imaging::{Partition, PartitionSources, RouterInputs, ScanOptions, partition, scan};
use tinyonn::metrics::MetricsLog;
use tinyonn::train::evaluate::EvaluateOptions;
use tinyonn::train::{OptimizerConfig, PretrainConfig, SmkConfig, evaluate, pretrain, train_smk};

use crate::generation;
use crate::gradients::devices;
use crate::models::{self, CPU, apart, bits, ids, learnt, variant};
use crate::tiny;

/// Losses of devices differ by the order of their f32 sums, which training amplifies (the figure the project promises).
const LOSS: f64 = 1e-3;

#[rstest]
fn all_active_is_lossless(
    #[values("Moe1x1", "Moe2x4", "Moe7x3", "Moe12x8", "Moe10x10")] name: &str,
    #[values(DType::F32, DType::BF16)] dtype: DType,
    #[values((1, 1), (3, 7))] shape: (usize, usize),
    #[values(Partition::Contiguous, Partition::Random)] partition: Partition,
) {
    for device in devices() {
        let cfg = models::config(123, true);
        let dense = models::on(&models::weights(&cfg, dtype), &device);
        let variant = variant(name);
        let units = models::partition(partition, &variant.spec, &cfg).unwrap();
        let sparse = upcycle(dense.deep_copy().unwrap(), &cfg, variant, &units, 0).unwrap();
        let ids = ids(shape).to_device(&device).unwrap();
        let a = models::dense(&cfg, &dense, dtype).logits(&ids, &Pass::all(), None).unwrap();
        let b = models::sparse(&cfg, variant, &sparse, dtype).logits(&ids, &Pass::all(), None).unwrap();
        assert_eq!(bits(&a.to_device(&CPU).unwrap()), bits(&b.to_device(&CPU).unwrap()), "{device:?}");
    }
}

#[rstest]
fn logits_and_gradients_agree(#[values("Moe2x4", "MoeSequence")] name: &str, #[values(false, true)] routed: bool) {
    let cfg = models::config(123, false);
    let variant = variant(name);
    let units = models::partition(Partition::Random, &variant.spec, &cfg).unwrap();
    let store = upcycle(models::weights(&cfg, DType::F32), &cfg, variant, &units, 0).unwrap();
    let ctx = if routed { Pass::routed() } else { Pass::all() };
    let run = |device: &Device| {
        let store = models::on(&store, device);
        let vb = store.builder(DType::F32, |_| true);
        let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
        let ids = ids((2, 12)).to_device(device).unwrap();
        let logits = model.logits(&ids, &ctx, None).unwrap().to_device(&CPU).unwrap();
        let picked = |name: &str| !name.contains("_router");
        let grads = learnt(model.lm(), (&store, &picked), (&ids, &ids), &ctx, &Learn::default()).grads;
        let of = |(name, var): (&str, &candle_core::Var)| {
            Some((name.to_owned(), grads.get(var)?.copy().unwrap().to_device(&CPU).unwrap()))
        };
        (logits, store.iter().filter_map(of).collect::<Vec<_>>())
    };
    let (logits, gradients) = run(&CPU);
    assert!(gradients.len() > 20);
    for device in devices() {
        let (other, other_gradients) = run(&device);
        // Logits of order ten over two layers: some hundred f32 roundings.
        assert!(apart(&logits, &other) < 2e-4, "{device:?}");
        for ((name, a), (_, b)) in gradients.iter().zip(&other_gradients) {
            let difference = crate::gradients::relative_difference(a, b);
            assert!(difference < 1e-4, "{name} on {device:?}: {difference}");
        }
    }
}

#[test]
fn pretraining_imaging_and_smk_agree() {
    let (train, test) = tiny::text();
    let cfg = tiny::config(tiny::TEXT_VOCAB);
    let optimizer = OptimizerConfig { rate: 5e-3, ..OptimizerConfig::DEFAULT };
    let run = |device: &Device| {
        let dir = TempDir::new().unwrap();
        let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
        let sampler = Sampler::new(&train, 32, 8, 0, device).unwrap();
        let config = PretrainConfig { steps: 40, batch: 8, warmup: 5, optimizer, ..PretrainConfig::DEFAULT };
        let store = pretrain(&cfg, &config, (&sampler, None), 0, &mut log, None).unwrap();
        let dense = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false)).unwrap();
        let options = ScanOptions { length: 32, batch: 8, tokens_per_task: 2048 };
        let mut inputs = RouterInputs::new(cfg.num_hidden_layers, Thinning::one_in(1, Window::First(8)));
        let scan = scan(&dense, &train, options, device, Some(&mut inputs)).unwrap();
        let variant = variant("Moe2x4");
        let units = partition::assign(
            Partition::Contiguous,
            &variant.spec,
            (cfg.num_hidden_layers, cfg.intermediate_size),
            PartitionSources::default(),
            0,
        )
        .unwrap();
        let sparse = upcycle(store.deep_copy().unwrap(), &cfg, variant, &units, 0).unwrap();
        let config = SmkConfig { steps: 10, batch: 8, min_k: 3, optimizer, ..SmkConfig::DEFAULT };
        let outcome =
            train_smk((&sparse, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None).unwrap();
        let options = EvaluateOptions { length: 32, batch: 8, skip: 0 };
        let model = tiny::sparse(&cfg, variant, &sparse);
        let losses =
            [Pass::all(), Pass::routed()].map(|ctx| evaluate(model.lm(), &test, options, &ctx, device).unwrap().mean);
        let prompt = [5, 6, 7];
        let text = generation::continued(&model, &prompt, 8, &Pass::routed());
        assert_eq!(text.len(), 8);
        let [tokens, _] = inputs.into_samples();
        (losses, scan, tokens[1].values.clone(), outcome.updated_share)
    };
    let (losses, image, inputs, share) = run(&CPU);
    for device in devices() {
        let (other, other_image, other_inputs, other_share) = run(&device);
        for (a, b) in losses.iter().zip(&other) {
            approx::assert_abs_diff_eq!(a, b, epsilon = LOSS);
        }
        for (a, b) in image.sums.iter().flatten().zip(other_image.sums.iter().flatten()) {
            for (a, b) in a.each().into_iter().take(4).flatten().zip(b.each().into_iter().take(4).flatten()) {
                // Sums over a thousand tokens through weights that forty steps have moved apart by rounding.
                approx::assert_relative_eq!(a, b, max_relative = 2e-2, epsilon = 1e-6);
            }
        }
        let spread = inputs.iter().zip(&other_inputs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(spread < 0.05, "router inputs on {device:?} differ by {spread}");
        approx::assert_abs_diff_eq!(share, other_share, epsilon = 0.05);
    }
}
