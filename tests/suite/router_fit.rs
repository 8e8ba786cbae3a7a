//! Phase 1: projections, Gaussians in closed form, routers fitted to planted tasks and to rows, again once they route, and what their
//! accuracy means.

mod class_sums;
mod discriminants;
mod gaussians;
mod methods;
mod projection;
mod refit;
mod rows;

use candle_core::{D, Device, Tensor};
use rand::Rng;
use rstest::rstest;
use tinyonn::checkpoint::ParamStore;
use tinyonn::imaging::Labels;
use tinyonn::imaging::inputs::Samples;
use tinyonn::moe::{MoeLayer, Scores, Selection, Variant, select};
use tinyonn::random;
use tinyonn::train::{FitBy, Projection, RouterFitConfig, RouterFitter, RouterTarget, router_accuracy};

use crate::tiny;

mod declared {
    use tinyonn::moe::moe;

    #[moe(groups = 3, experts = 4, router = gaussian(dim = 8, covariance = shared_full))]
    pub(crate) struct FullCovariance;
}

pub(crate) const TASKS: usize = 4;
const HIDDEN: usize = 16;
const REFINED: RouterFitConfig = RouterFitConfig {
    projection: Projection::Lda,
    fit: FitBy::GdaSgd,
    steps: 60,
    batch: 64,
    rate: 5e-3,
    refit_rounds: 0,
    target: RouterTarget::Sqrt,
};
const CLOSED: RouterFitConfig = RouterFitConfig { steps: 0, ..REFINED };

/// Standard-normal-like: the sum of twelve uniforms.
pub(crate) fn normal(rng: &mut random::Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>() - 0.5).sum()
}

/// Two layers of rows: task means `apart` times standard normal, unit noise; ten rows in a row are a document.
pub(crate) fn planted(purpose: &str, rows: usize, apart: f64) -> Vec<Samples> {
    let layer = |layer: usize| {
        let mut means = random::stream(7, &format!("tests/means/{layer}"));
        let means: Vec<Vec<f64>> =
            (0..TASKS).map(|_| (0..HIDDEN).map(|_| apart * normal(&mut means)).collect()).collect();
        let mut rng = random::stream(7, &format!("tests/{purpose}/{layer}"));
        let mut samples = Samples::default();
        for row in 0..rows {
            let task = row % TASKS;
            samples.values.extend(means[task].iter().map(|mean| (mean + normal(&mut rng)) as f32));
            samples.tasks.push(task as u32);
            samples.documents.push(row as u32 / 10);
        }
        samples
    };
    (0..2).map(layer).collect()
}

fn upcycled(name: &str) -> (&'static Variant, ParamStore) {
    let cfg = tiny::config(40);
    tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 0))
}

/// Hands the layers' modules to `f`.
fn with_modules<R>(variant: &'static Variant, store: &ParamStore, f: impl FnOnce(&[&MoeLayer]) -> R) -> R {
    let model = tiny::sparse(&tiny::config(40), variant, store);
    let modules: Vec<&MoeLayer> = (0..2).map(|layer| model.moe(layer)).collect();
    f(&modules)
}

#[rstest]
#[case("Moe2x4", CLOSED)]
#[case("Moe2x4", REFINED)]
#[case("Moe7x3", CLOSED)]
#[case("Moe7x3", REFINED)]
#[case("MoeSequence", CLOSED)]
#[case("Linear3x4", RouterFitConfig { fit: FitBy::Discriminant, ..CLOSED })]
#[case("FullCovariance", CLOSED)]
#[case("FullCovariance", REFINED)]
fn planted_tasks_are_told_apart_on_rows_never_seen(#[case] name: &str, #[case] config: RouterFitConfig) {
    let (variant, store) = upcycled(name);
    let (train, validation, test) =
        (planted("train", 800, 2.0), planted("validation", 200, 2.0), planted("test", 800, 2.0));
    let labels = Labels::random(TASKS, 2, &variant.spec, 3);
    let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
    fitter.fit((&store, &tiny::config(40), variant), &labels, &config, 0).unwrap();
    let accuracy = with_modules(variant, &store, |modules| router_accuracy(modules, &test, &labels).unwrap());
    for level in 0..2 {
        assert!(accuracy.mean(level) > 0.99, "{name}, level {level}: {}", accuracy.mean(level));
    }
}

/// By level, log p of every node.
fn log_probs(module: &MoeLayer, x_td: &Tensor) -> Vec<Tensor> {
    Scores::new(module, x_td).unwrap().log_probs().unwrap()
}

fn taken(module: &MoeLayer, x_td: &Tensor) -> Vec<Vec<f32>> {
    select(module.spec(), &log_probs(module, x_td), Selection::default()).unwrap().to_vec2().unwrap()
}

/// The cross-entropy of one level's routers of one layer against the labels' shares, from the definition.
fn loss(module: &MoeLayer, samples: &Samples, labels: &Labels, layer: usize, level: usize) -> f64 {
    let log_p = log_probs(module, &samples.tensor(&Device::Cpu).unwrap()).swap_remove(level);
    let choices = module.spec().levels[level].routers[0].choices;
    let log_p = log_p.to_vec2::<f32>().unwrap();
    let of_row = |(log_p, task): (&Vec<f32>, &u32)| -> f64 {
        let nodes = labels.nodes(*task as usize, layer, level, module.spec());
        let shares = nodes.iter().map(|node| {
            let siblings = nodes.iter().filter(|other| **other / choices == node / choices).count();
            -f64::from(log_p[*node]) / siblings as f64
        });
        shares.sum()
    };
    log_p.iter().zip(&samples.tasks).map(of_row).sum::<f64>() / samples.tasks.len() as f64
}

/// Tasks that overlap leave something to refine; even a rate that ruins the routers must not be kept.
#[rstest]
#[case(5e-3, true)]
#[case(10.0, false)]
fn refinement_never_worsens_the_validation_loss(#[case] rate: f64, #[case] gains: bool) {
    let (train, validation) = (planted("train", 1600, 0.4), planted("validation", 400, 0.4));
    let losses = |config: RouterFitConfig| -> Vec<f64> {
        let (variant, store) = upcycled("Moe7x3");
        let labels = Labels::random(TASKS, 2, &variant.spec, 3);
        let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
        fitter.fit((&store, &tiny::config(40), variant), &labels, &config, 0).unwrap();
        with_modules(variant, &store, |modules| {
            let pairs = (0..4).map(|at| (at / 2, at % 2));
            pairs.map(|(layer, level)| loss(modules[layer], &validation[layer], &labels, layer, level)).collect()
        })
    };
    let (closed, refined) = (losses(CLOSED), losses(RouterFitConfig { rate, ..REFINED }));
    // The library's losses are means in f32, these in f64.
    assert!(closed.iter().zip(&refined).all(|(closed, refined)| *refined <= closed + 1e-5), "{closed:?} {refined:?}");
    assert_eq!(
        closed.iter().zip(&refined).any(|(closed, refined)| *refined < closed - 1e-3),
        gains,
        "{closed:?} {refined:?}"
    );
}

#[rstest]
#[case::fewer_layers(|inputs: &mut Vec<Samples>, _: &mut Labels| drop(inputs.pop()), "`inputs`")]
#[case::no_layers(|inputs: &mut Vec<Samples>, _: &mut Labels| inputs.clear(), "`inputs`")]
#[case::more_tasks(|inputs: &mut Vec<Samples>, _: &mut Labels| inputs[1].tasks[3] = TASKS as u32, "`inputs`")]
#[case::labels_of_other_layers(|_: &mut Vec<Samples>, labels: &mut Labels| drop(labels.paths.experts[0].pop()), "`labels`")]
#[case::labels_of_other_experts(|_: &mut Vec<Samples>, labels: &mut Labels| labels.paths.experts[1][0].push(8), "expert 8 of 8")]
fn what_is_of_another_model_is_neither_fitted_nor_measured(
    #[case] spoil: fn(&mut Vec<Samples>, &mut Labels),
    #[case] words: &str,
) {
    let (variant, store) = upcycled("Moe2x4");
    let (train, mut labels) = (planted("train", 40, 2.0), Labels::random(TASKS, 2, &variant.spec, 3));
    let mut inputs = train.clone();
    spoil(&mut inputs, &mut labels);
    let refused = with_modules(variant, &store, |modules| router_accuracy(modules, &inputs, &labels).unwrap_err());
    assert!(refused.to_string().contains(words), "{refused}");
    let fitted = RouterFitter::new(&train, &inputs, TASKS, 4)
        .and_then(|mut fitter| fitter.fit((&store, &tiny::config(40), variant), &labels, &CLOSED, 0));
    let refused = fitted.unwrap_err().to_string();
    assert!(refused.contains(words), "{refused}");
}

#[test]
fn a_projection_to_nothing_is_refused() {
    let refused = RouterFitter::new(&planted("a", 9, 1.0), &planted("b", 9, 1.0), TASKS, 0).map(drop).unwrap_err();
    assert!(refused.to_string().starts_with("`dim`"), "{refused}");
}

#[test]
fn fitting_moves_routers_alone_and_depends_on_the_seed_alone() {
    let (train, validation) = (planted("train", 200, 0.4), planted("validation", 100, 0.4));
    let fitted = |seed: u64| {
        let (variant, store) = upcycled("Moe2x4");
        let before = tiny::bits(&store);
        let labels = Labels::random(TASKS, 2, &variant.spec, 1);
        let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
        fitter.fit((&store, &tiny::config(40), variant), &labels, &REFINED, seed).unwrap();
        (before, tiny::bits(&store))
    };
    let (before, after) = fitted(0);
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let (of_router, changed) = (name.contains("_router."), before != after);
        assert!(of_router || !changed, "{name}");
        // The scale of the closed form is the width of z, equal shares make equal priors: both may be what new routers have.
        assert!(!of_router || changed || name.ends_with("scale") || name.ends_with("log_prior"), "{name}");
    }
    assert_eq!(after, fitted(0).1);
    assert_ne!(after, fitted(1).1);
}

/// A choice that no task takes is not taken by any input, however far out, while its router has one that is.
#[rstest]
#[case(CLOSED)]
#[case(REFINED)]
fn choices_without_labels_are_never_taken(#[case] config: RouterFitConfig) {
    let (train, validation) = (planted("train", 400, 1.0), planted("validation", 100, 1.0));
    let (variant, store) = upcycled("Moe7x3");
    // All tasks stay in groups 1, 3 and 4 and take two of each one's three experts.
    let experts = [[3, 4, 9, 10, 12, 13], [3, 4, 9, 10, 12, 14], [3, 4, 9, 11, 12, 13], [3, 4, 9, 11, 12, 14]];
    let labels = Labels {
        paths: tinyonn::decoder::PathTable { experts: experts.iter().map(|path| vec![path.to_vec(); 2]).collect() },
    };
    let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
    fitter.fit((&store, &tiny::config(40), variant), &labels, &config, 0).unwrap();
    for factor in [1.0, 1e2, 1e4] {
        let wild = (planted("wild", 100, 1.0)[0].tensor(&Device::Cpu).unwrap() * factor).unwrap();
        with_modules(variant, &store, |modules| {
            for module in modules {
                let levels = log_probs(module, &wild);
                let gates = taken(module, &wild);
                for (row, gates) in gates.iter().enumerate() {
                    let taken: Vec<usize> = (0..21).filter(|n| gates[*n] > 0.0).collect();
                    assert!(taken.iter().all(|n| [1, 3, 4].contains(&(n / 3))), "×{factor}, row {row}: {taken:?}");
                    assert!(taken.contains(&3) && taken.contains(&4), "×{factor}, row {row}: {taken:?}");
                }
                // A router that no task passes by is uniform.
                let of_parent = levels[1].get(0).unwrap().narrow(0, 0, 3).unwrap().to_vec1::<f32>().unwrap();
                if config.steps == 0 {
                    assert!(of_parent.iter().all(|p| (p + 3f32.ln()).abs() < 1e-4), "{of_parent:?}");
                }
                let sums =
                    levels[0].exp().unwrap().sum(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-3));
            }
        });
    }
}

#[test]
fn inputs_and_labels_must_be_of_the_same_tasks_and_layers() {
    let (train, validation) = (planted("train", 40, 1.0), planted("validation", 40, 1.0));
    let problem = |train: &[Samples], validation: &[Samples], tasks: usize| {
        RouterFitter::new(train, validation, tasks, 8).map(drop).unwrap_err().to_string()
    };
    assert!(problem(&train, &validation[..1], TASKS).starts_with("`inputs`"));
    assert!(problem(&train, &validation, TASKS - 1).starts_with("`inputs`"));
    assert!(problem(&[Samples::default()], &[Samples::default()], TASKS).contains("none were collected"));
    let (variant, store) = upcycled("Moe2x4");
    let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
    for (tasks, layers) in [(TASKS - 1, 2), (TASKS, 1)] {
        let labels = Labels::random(tasks, layers, &variant.spec, 0);
        let error = fitter.fit((&store, &tiny::config(40), variant), &labels, &CLOSED, 0).unwrap_err().to_string();
        assert!(error.starts_with("`labels`"), "{error}");
    }
}

/// Every figure of [`router_accuracy`] from the predicted paths, counted by hand.
#[test]
fn accuracies_are_counts_of_paths() {
    let (variant, store) = upcycled("Moe7x3");
    let mut labels = Labels::random(TASKS, 2, &variant.spec, 5);
    let mut inputs = planted("train", 90, 1.0);
    // Task 2 has the most rows; on layer 1 the others share a path, which is then the commoner one.
    inputs.iter_mut().for_each(|samples| (0..9).for_each(|row| samples.tasks[4 * row] = 2));
    (1..TASKS)
        .filter(|task| *task != 2)
        .for_each(|task| labels.paths.experts[task][1] = labels.paths.experts[0][1].clone());
    let commonest = [2, 0];
    let found = with_modules(variant, &store, |modules| router_accuracy(modules, &inputs, &labels).unwrap());
    let (mut confusion, mut load) = (vec![vec![0.0; TASKS]; TASKS], vec![vec![vec![0.0; 21]; TASKS]; 2]);
    with_modules(variant, &store, |modules| {
        for (layer, (module, samples)) in modules.iter().zip(&inputs).enumerate() {
            let x: Tensor = samples.tensor(&Device::Cpu).unwrap();
            let gates = taken(module, &x);
            let mut sums = [[0.0; 2]; 2];
            for (gates, task) in gates.iter().zip(&samples.tasks) {
                let task = *task as usize;
                let rows = samples.tasks.iter().filter(|other| **other as usize == task).count() as f64;
                let path: Vec<usize> = (0..21).filter(|n| gates[*n] == 1.0).collect();
                let label =
                    |task: usize| labels.paths.experts[task][layer].iter().map(|n| *n as usize).collect::<Vec<_>>();
                let shared = |a: &[usize], b: &[usize]| a.iter().filter(|n| b.contains(n)).count();
                let groups = |path: &[usize]| {
                    let mut groups: Vec<usize> = path.iter().map(|n| n / 3).collect();
                    groups.dedup();
                    groups
                };
                sums[0][0] += shared(&groups(&path), &groups(&label(task))) as f64 / 3.0;
                sums[0][1] += shared(&groups(&label(commonest[layer])), &groups(&label(task))) as f64 / 3.0;
                sums[1][0] += shared(&path, &label(task)) as f64 / 6.0;
                sums[1][1] += shared(&label(commonest[layer]), &label(task)) as f64 / 6.0;
                let mut decoded = 0;
                for other in 1..TASKS {
                    if shared(&path, &label(other)) > shared(&path, &label(decoded)) {
                        decoded = other;
                    }
                }
                confusion[task][decoded] += 0.5 / rows;
                path.iter().for_each(|n| load[layer][task][*n] += 1.0 / rows);
            }
            for level in 0..2 {
                approx::assert_relative_eq!(
                    found.layers[layer].accuracy[level],
                    sums[level][0] / 90.0,
                    epsilon = 1e-12
                );
                approx::assert_relative_eq!(found.layers[layer].chance[level], sums[level][1] / 90.0, epsilon = 1e-12);
            }
        }
    });
    for task in 0..TASKS {
        let of_layers = (0..2).flat_map(|layer| load[layer][task].iter().zip(&found.load[layer][task]));
        let pairs = confusion[task].iter().zip(&found.confusion[task]).chain(of_layers);
        pairs.for_each(|(expected, found)| approx::assert_relative_eq!(expected, found, epsilon = 1e-12));
        approx::assert_relative_eq!(found.confusion[task].iter().sum::<f64>(), 1.0, epsilon = 1e-12);
        for layer in &found.load {
            approx::assert_relative_eq!(layer[task].iter().sum::<f64>(), 6.0, epsilon = 1e-12);
        }
    }
}
