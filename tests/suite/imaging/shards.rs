//! Scans of shards of a text add up to the scan of the whole; scans that are not of one kind do not add up at all.

use approx::assert_relative_eq;
use candle_core::Device;
use rstest::rstest;
use tinyonn::imaging::{Log1p, NeuronScan, ScanRequest, Shard, Units, scan_with};
use tinyonn::ops::{GradSite, Log1pScale};

use super::{VOCAB, options};
use crate::tiny;

pub(super) fn units(count: usize) -> Units {
    Units { neuron_expert: vec![(0..26).map(|i| (i % count) as u32).collect(); 2], count }
}

fn requested(request: &ScanRequest) -> tinyonn::Result<NeuronScan> {
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 5));
    scan_with(&model, &tiny::tokens(5, &[65, 90, 12], VOCAB), request, &Device::Cpu, None)
}

/// Everything that can be measured; seven batches of 8 × 2 tokens and one of 11, of three tasks.
fn everything(shard: Shard) -> ScanRequest {
    let (units, log1p) = (Some(units(4)), Log1p::Measured);
    ScanRequest { shard, units, log1p, grad_site: GradSite::Input, ..ScanRequest::new(options(8, 2)) }
}

/// A sum of mixed signs is exact relative to its terms, not to itself.
fn assert_same(found: &[f64], expected: &[f64]) {
    let largest = expected.iter().map(|x| x.abs()).fold(0.0, f64::max);
    for (found, expected) in found.iter().zip(expected) {
        assert_relative_eq!(found, expected, max_relative = 1e-12, epsilon = 1e-12 * largest);
    }
}

#[rstest]
#[case(1)]
#[case(2)]
#[case(3)]
#[case(5)]
// More shards than batches: some read nothing.
#[case(20)]
fn shards_are_the_whole(#[case] of: usize) {
    let whole = requested(&everything(Shard::WHOLE)).unwrap();
    let parts = (0..of).map(|index| requested(&everything(Shard { index, of })).unwrap()).collect::<Vec<_>>();
    let tokens: Vec<u64> = (0..3).map(|task| parts.iter().map(|part| part.tokens[task]).sum()).collect();
    assert_eq!(tokens, [64, 89, 11]);
    let mut sum = parts[0].clone();
    parts[1..].iter().for_each(|part| sum.merge(part).unwrap());
    assert_eq!((&sum.tasks, &sum.tokens), (&whole.tasks, &whole.tokens));
    assert_same(&sum.loss, &whole.loss);
    for (found, expected) in sum.sums.iter().flatten().zip(whole.sums.iter().flatten()) {
        found.each().into_iter().zip(expected.each()).for_each(|(found, expected)| assert_same(found, expected));
    }
    let unit_sums = |scan: &NeuronScan| {
        let log1p = scan.log1p.clone().unwrap();
        [scan.experts.clone().unwrap().sums, log1p.neurons, log1p.experts.unwrap()]
    };
    for (found, expected) in
        unit_sums(&sum).iter().flatten().flatten().zip(unit_sums(&whole).iter().flatten().flatten())
    {
        found.each().into_iter().zip(expected.each()).for_each(|(found, expected)| assert_same(found, expected));
    }
}

/// The scales are of the first batch of every task, whatever the shard, and log1p of values near them is near ln 2.
#[test]
fn scales_are_the_same_for_every_shard() {
    let scales = |shard| requested(&everything(shard)).unwrap().log1p.unwrap().scales;
    let whole = scales(Shard::WHOLE);
    assert_eq!(whole, scales(Shard { index: 2, of: 3 }));
    let first = ScanRequest { grad_site: GradSite::Input, ..ScanRequest::new(options(8, 2)) };
    let mut tokens = tiny::tokens(5, &[65, 90, 12], VOCAB);
    tokens.truncate(17);
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 5));
    let seen = scan_with(&model, &tokens, &first, &Device::Cpu, None).unwrap();
    for (layer, scale) in whole.iter().enumerate() {
        let mean = |task: usize, sums: &[f64]| sums.iter().sum::<f64>() / (26.0 * seen.tokens[task] as f64);
        let over_tasks = |f: fn(&tinyonn::ops::NeuronSums) -> &Vec<f64>| {
            (0..3).map(|task| mean(task, f(&seen.sums[layer][task]))).sum::<f64>() / 3.0
        };
        assert_relative_eq!(scale.activation, over_tasks(|s| &s.activation), max_relative = 1e-12);
        assert_relative_eq!(scale.surprise, over_tasks(|s| &s.surprise), max_relative = 1e-12);
    }
}

#[rstest]
#[case::site(ScanRequest { grad_site: GradSite::Weight, ..everything(Shard::WHOLE) }, "different places")]
#[case::partition(ScanRequest { units: Some(units(5)), ..everything(Shard::WHOLE) }, "different partitions")]
#[case::no_partition(ScanRequest { units: None, ..everything(Shard::WHOLE) }, "different partitions")]
#[case::scales(ScanRequest { log1p: Log1p::Given(vec![Log1pScale { activation: 1.0, surprise: 1.0 }; 2]), ..everything(Shard::WHOLE) }, "different scales")]
#[case::no_scales(ScanRequest { log1p: Log1p::Off, ..everything(Shard::WHOLE) }, "different scales")]
fn scans_of_different_kinds_do_not_merge(#[case] other: ScanRequest, #[case] problem: &str) {
    let mut scan = requested(&everything(Shard::WHOLE)).unwrap();
    let before = scan.clone();
    let error = scan.merge(&requested(&other).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("`scan`") && error.contains(problem), "{error}");
    assert_eq!(scan, before);
}

#[rstest]
#[case::shard(ScanRequest { shard: Shard { index: 3, of: 3 }, ..everything(Shard::WHOLE) }, "`shard`: there is no shard 3/3")]
#[case::no_shard(ScanRequest { shard: Shard { index: 0, of: 0 }, ..everything(Shard::WHOLE) }, "`shard`: there is no shard 0/0")]
#[case::layers(ScanRequest { units: Some(Units { neuron_expert: vec![vec![0; 26]], count: 1 }), ..everything(Shard::WHOLE) }, "`units`")]
#[case::width(ScanRequest { units: Some(Units { neuron_expert: vec![vec![0; 25]; 2], count: 1 }), ..everything(Shard::WHOLE) }, "`units`")]
#[case::unit(ScanRequest { units: Some(Units { neuron_expert: vec![vec![1; 26]; 2], count: 1 }), ..everything(Shard::WHOLE) }, "expert 1")]
#[case::scale(ScanRequest { log1p: Log1p::Given(vec![Log1pScale { activation: 0.0, surprise: 1.0 }; 2]), ..everything(Shard::WHOLE) }, "`log1p`")]
#[case::scales(ScanRequest { log1p: Log1p::Given(vec![]), ..everything(Shard::WHOLE) }, "`log1p`")]
fn requests_that_do_not_fit_are_refused(#[case] request: ScanRequest, #[case] problem: &str) {
    let error = requested(&request).unwrap_err().to_string();
    assert!(error.contains(problem), "{error}");
}

/// All active, a variant is measured like the dense model, whatever shares its decisions.
#[rstest]
#[case("Moe7x3")]
#[case("MoeSequence")]
fn upcycled_all_active_is_measured_like_the_dense_model(#[case] variant: &str) {
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 9);
    let set = tiny::tokens(9, &[40, 50], VOCAB);
    let request = everything(Shard::WHOLE);
    let dense = scan_with(&tiny::dense(&cfg, &store), &set, &request, &Device::Cpu, None).unwrap();
    let (variant, store) = tiny::upcycled(&cfg, variant, &store);
    let model = tiny::sparse(&cfg, variant, &store);
    assert_eq!(scan_with(model.lm(), &set, &request, &Device::Cpu, None).unwrap(), dense);
}
