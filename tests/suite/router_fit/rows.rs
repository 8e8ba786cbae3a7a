//! Labels by row: the case of tasks, a class split in two, paths that tasks do not decide; and intervals over documents.

use rstest::rstest;
use tinyonn::imaging::inputs::Samples;
use tinyonn::imaging::{Labels, RowLabels};
use tinyonn::train::{RouterFitConfig, RouterFitter, router_accuracy, row_accuracy};

use super::{CLOSED, REFINED, TASKS, planted, upcycled, with_modules};
use crate::models::message;
use crate::tiny;

fn fitter<'a>(train: &'a [Samples], validation: &'a [Samples]) -> RouterFitter<'a> {
    RouterFitter::new(train, validation, TASKS, 64).unwrap()
}

fn of_tasks(labels: &Labels, samples: &[Samples]) -> Vec<RowLabels> {
    let layers = samples.iter().enumerate();
    layers.map(|(layer, samples)| RowLabels::of_tasks(labels, layer, &samples.tasks)).collect()
}

/// Two classes of one path are one class of it: names of classes mean nothing.
#[rstest]
#[case(CLOSED)]
#[case(REFINED)]
fn a_class_split_in_two_is_fitted_as_one(#[case] config: RouterFitConfig) {
    let (train, validation) = (planted("train", 400, 1.0), planted("validation", 3000, 1.0));
    let split = |mut labels: RowLabels| {
        labels.paths.extend(labels.paths.clone());
        labels.class_of_row.iter_mut().step_by(3).for_each(|class| *class += TASKS as u32);
        labels
    };
    let fitted = |splits: bool| {
        let (variant, store) = upcycled("Moe7x3");
        let labels = Labels::random(TASKS, 2, &variant.spec, 3);
        let mut fitter = fitter(&train, &validation);
        let model = (&store, &tiny::config(40), variant);
        if splits {
            let rows = [&train, &validation].map(|of| of_tasks(&labels, of).into_iter().map(split).collect::<Vec<_>>());
            fitter.fit_rows(model, [&rows[0], &rows[1]], &config, 0).unwrap();
        } else {
            fitter.fit(model, &labels, &config, 0).unwrap();
        }
        store.iter().map(|(_, var)| var.as_detached_tensor()).collect::<Vec<_>>()
    };
    for (a, b) in fitted(true).iter().zip(fitted(false)) {
        let apart =
            (a.to_dtype(candle_core::DType::F64).unwrap() - b.to_dtype(candle_core::DType::F64).unwrap()).unwrap();
        let apart = apart.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
        // f64 sums in another order, rounded to f32; steps in f32 carry such a difference along.
        assert!(apart < if config.steps == 0 { 1e-5 } else { 1e-3 }, "{apart}");
    }
}

/// The signs of two dimensions say which path, and no task does: the first which group, both which experts.
fn by_sign(samples: &Samples) -> RowLabels {
    let side = |row: &[f32]| 2 * u32::from(row[0] > 0.0) + u32::from(row[1] > 0.0);
    RowLabels::from_paths(samples.values.chunks_exact(16).map(|row| vec![2 * side(row), 2 * side(row) + 1]))
}

#[test]
fn rows_of_one_task_may_take_different_paths() {
    // Tasks of no difference: what is found is found by row.
    let [train, validation, test] = ["train", "validation", "test"].map(|purpose| planted(purpose, 2000, 0.0));
    let (variant, store) = upcycled("Moe2x4");
    let rows = |samples: &[Samples]| samples.iter().map(by_sign).collect::<Vec<_>>();
    let config = RouterFitConfig { steps: 400, rate: 2e-2, ..REFINED };
    let model = (&store, &tiny::config(40), variant);
    fitter(&train, &validation).fit_rows(model, [&rows(&train), &rows(&validation)], &config, 0).unwrap();
    let layers = with_modules(variant, &store, |modules| row_accuracy(modules, &test, &rows(&test)).unwrap());
    for layer in &layers {
        // The commonest path is right about a group in half of the rows, about experts in a quarter. The projection knows nothing of the paths.
        assert!(layer.accuracy.iter().all(|found| *found > 0.85), "{layer:?}");
        assert!(layer.chance[0] < 0.6 && layer.chance[1] < 0.35, "{layer:?}");
    }
}

/// A path that no training row takes has no density; validation rows that ask for it must not decide the scale.
#[test]
fn paths_unknown_to_the_training_rows_calibrate_nothing() {
    let (train, validation) = (planted("train", 400, 0.4), planted("validation", 200, 0.4));
    let scales = |unknown: usize| {
        let (variant, store) = upcycled("Moe2x4");
        let paths = [vec![0, 1], vec![1, 2], vec![4, 5], vec![5, 6]];
        let labels = Labels {
            paths: tinyonn::decoder::PathTable { experts: paths.into_iter().map(|path| vec![path; 2]).collect() },
        };
        let mut rows = [of_tasks(&labels, &train), of_tasks(&labels, &validation)];
        // Of the first path's rows some ask for an expert that nobody knows, beside the one that they asked for.
        for layer in &mut rows[1] {
            layer.paths.push(vec![0, 1, 3]);
            let first = layer.class_of_row.iter_mut().filter(|class| **class == 0);
            first.take(unknown).for_each(|class| *class = 4);
        }
        let [train_rows, held_rows] = &rows;
        let model = (&store, &tiny::config(40), variant);
        fitter(&train, &validation).fit_rows(model, [train_rows, held_rows], &CLOSED, 0).unwrap();
        store
            .iter()
            .filter(|(name, _)| name.ends_with("_router.scale"))
            .map(|(_, var)| var.to_scalar::<f32>().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(scales(0), scales(20));
}

/// The accuracy by row is the accuracy by task where labels are the tasks' and has an interval.
#[test]
fn intervals_are_bootstrapped_over_documents() {
    let (variant, store) = upcycled("Moe7x3");
    let labels = Labels::random(TASKS, 2, &variant.spec, 5);
    let mut inputs = planted("train", 90, 1.0);
    let measured = |inputs: &[Samples]| {
        with_modules(variant, &store, |modules| {
            let found = router_accuracy(modules, inputs, &labels).unwrap();
            assert_eq!(row_accuracy(modules, inputs, &of_tasks(&labels, inputs)).unwrap(), found.layers);
            found
        })
    };
    let found = measured(&inputs);
    for level in 0..2 {
        // The mean over layers of equal size is the mean over all rows: sums of 180 in another order.
        approx::assert_relative_eq!(found.intervals[level].mean, found.mean(level), epsilon = 1e-12);
        for layer in &found.layers {
            let interval = layer.intervals[level];
            approx::assert_relative_eq!(interval.mean, layer.accuracy[level], epsilon = 1e-12);
            assert!(interval.low < interval.mean && interval.mean < interval.high, "{interval:?}");
        }
    }
    // A document of its own for each row: narrower or wider, not the same. All rows one document: nothing to draw.
    inputs.iter_mut().for_each(|samples| samples.documents = (0..90).collect());
    assert!(measured(&inputs).intervals != found.intervals);
    inputs.iter_mut().for_each(|samples| samples.documents = vec![3; 90]);
    for interval in measured(&inputs).intervals {
        assert_eq!((interval.low, interval.high), (interval.mean, interval.mean));
    }
    inputs[1].documents.pop();
    let refused = with_modules(variant, &store, |modules| message(router_accuracy(modules, &inputs, &labels)));
    assert!(refused.starts_with("`inputs`") && refused.contains("documents"), "{refused}");
}

#[rstest]
#[case::fewer_rows(|labels: &mut Vec<RowLabels>| labels[1].class_of_row.truncate(39), "39 rows are labelled")]
#[case::another_class(|labels: &mut Vec<RowLabels>| labels[0].class_of_row[7] = 4, "class 4 of 4")]
#[case::another_expert(|labels: &mut Vec<RowLabels>| labels[0].paths[1].push(8), "expert 8 of 8")]
#[case::fewer_layers(|labels: &mut Vec<RowLabels>| drop(labels.pop()), "1 layers")]
fn labels_of_other_rows_are_refused(#[case] spoil: fn(&mut Vec<RowLabels>), #[case] words: &str) {
    let (variant, store) = upcycled("Moe2x4");
    let samples = planted("train", 40, 1.0);
    let good = of_tasks(&Labels::random(TASKS, 2, &variant.spec, 3), &samples);
    let mut bad = good.clone();
    spoil(&mut bad);
    let mut fitter = fitter(&samples, &samples);
    for pair in [[&good, &bad], [&bad, &good]] {
        let refused =
            message(fitter.fit_rows((&store, &tiny::config(40), variant), pair.map(Vec::as_slice), &CLOSED, 0));
        assert!(refused.starts_with("`labels`") && refused.contains(words), "{refused}");
    }
}
