//! Every projection with every way to fit, what each of them leaves alone, and when gradients stop.

use rstest::rstest;
use tinyonn::checkpoint::ParamStore;
use tinyonn::imaging::Labels;
use tinyonn::random;
use tinyonn::train::{FitBy, Projection, RouterFitConfig, RouterFitter, router_accuracy};

use super::{CLOSED, REFINED, TASKS, loss, planted, upcycled, with_modules};
use crate::models::message;
use crate::tiny;

const GRADIENT: RouterFitConfig = RouterFitConfig { fit: FitBy::Sgd, steps: 300, rate: 2e-2, ..REFINED };

fn labels(variant: &'static tinyonn::moe::Variant) -> Labels {
    Labels::random(TASKS, 2, &variant.spec, 3)
}

fn fitted(name: &str, config: &RouterFitConfig, seed: u64) -> tinyonn::Result<ParamStore> {
    let (variant, store) = upcycled(name);
    let (train, validation) = (planted("train", 800, 2.0), planted("validation", 200, 2.0));
    let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64)?;
    fitter.fit((&store, &tiny::config(40), variant), &labels(variant), config, seed)?;
    Ok(store)
}

#[rstest]
fn every_projection_finds_planted_tasks_however_it_is_fitted(
    #[values(Projection::Lda, Projection::Pca, Projection::Random, Projection::Identity)] projection: Projection,
    #[values(FitBy::Gda, FitBy::Sgd, FitBy::GdaSgd)] fit: FitBy,
) {
    let config = RouterFitConfig { projection, fit, ..GRADIENT };
    let (variant, store) = (upcycled("Moe2x4").0, fitted("Moe2x4", &config, 0).unwrap());
    let accuracy = with_modules(variant, &store, |modules| {
        router_accuracy(modules, &planted("test", 800, 2.0), &labels(variant)).unwrap()
    });
    for level in 0..2 {
        // In 16 dimensions the tasks' means are about 11 deviations apart, and no projection here loses a dimension; labels share
        // choices among tasks, so that a choice is no longer one Gaussian.
        assert!(accuracy.mean(level) > 0.95, "level {level}: {}", accuracy.mean(level));
    }
}

/// The projection is what was asked for, and neither another way to fit nor more rounds find another.
#[rstest]
#[case(Projection::Identity)]
#[case(Projection::Random)]
fn routers_look_where_they_are_told(#[case] projection: Projection) {
    let [closed, gradient] = [FitBy::Gda, FitBy::Sgd].map(|fit| {
        let store = fitted("Moe2x4", &RouterFitConfig { projection, fit, steps: 1, rate: 1e-30, ..CLOSED }, 4).unwrap();
        let p = store.get("model.layers.1.mlp.expert_router.projection").unwrap().as_detached_tensor();
        (p.to_vec2::<f32>().unwrap(), store)
    });
    assert_eq!(closed.0, gradient.0);
    let samples = &planted("train", 800, 2.0)[1];
    assert_eq!(closed.0.concat(), projection.find(samples, 64, (4, 1)).unwrap().0);
    // The gradient starts from what the store held, here drawn at random; the closed form replaces it.
    let mean = |store: &ParamStore| {
        let of = store.get("model.layers.1.mlp.expert_router.mean").unwrap().as_detached_tensor();
        of.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (_, new) = upcycled("Moe2x4");
    assert_eq!(mean(&gradient.1), mean(&new));
    assert!(mean(&closed.1) != mean(&new));
}

#[test]
fn gradients_alone_reduce_the_loss_and_the_closed_form_takes_none() {
    let validation = planted("validation", 200, 2.0);
    let losses = |store: &ParamStore| -> Vec<f64> {
        let variant = upcycled("Moe7x3").0;
        with_modules(variant, store, |modules| {
            let pairs = (0..4).map(|at| (at / 2, at % 2));
            let of = |(layer, level)| loss(modules[layer], &validation[layer], &labels(variant), layer, level);
            pairs.map(of).collect()
        })
    };
    let before = losses(&upcycled("Moe7x3").1);
    let after = losses(&fitted("Moe7x3", &GRADIENT, 0).unwrap());
    // New routers know nothing: three groups of seven cost ln 7 and more; a few hundred steps take most of it.
    assert!(before.iter().zip(&after).all(|(before, after)| *after < 0.8 * before), "{before:?} {after:?}");
    let closed =
        |steps| tiny::bits(&fitted("Moe7x3", &RouterFitConfig { fit: FitBy::Gda, steps, ..REFINED }, 0).unwrap());
    assert_eq!(closed(0), closed(1000));
    // gda+sgd without steps is the closed form.
    assert_eq!(closed(0), tiny::bits(&fitted("Moe7x3", &CLOSED, 0).unwrap()));
}

#[rstest]
#[case("Moe2x4", RouterFitConfig { fit: FitBy::Sgd, ..CLOSED }, &["`router.steps`", "sgd is steps alone", "use 1 or more"])]
#[case("Linear3x4", RouterFitConfig { fit: FitBy::Gda, ..REFINED }, &["`router.fit`", "group_router", "no closed form", "gda+sgd"])]
#[case("Moe2x4", RouterFitConfig { fit: FitBy::Ridge, ..CLOSED }, &["`router.fit`", "group_router", "no linear router"])]
#[case("Moe2x4", RouterFitConfig { fit: FitBy::Discriminant, ..CLOSED }, &["`router.fit`", "group_router", "no linear router"])]
#[case("Linear3x4", CLOSED, &["`router.steps`", "group_router", "no closed form", "use 1 or more"])]
fn a_fit_by_nothing_is_refused_before_anything_moves(
    #[case] name: &str,
    #[case] config: RouterFitConfig,
    #[case] words: &[&str],
) {
    let (variant, store) = upcycled(name);
    let before = tiny::bits(&store);
    let (train, validation) = (planted("train", 80, 2.0), planted("validation", 40, 2.0));
    let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
    let refused = message(fitter.fit((&store, &tiny::config(40), variant), &labels(variant), &config, 0));
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    assert_eq!(tiny::bits(&store), before);
}

/// A rate that ruins the routers gains nothing: refinement ends by itself (u64::MAX steps would take for ever) and keeps the closed form.
#[test]
fn refinement_stops_where_validation_text_gains_nothing() {
    let (train, validation) = (planted("train", 200, 0.4), planted("validation", 100, 0.4));
    let fitted = |config: &RouterFitConfig| {
        let (variant, store) = upcycled("Moe2x4");
        let mut fitter = RouterFitter::new(&train, &validation, TASKS, 64).unwrap();
        fitter.fit((&store, &tiny::config(40), variant), &labels(variant), config, 0).unwrap();
        tiny::bits(&store)
    };
    let endless = fitted(&RouterFitConfig { steps: u64::MAX, rate: 3.0, ..REFINED });
    let closed = fitted(&CLOSED);
    for ((name, found), (_, closed)) in endless.iter().zip(&closed) {
        // The second calibration may find a better scale between the points that the first one tried.
        assert!(name.ends_with("scale") || found == closed, "{name}");
    }
}

/// As TOML says it; unknown words are refused.
#[test]
fn configurations_name_projections_and_ways_to_fit() {
    let of = |text: &str| serde_json::from_str::<RouterFitConfig>(text);
    assert_eq!(of("{}").unwrap(), RouterFitConfig::default());
    let names = [
        ("gda", FitBy::Gda),
        ("sgd", FitBy::Sgd),
        ("gda+sgd", FitBy::GdaSgd),
        ("ridge", FitBy::Ridge),
        ("discriminant", FitBy::Discriminant),
    ];
    for (name, fit) in names {
        assert_eq!(of(&format!(r#"{{"fit": "{name}"}}"#)).unwrap().fit, fit);
    }
    let names = ["lda", "pca", "random", "identity"];
    let kinds = [Projection::Lda, Projection::Pca, Projection::Random, Projection::Identity];
    for (name, projection) in names.into_iter().zip(kinds) {
        assert_eq!(of(&format!(r#"{{"projection": "{name}"}}"#)).unwrap().projection, projection);
    }
    for text in [r#"{"fit": "adam"}"#, r#"{"projection": "umap"}"#, r#"{"rounds": 1}"#] {
        of(text).unwrap_err();
    }
}

/// Orthonormal rows; of `pca` those along which rows vary most; of `identity` the first coordinates.
#[rstest]
fn projections_have_orthonormal_rows(
    #[values(Projection::Pca, Projection::Random, Projection::Identity)] projection: Projection,
    #[values(1, 5, 16, 64)] dim: usize,
) {
    let samples = &planted("train", 400, 1.0)[0];
    let (p, r) = projection.find(samples, dim, (0, 0)).unwrap();
    assert_eq!((r, p.len()), (dim.min(16), dim.min(16) * 16));
    let row = |at: usize| p[at * 16..][..16].iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    for a in 0..r {
        for b in 0..=a {
            let dot: f64 = row(a).iter().zip(row(b)).map(|(x, y)| x * y).sum();
            // 16 products of numbers rounded to f32.
            approx::assert_abs_diff_eq!(dot, f64::from(u8::from(a == b)), epsilon = 1e-6);
        }
    }
    let along = |row: &[f64]| -> f64 {
        let z = samples.values.chunks_exact(16).map(|x| row.iter().zip(x).map(|(p, x)| p * f64::from(*x)).sum::<f64>());
        let z: Vec<f64> = z.collect();
        let mean = z.iter().sum::<f64>() / z.len() as f64;
        z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / z.len() as f64
    };
    match projection {
        Projection::Pca => {
            let found: Vec<f64> = (0..r).map(|at| along(&row(at))).collect();
            assert!(found.windows(2).all(|pair| pair[0] >= pair[1] * (1.0 - 1e-5)), "{found:?}");
            // No direction varies more than the first; and behind it none that is orthogonal to it more than the second.
            for seed in 0..20 {
                let mut rng = random::stream(seed, "tests/directions");
                let mut other: Vec<f64> = (0..16).map(|_| super::normal(&mut rng)).collect();
                for (before, found) in found.iter().enumerate() {
                    let norm = other.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let unit: Vec<f64> = other.iter().map(|x| x / norm).collect();
                    if before < 15 {
                        assert!(along(&unit) <= found * (1.0 + 1e-4), "{before}");
                    }
                    let first = row(before);
                    let dot: f64 = first.iter().zip(&other).map(|(x, y)| x * y).sum();
                    other.iter_mut().zip(&first).for_each(|(x, p)| *x -= dot * p);
                }
            }
        }
        Projection::Random => {
            let again = |at| projection.find(samples, dim, at).unwrap().0;
            assert_eq!(again((0, 0)), p);
            assert!(again((1, 0)) != p && again((0, 1)) != p);
        }
        _ => (0..r).for_each(|at| assert_eq!(row(at)[at], 1.0)),
    }
    let nothing = projection.find(&tinyonn::imaging::inputs::Samples::default(), dim, (0, 0));
    assert!(message(nothing).contains("none were collected"));
}
