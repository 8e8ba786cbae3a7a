//! The shipped variants, each of them through everything that a variant goes through. They are found by the registry, so that a new
//! one is tested by being there.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use tempfile::TempDir;
use tinyonn::checkpoint::{
    ParamStore, TinyOnnConfig, TinyOnnFolder, expected_tensors, grow_deltas, load_model, tokens,
};
use tinyonn::data::Sampler;
use tinyonn::decoder::{Arch, InTraining, Learn, Pass};
use tinyonn::imaging::Labels;
use tinyonn::metrics::MetricsLog;
use tinyonn::model::{ActiveMode, TinyOnnForCausalLm};
use tinyonn::moe::{Balance, ExpertsAre, Gate, MoeLayer, MoeSpec, Pfag, RoutePer, RouterKind, Variant, variants};
use tinyonn::train::{OptimizerConfig, RouterFitConfig, RouterFitter, SmkConfig, router_accuracy, train_smk};

use crate::gradients::{devices, relative_difference};
use crate::models::{self, CPU, bits, learnt, message};
use crate::router_fit::{TASKS, planted};
use crate::tiny;

const VOCAB: usize = 40;

fn gallery() -> Vec<&'static Variant> {
    let shipped = |variant: &&Variant| variant.module_path.starts_with("tinyonn::gallery");
    variants().into_iter().filter(shipped).collect()
}

/// Wide enough for the most experts, and divisible by no number of them; heads of as many values as an index reads; sequences as long as the longest segment needs.
fn config() -> Arch {
    Arch { vocab_size: VOCAB, max_position_embeddings: 512, head_dim: 8, ..models::config(211, false) }
}

fn upcycled(variant: &Variant) -> (ParamStore, ParamStore) {
    let dense = tiny::dense_store(&config(), 1);
    let (_, store) = tiny::upcycled(&config(), &variant.spec.name, &dense);
    (dense, store)
}

/// Two sequences with some tokens behind what is read before a decision.
fn ids(spec: &MoeSpec) -> Tensor {
    tokens::random_tokens(VOCAB, (2, spec.open_positions() + 12), 5, &CPU).unwrap()
}

/// Routed; what takes its task's path is given one for each of two tasks.
fn routed(spec: &MoeSpec) -> Pass {
    let paths = Labels::random(2, 2, spec, 3).paths;
    Pass { tasks: Some(Arc::from([0, 1])), paths: Some(Arc::new(paths)), ..Pass::routed() }
}

fn is_expert(name: &str) -> bool {
    name.contains(".mlp.") && name.ends_with("_proj.weight")
}

/// Whether a language-model loss moves the routers: by the gates, or by a loss of their own.
fn routers_learn(spec: &MoeSpec) -> bool {
    let asked = spec.route_per != RoutePer::Task;
    asked && (spec.gate != Gate::Unit || matches!(spec.balance, Balance::Loss { .. }) || spec.z_loss > 0.0)
}

#[test]
fn there_are_a_dozen_and_each_is_sound() {
    let names: Vec<&str> = gallery().iter().map(|variant| variant.spec.name.as_ref()).collect();
    assert!(names.len() >= 12 && names.is_sorted(), "{names:?}");
    for variant in gallery() {
        tinyonn::moe::check(&variant.spec).unwrap();
    }
}

#[test]
fn all_active_is_the_dense_model_bit_for_bit_and_reloads_by_its_name() {
    let cfg = config();
    for variant in gallery() {
        let (dense, store) = upcycled(variant);
        let ids = ids(&variant.spec);
        let expected = bits(&tiny::dense(&cfg, &dense).logits(&ids, &Pass::all(), None).unwrap());
        let sparse = tiny::sparse(&cfg, variant, &store);
        assert_eq!(bits(&sparse.logits(&ids, &Pass::all(), None).unwrap()), expected, "{}", variant.spec.name);

        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("saved");
        let described = TinyOnnConfig { active: ActiveMode::Routed, ..TinyOnnConfig::new(variant, "random", 5) };
        TinyOnnFolder::save(&dir, &cfg.to_json(), &described, &store, None).unwrap();
        assert_eq!(TinyOnnFolder::open(&dir).unwrap().config().spec, variant.spec);
        let loaded = load_model(&dir, &CPU, None).unwrap();
        assert_eq!((loaded.variant(), loaded.active()), (Some(&*variant.spec.name), ActiveMode::Routed));
        for ctx in [Pass::all(), routed(&variant.spec)] {
            let [saved, own] = [loaded.logits(&ids, &ctx), sparse.logits(&ids, &ctx, None)].map(|y| bits(&y.unwrap()));
            assert_eq!(saved, own, "{}", variant.spec.name);
        }
    }
}

#[test]
fn routed_logits_are_finite_and_leave_the_dense_ones_where_experts_are_left_out() {
    for variant in gallery() {
        let spec = &variant.spec;
        let (_, store) = upcycled(variant);
        let (model, ids) = (tiny::sparse(&config(), variant, &store), ids(spec));
        let all = model.logits(&ids, &Pass::all(), None).unwrap();
        let routed = model.logits(&ids, &routed(spec), None).unwrap();
        let values = routed.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{}", spec.name);
        let fewer = spec.active_experts() < spec.experts() || spec.pfag != Pfag::Off;
        // Replicas that have learnt nothing are the dense MLP, however they are weighed.
        let differ = fewer && spec.experts_are == ExpertsAre::Slice;
        assert_eq!(bits(&routed) != bits(&all), differ, "{}", spec.name);
        let open = spec.open_positions();
        if open > 0 {
            let read = |y: &Tensor| bits(&y.narrow(1, 0, open).unwrap());
            assert_eq!(read(&routed), read(&all), "{}: what is read before a decision runs all active", spec.name);
        }
    }
}

/// Puts values of about `size` into every delta.
fn learn_deltas(store: &mut ParamStore, spec: &MoeSpec, size: f64) {
    grow_deltas(store, &config(), spec).unwrap();
    let deltas = store.iter().filter(|(name, _)| tinyonn::checkpoint::is_delta(name));
    for (seed, (_, var)) in deltas.enumerate() {
        let draw = crate::gradients::inputs(seed as u64, &[var.dims()]).remove(0);
        var.set(&(draw * size).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
    }
}

/// Upcycled; of replicas all have learnt something.
fn differentiated(variant: &Variant) -> ParamStore {
    let (_, mut store) = upcycled(variant);
    if variant.spec.experts_are == ExpertsAre::Replicate {
        learn_deltas(&mut store, &variant.spec, 0.02);
    }
    store
}

/// The experts, and the routers where the loss moves them.
fn trainable(spec: &MoeSpec) -> impl Fn(&str) -> bool + Clone + Send + Sync + 'static {
    let replicas = spec.experts_are == ExpertsAre::Replicate;
    let runs = spec.levels.iter().flat_map(|level| level.routers.iter());
    let random: Vec<String> =
        runs.filter(|run| run.kind == RouterKind::Random).map(|run| format!(".{}_router.", run.name)).collect();
    let learn_routers = routers_learn(spec);
    move |name: &str| {
        let expert = is_expert(name) && tinyonn::checkpoint::is_delta(name) == replicas;
        let router = learn_routers && name.contains("_router.") && !random.iter().any(|run| name.contains(run));
        expert || router
    }
}

#[test]
fn one_backward_reaches_every_trainable_parameter_and_no_other() {
    for variant in gallery() {
        let spec = &variant.spec;
        let store = differentiated(variant);
        let trainable = trainable(spec);
        let model = TinyOnnForCausalLm::new(&config(), variant, &store.builder(DType::F32, |_| true)).unwrap();
        let ids = ids(spec);
        let (pass, learn) = (
            Pass { training: Some(InTraining::whole(0)), ..routed(spec) },
            Learn { routers: true, ..Learn::default() },
        );
        let grads = learnt(model.lm(), (&store, &trainable), (&ids, &ids), &pass, &learn).grads;
        for (name, var) in store.iter() {
            let size = grads.get(var).map(|grad| {
                let norm = grad.sqr().unwrap().sum_all().unwrap().to_dtype(DType::F32).unwrap();
                norm.to_scalar::<f32>().unwrap()
            });
            if trainable(name) {
                assert!(size.is_some_and(|size| size.is_finite() && size > 0.0), "{}: {name} {size:?}", spec.name);
            } else {
                assert!(size.is_none(), "{}: {name} is frozen", spec.name);
            }
        }
    }
}

#[test]
fn routed_logits_and_gradients_are_the_same_on_every_device() {
    for variant in gallery() {
        let spec = &variant.spec;
        let store = differentiated(variant);
        let run = |device: &Device| {
            let store = models::on(&store, device);
            let model =
                TinyOnnForCausalLm::new(&config(), variant, &store.builder(DType::F32, trainable(spec))).unwrap();
            let ids = ids(spec).to_device(device).unwrap();
            let (pass, learn) = (
                Pass { training: Some(InTraining::whole(0)), ..routed(spec) },
                Learn { routers: true, ..Learn::default() },
            );
            let logits = model.logits(&ids, &pass, None).unwrap().to_device(&CPU).unwrap();
            let grads = learnt(model.lm(), (&store, &trainable(spec)), (&ids, &ids), &pass, &learn).grads;
            let of = |(name, var): (&str, &Var)| {
                Some((name.to_owned(), grads.get(var)?.copy().unwrap().to_device(&CPU).unwrap()))
            };
            (logits, store.iter().filter_map(of).collect::<Vec<_>>())
        };
        let (logits, gradients) = run(&CPU);
        for device in devices() {
            let (other, other_gradients) = run(&device);
            // Logits of order one over two layers: some hundred f32 roundings.
            let difference = models::apart(&logits, &other);
            assert!(difference < 2e-4, "{} on {device:?}: {difference}", spec.name);
            assert_eq!(gradients.len(), other_gradients.len(), "{}", spec.name);
            for ((name, a), (_, b)) in gradients.iter().zip(&other_gradients) {
                let difference = relative_difference(a, b);
                assert!(difference < 1e-3, "{}: {name} on {device:?}: {difference}", spec.name);
            }
        }
    }
}

/// Tasks so far apart that a router which learns finds them: closed form where there is one, gradient otherwise.
#[test]
fn routers_are_fitted_to_planted_tasks() {
    let cfg = config();
    let fit = RouterFitConfig { steps: 200, batch: 64, rate: 2e-2, ..RouterFitConfig::default() };
    let [train, validation, test] = ["train", "validation", "test"].map(|purpose| planted(purpose, 400, 2.0));
    for variant in gallery() {
        let spec = &variant.spec;
        let (_, store) = upcycled(variant);
        let before = tiny::bits(&store);
        let labels = Labels::random(TASKS, 2, spec, 3);
        let mut fitter = RouterFitter::new(&train, &validation, TASKS, spec.projection_width(cfg.hidden_size)).unwrap();
        fitter.fit((&store, &cfg, variant), &labels, &fit, 0).unwrap();
        let kinds = || spec.levels.iter().flat_map(|level| level.routers.iter());
        if kinds().all(|run| run.kind == RouterKind::Random) {
            assert_eq!(tiny::bits(&store), before, "{}: random routers are not fitted", spec.name);
            continue;
        }
        let model = tiny::sparse(&cfg, variant, &store);
        let modules: Vec<&MoeLayer> = (0..2).map(|layer| model.moe(layer)).collect();
        let accuracy = router_accuracy(&modules, &test, &labels).unwrap();
        for level in 0..spec.levels.len() {
            let found = accuracy.mean(level);
            assert!(found > 0.95, "{}, level {level}: {found}", spec.name);
        }
    }
}

#[test]
fn two_steps_of_surprise_min_k_move_experts_and_nothing_that_is_frozen() {
    let cfg = config();
    for variant in gallery() {
        let spec = &variant.spec;
        let (_, mut store) = upcycled(variant);
        let routers = routers_learn(spec);
        let smk = SmkConfig {
            steps: 2,
            batch: 2,
            min_k: 3,
            routers,
            optimizer: OptimizerConfig { rate: 1e-3, decay: 0.0, ..OptimizerConfig::DEFAULT },
            ..SmkConfig::DEFAULT
        };
        let set = tiny::tokens(3, &[700, 700], VOCAB as u32);
        let sampler = Sampler::new(&set, spec.open_positions() + 12, smk.batch, 0, &CPU).unwrap();
        let dir = TempDir::new().unwrap();
        let mut log = MetricsLog::create(dir.path().join("smk.jsonl")).unwrap();
        let mut train = |store: &ParamStore| {
            train_smk((store, &cfg, variant), &routed(spec), (&sampler, None), &smk, &mut log, None)
        };
        if spec.experts_are == ExpertsAre::Replicate {
            let refused = message(train(&store));
            assert!(refused.contains("delta.0") && refused.contains("grow_deltas"), "{refused}");
            grow_deltas(&mut store, &cfg, spec).unwrap();
        }
        let before = tiny::bits(&store);
        let outcome = train(&store).unwrap();
        assert!(outcome.updated_share > 0.0 && outcome.updated_share <= 1.0, "{}: {outcome:?}", spec.name);
        let after = tiny::bits(&store);
        let moved: Vec<&str> =
            before.iter().zip(&after).filter(|(a, b)| a != b).map(|((name, _), _)| name.as_str()).collect();
        assert!(moved.iter().any(|name| is_expert(name)), "{}: {moved:?}", spec.name);
        let replicas = spec.experts_are == ExpertsAre::Replicate;
        for name in &moved {
            let expert = is_expert(name) && tinyonn::checkpoint::is_delta(name) == replicas;
            let router = routers && name.contains("_router.");
            assert!(expert || router || name.ends_with("balance_bias"), "{}: {name}", spec.name);
        }
    }
    // Nothing of the dense model but its MLPs may ever be among them.
    assert!(expected_tensors(&cfg).keys().filter(|name| is_expert(name)).count() == 6);
}
