//! Distillation: the divergence and its gradient, what learns from it, and what stays.

use candle_core::{DType, Device, Tensor, Var};
use rstest::rstest;
use tinyonn::checkpoint::{ParamStore, Role, variant_params};
use tinyonn::data::Sampler;
use tinyonn::decoder::{Arch, FeedForward, Learn, Pass};
use tinyonn::imaging::{Choose, Cut, calibrate_gate, neuron_calibration, threshold};
use tinyonn::interrupt::Interrupt;
use tinyonn::metrics::MetricsLog;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{self, REPAIR, REPAIR_BIAS, REPAIR_DOWN};
use tinyonn::ops::Grads;
use tinyonn::ops::distillation::divergence;
use tinyonn::train::{Checkpoints, DistilConfig, Memory, Precision, distil, grow_repairs};

use crate::gradients::{devices, inputs, relative_difference};
use crate::models::{bits, ids, message};
use crate::tiny;

/// In candle's own operations: KL(softmax(x′ Wᵀ) ‖ softmax(x Wᵀ)) of each row.
fn naive(x: &Tensor, teacher: &Tensor, head: &Tensor) -> candle_core::Result<Tensor> {
    let log_probs = |x: &Tensor| candle_nn::ops::log_softmax(&x.matmul(&head.t()?)?, 1);
    let (log_q, log_p) = (log_probs(x)?, log_probs(teacher)?);
    (log_p.exp()? * (&log_p - log_q)?)?.sum(1)
}

/// Value and gradient are those of the plain composition; the gradient is that of central differences.
#[rstest]
#[case::one(1, 3, 5)]
#[case::odd(13, 7, 31)]
#[case::wide(5, 4, 300)]
fn divergence_is_that_of_two_softmaxes(#[case] t: usize, #[case] d: usize, #[case] v: usize) {
    for device in devices() {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let drawn = inputs(11, &[&[t, d], &[t, d], &[v, d], &[t]]);
            let xs: Vec<Tensor> =
                drawn.iter().map(|x| x.to_dtype(dtype).unwrap().to_device(&device).unwrap()).collect();
            let weight = xs[3].abs().unwrap().to_dtype(DType::F32).unwrap();
            let (kl, dx) = divergence(&xs[0], &xs[1], &xs[2], &weight).unwrap();
            let var = Var::from_tensor(&xs[0]).unwrap();
            let expected = naive(var.as_tensor(), &xs[1], &xs[2]).unwrap();
            let weighted = (&expected * weight.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
            let store = weighted.backward().unwrap();
            // Log-probabilities that cancel: relative to the largest of their values, near 1 here.
            assert!(relative_difference(&kl.to_dtype(dtype).unwrap(), &expected.detach()) < tolerance);
            assert!(relative_difference(&dx, store.get(&var).unwrap()) < 10.0 * tolerance);
        }
    }
    let xs = inputs(12, &[&[t, d], &[t, d], &[v, d], &[t, d]]);
    let ones = Tensor::ones(t, DType::F32, &Device::Cpu).unwrap();
    let (_, dx) = divergence(&xs[0], &xs[1], &xs[2], &ones).unwrap();
    let at = |step: f64| {
        let moved = (&xs[0] + (&xs[3] * step).unwrap()).unwrap();
        let (kl, _) = divergence(&moved, &xs[1], &xs[2], &ones).unwrap();
        kl.sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
    let along = (dx * &xs[3]).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    // Central differences of step 1e-5 in f64: 1e-10 by the third derivative, 1e-11 by rounding.
    approx::assert_relative_eq!(numeric, along, max_relative = 1e-6, epsilon = 1e-8);
}

#[test]
fn shapes_that_do_not_go_together_are_refused() {
    let xs = inputs(1, &[&[3, 2], &[4, 2], &[5, 2]]);
    let ones = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
    let said = divergence(&xs[0], &xs[1], &xs[2], &ones).unwrap_err().to_string();
    assert!(said.contains("rows of a student"), "{said}");
}

/// A model whose tokens take two fifths of their neurons, with what may learn in its place.
fn student() -> (Arch, ParamStore, ParamStore) {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, mut store) = tiny::upcycled(&cfg, "OwnGate", &dense);
    let x = inputs(5, &[&[300, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let model = tiny::sparse(&cfg, variant, &store);
    for layer in 0..cfg.num_hidden_layers {
        let cut = Cut::of(1.0, 0.4);
        let found = calibrate_gate(model.moe(layer), &x, cut, Choose::Threshold, None).unwrap();
        for (name, value) in neuron_calibration::gate_parameters(&found, &Device::Cpu).unwrap() {
            store.set(&format!("model.layers.{layer}.mlp.{name}"), &value).unwrap();
        }
    }
    grow_repairs(&mut store, &cfg).unwrap();
    (cfg, dense, store)
}

/// ΔW has the gradient that W has in a model of W + ΔW without a repair, b the sum of ∂L/∂y; what is frozen gets none.
#[test]
fn a_repair_has_the_gradient_of_the_weights() {
    let (cfg, _, store) = student();
    let variant = moe::variant("OwnGate").unwrap();
    let layer = "model.layers.0.mlp";
    let drawn = inputs(9, &[&[cfg.intermediate_size, cfg.hidden_size][..]; 3]);
    let mut merged = store.deep_copy().unwrap();
    for ((name, projection), delta) in REPAIR.into_iter().zip(["gate_proj", "up_proj", "down_proj"]).zip(&drawn) {
        let delta = (delta.to_dtype(DType::F32).unwrap() * 0.3).unwrap();
        store.set(&format!("{layer}.{name}"), &delta).unwrap();
        let whole = format!("{layer}.{projection}.weight");
        merged.set(&whole, &(store.get(&whole).unwrap().as_detached_tensor() + delta).unwrap()).unwrap();
    }
    // The rule compares by the norms of W_d itself.
    let norms = store.get(&format!("{layer}.down_proj.weight")).unwrap().as_detached_tensor();
    merged.insert(format!("{layer}.neurons.worth"), norms.sqr().unwrap().sum(1).unwrap().sqrt().unwrap()).unwrap();
    let x = inputs(5, &[&[2, 9, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let dy = inputs(6, &[&[2, 9, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let gradients = |store: &ParamStore, names: &[String]| {
        let own = names.to_vec();
        let vb = store.builder(DType::F32, move |name| own.iter().any(|own| own == name));
        let model = TinyOnnForCausalLm::new(&cfg, variant, &vb).unwrap();
        let vars: Vec<Tensor> = names.iter().map(|name| store.get(name).unwrap().as_tensor().clone()).collect();
        let mut grads = Grads::new(vars.iter().map(|var| (var, 0))).unwrap();
        let (y, _, saved) = model.moe(0).forward(&x, &Pass::routed().kept()).unwrap();
        model.moe(0).backward(saved.unwrap(), &dy, &Learn::default(), true, &mut grads).unwrap();
        (y, vars.iter().map(|var| grads.get(var).unwrap().clone()).collect::<Vec<_>>())
    };
    let own: Vec<String> = REPAIR.iter().chain([&REPAIR_BIAS]).map(|name| format!("{layer}.{name}")).collect();
    let (y, of_repair) = gradients(&store, &own);
    // Without a repair at all.
    let mut plain = ParamStore::new(&Device::Cpu);
    for (name, var) in merged.iter().filter(|(name, _)| !name.contains("neurons.repair")) {
        plain.insert(name.to_owned(), var.as_detached_tensor()).unwrap();
    }
    let weights: Vec<String> =
        ["gate_proj", "up_proj", "down_proj"].map(|projection| format!("{layer}.{projection}.weight")).to_vec();
    let (expected_y, of_weights) = gradients(&plain, &weights);
    assert_eq!(bits(&y), bits(&expected_y));
    for (found, expected) in of_repair.iter().zip(&of_weights) {
        assert_eq!(bits(found), bits(expected));
    }
    let sum = dy.flatten_to(1).unwrap().sum(0).unwrap();
    assert!(relative_difference(&of_repair[3], &sum) < 1e-6);
}

fn lesson() -> DistilConfig {
    let optimizer = tinyonn::train::OptimizerConfig { rate: 3e-3, ..DistilConfig::DEFAULT.optimizer };
    DistilConfig { steps: 30, batch: 4, warmup: 2, optimizer, ..DistilConfig::DEFAULT }
}

/// The divergence falls, only repairs move, and all active the model is the dense one, bit for bit.
#[test]
fn a_student_comes_closer_and_stays_lossless() {
    let (cfg, dense, store) = student();
    let (variant, before) = (moe::variant("OwnGate").unwrap(), store.deep_copy().unwrap());
    let set = tiny::tokens(5, &[400, 300], 40);
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let teacher = tiny::dense(&cfg, &dense);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("distil.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    let last = distil((&store, &cfg, variant), &teacher, &sampler, &lesson(), &mut log, None).unwrap();
    let first = tinyonn::metrics::read(&path).unwrap()[0].values[0].1;
    assert!(last < 0.7 * first, "{first} {last}");
    let params = variant_params(&cfg, variant).unwrap();
    for (name, var) in store.iter() {
        let moved = bits(var.as_tensor()) != bits(before.get(name).unwrap().as_tensor());
        let role = params.iter().find(|param| param.name == name).map(|param| param.role);
        assert_eq!(moved, role == Some(Role::Repair), "{name}");
    }
    let ids = ids((2, 9));
    let model = tiny::sparse(&cfg, variant, &store);
    let expected = teacher.logits(&ids, &Pass::all(), None).unwrap();
    assert_eq!(bits(&model.logits(&ids, &Pass::all(), None).unwrap()), bits(&expected));
    // A gate that moved is set to its share again.
    let x = inputs(8, &[&[200, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let least = threshold(model.moe(1), &x, 0.4).unwrap();
    store.set("model.layers.1.mlp.neurons.least_score", &Tensor::new(&[least], &Device::Cpu).unwrap()).unwrap();
    let [_, h] = tiny::sparse(&cfg, variant, &store).moe(1).chosen(&x.unsqueeze(0).unwrap()).unwrap();
    let taken = h.ne(0f64).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(taken, 0.4 * 200.0 * 26.0);
}

/// A training that was stopped ends in the same bits as one that was not.
#[test]
fn it_goes_on_where_it_stopped() {
    let set = tiny::tokens(5, &[400, 300], 40);
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let variant = moe::variant("OwnGate").unwrap();
    let parent = tempfile::tempdir().unwrap();
    let run = |store: &ParamStore, cfg: &Arch, dense: &ParamStore, config: &DistilConfig, states: Option<&str>| {
        let checkpoints = states.map(|name| Checkpoints {
            dir: parent.path().join(name),
            every: 5,
            keep: 2,
            interrupt: Interrupt::default(),
        });
        let mut log = MetricsLog::open(parent.path().join("log.jsonl")).unwrap();
        distil((store, cfg, variant), &tiny::dense(cfg, dense), &sampler, config, &mut log, checkpoints.as_ref())
    };
    let (cfg, dense, whole) = student();
    run(&whole, &cfg, &dense, &DistilConfig { steps: 12, ..lesson() }, Some("a")).unwrap();
    // The last state but the final one: what a kill after step 10 leaves.
    let states = parent.path().join("a");
    let mut left: Vec<_> = std::fs::read_dir(&states).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    std::fs::remove_file(left.pop().unwrap()).unwrap();
    let (_, _, again) = student();
    run(&again, &cfg, &dense, &DistilConfig { steps: 12, ..lesson() }, Some("a")).unwrap();
    for (name, var) in whole.iter() {
        assert_eq!(bits(var.as_tensor()), bits(again.get(name).unwrap().as_tensor()), "{name}");
    }
    let (_, _, other) = student();
    let said = message(run(&other, &cfg, &dense, &DistilConfig { steps: 13, ..lesson() }, Some("a")));
    assert!(said.contains("distil.steps"), "{said}");
}

/// In parts, and with values computed again, a step is the same but for the order of sums; in bf16 it is a step; without a bias none learns.
#[test]
fn what_a_step_holds_changes_nothing() {
    let set = tiny::tokens(5, &[400, 300], 40);
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let variant = moe::variant("OwnGate").unwrap();
    let after = |config: DistilConfig| {
        let (cfg, dense, store) = student();
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
        let teacher = tiny::dense(&cfg, &dense);
        let last = distil((&store, &cfg, variant), &teacher, &sampler, &config, &mut log, None).unwrap();
        (store, last)
    };
    let one = DistilConfig { steps: 3, ..lesson() };
    let (whole, _) = after(one);
    let memory = Memory { micro_batches: 2, recompute: true, ..Memory::DEFAULT };
    let (parts, _) = after(DistilConfig { memory, ..one });
    let get =
        |store: &ParamStore, name: &str| store.get(&format!("model.layers.1.mlp.{name}")).unwrap().as_detached_tensor();
    for name in REPAIR.iter().chain([&REPAIR_BIAS]) {
        // Adam's first steps are of the rate's size whatever the gradient: signs of sums near zero may differ.
        assert!(relative_difference(&get(&parts, name), &get(&whole, name)) < 0.05, "{name}");
    }
    let bf16 =
        Memory { weights: Precision::Bf16, gradients: Precision::Bf16, moments: Precision::Bf16, ..Memory::DEFAULT };
    assert!(after(DistilConfig { memory: bf16, ..one }).1.is_finite());
    let (unbiased, _) = after(DistilConfig { bias: false, ..one });
    assert_eq!(bits(&get(&unbiased, REPAIR_BIAS)), bits(&get(&student().2, REPAIR_BIAS)));
    assert_ne!(bits(&get(&unbiased, REPAIR_DOWN)), bits(&get(&student().2, REPAIR_DOWN)));
}

#[test]
fn a_model_without_repairs_is_refused() {
    let cfg = tiny::config(40);
    let dense = tiny::dense_store(&cfg, 1);
    let (variant, store) = tiny::upcycled(&cfg, "OwnGate", &dense);
    let set = tiny::tokens(5, &[400, 300], 40);
    let sampler = Sampler::new(&set, 16, 4, 0, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    let found = distil((&store, &cfg, variant), &tiny::dense(&cfg, &dense), &sampler, &lesson(), &mut log, None);
    let said = message(found);
    assert!(said.contains("neurons.repair") && said.contains("grow_repairs"), "{said}");
    assert!(store.get(&format!("model.layers.0.mlp.{REPAIR_DOWN}")).is_none());
}
