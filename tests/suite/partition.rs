//! Partitions: every neuron in one expert, balanced, reproducible; clusters that are there are found.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use rand::Rng;
use rand::seq::SliceRandom;
use rstest::rstest;
use tinyonn::checkpoint::ModelFolder;
use tinyonn::data::TokenSet;
use tinyonn::imaging::partition::{self, gate_rows, stored_gate_rows};
use tinyonn::imaging::{
    Integral, NeuronMarks, Partition, PartitionSources, ScanOptions, coactivation, dump, neuron_marks,
};
use tinyonn::moe::{AlwaysBy, AlwaysSpec, MoeSpec};
use tinyonn::random;

use crate::gradients::inputs;
use crate::models::{self, message};
use crate::tiny::{self, spec};

const CLUSTERED: [Partition; 6] = [
    Partition::Kmeans,
    Partition::Coactivation,
    Partition::CoactivationBinary,
    Partition::Activation,
    Partition::Sps,
    Partition::Taylor,
];

/// All that partitions are made from, at random.
struct Made {
    integral: Integral,
    gate_rows: LayerRows,
    hidden: Vec<Tensor>,
    marks: Vec<NeuronMarks>,
}

/// Reads a layer's rows.
type LayerRows = Box<dyn Fn(usize) -> tinyonn::Result<Tensor> + Sync>;

/// Rows that lie there already; none of a layer that they are not of.
fn reading(rows: Vec<Tensor>) -> LayerRows {
    let none = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    Box::new(move |layer| Ok(rows.get(layer).unwrap_or(&none).clone()))
}

impl Made {
    fn new(seed: u64, tasks: usize, layers: usize, width: usize) -> Self {
        let mut rng = random::stream(seed, "tests/partition");
        let mut layer = || (0..width).map(|_| rng.random::<f64>() - 0.5).collect();
        let neurons = (0..tasks).map(|_| (0..layers).map(|_| layer()).collect()).collect();
        let tensors = |shape: [usize; 2]| -> Vec<Tensor> {
            (0..layers as u64).map(|layer| inputs(seed ^ layer, &[&shape]).remove(0)).collect()
        };
        let (gate_rows, hidden) = (reading(tensors([width, 4])), tensors([7, width]));
        Self { integral: Integral { neurons }, gate_rows, marks: marks(&hidden), hidden }
    }

    fn sources(&self) -> PartitionSources<'_> {
        PartitionSources {
            integral: Some(&self.integral),
            gate_rows: Some(&*self.gate_rows),
            coactivation: Some(&self.hidden),
            marks: Some(&self.marks),
        }
    }
}

/// Of what each neuron adds at each token, by layer.
fn marks(outputs: &[Tensor]) -> Vec<NeuronMarks> {
    outputs.iter().map(|outputs| NeuronMarks::of(outputs).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]
    #[test]
    fn every_neuron_has_one_expert_and_widths_are_even(
        which in 0usize..9,
        groups in 1usize..5,
        experts in 1usize..5,
        deep in any::<bool>(),
        extra in 0usize..40,
        tasks in 1usize..4,
        seed in any::<u64>(),
    ) {
        let levels = if deep { vec![(groups, 1), (experts, 1), (2, 1)] } else { vec![(groups, 1), (experts, 1)] };
        let (spec, strategy) = (spec(&levels), Partition::ALL[which]);
        let (count, width) = (spec.experts(), spec.experts() + extra);
        let made = Made::new(seed, tasks, 2, width);
        let units = partition::assign(strategy, &spec, (2, width), made.sources(), seed).unwrap();
        prop_assert_eq!(units.len(), 2);
        for layer in &units {
            prop_assert_eq!(layer.len(), width);
            for expert in 0..count {
                let found = layer.iter().filter(|e| **e as usize == expert).count();
                // The first experts take the remainder, so a group's width follows from its experts'.
                prop_assert_eq!(found, width / count + usize::from(expert < width % count));
            }
        }
        prop_assert_eq!(&units, &partition::assign(strategy, &spec, (2, width), made.sources(), seed).unwrap());
        if strategy == Partition::Contiguous {
            prop_assert!(units.iter().all(|layer| layer.is_sorted()));
        }
    }
}

#[test]
fn random_partitions_differ_by_seed_and_layer() {
    let nothing = PartitionSources::default();
    let assign = |seed| partition::assign(Partition::Random, &spec(&[(2, 1), (3, 1)]), (2, 60), nothing, seed).unwrap();
    let (one, two) = (assign(1), assign(2));
    assert!(one[0] != one[1] && one[0] != two[0] && !one[0].is_sorted());
}

/// Neurons of six kinds in random order, the kinds of a group alike: `groups` × `experts` tasks, each kind loudest on its own,
/// louder on its group's than on the others'.
fn planted(seed: u64, groups: usize, experts: usize, width: usize) -> (Integral, Vec<usize>) {
    let mut rng = random::stream(seed, "tests/planted");
    let kinds = groups * experts;
    let mut kind: Vec<usize> = (0..width).map(|i| i % kinds).collect();
    kind.shuffle(&mut rng);
    let mut value = |task: usize, kind: usize| {
        let loud = f64::from(u8::from(task == kind)) + 0.6 * f64::from(u8::from(task / experts == kind / experts));
        // Neurons differ in scale by the unit norm of their profiles no more, and by a baseline the contrast removes.
        (1.0 + 2.0 * (kind as f64)) + loud * (1.0 + rng.random::<f64>()) + 0.02 * rng.random::<f64>()
    };
    let neurons = (0..kinds).map(|task| vec![kind.iter().map(|kind| value(task, *kind)).collect()]).collect();
    (Integral { neurons }, kind)
}

/// Noise within a kind is a fifth of the distance between kinds, so every seed must find them.
#[rstest]
#[case(Partition::Activation, 2, 3, 48)]
#[case(Partition::Sps, 2, 3, 48)]
#[case(Partition::Activation, 3, 2, 31)] // one kind has a neuron more, as has the first expert
#[case(Partition::Activation, 1, 4, 40)]
#[case(Partition::Activation, 4, 1, 40)]
fn planted_kinds_are_found(
    #[case] strategy: Partition,
    #[case] groups: usize,
    #[case] experts: usize,
    #[case] width: usize,
) {
    let spec = spec(&[(groups, 1), (experts, 1)]);
    for seed in 0..20 {
        let (integral, kind) = planted(seed, groups, experts, width);
        let sources = PartitionSources { integral: Some(&integral), ..PartitionSources::default() };
        let units = partition::assign(strategy, &spec, (1, width), sources, seed).unwrap().remove(0);
        assert_found(seed, &kind, &units, (groups, experts));
    }
}

/// Each kind is one expert, the kinds of a group one group.
fn assert_found(seed: u64, kind: &[usize], units: &[u32], (groups, experts): (usize, usize)) {
    let mut pairs: Vec<(usize, u32)> = kind.iter().copied().zip(units.iter().copied()).collect();
    pairs.sort_unstable();
    pairs.dedup();
    // A kind in two experts is a pair too many; with an odd neuron one pair may be.
    let odd = kind.len() % (groups * experts);
    assert!(pairs.len() <= groups * experts + 2 * odd, "seed {seed}: {pairs:?}");
    if odd == 0 {
        let mut of_groups: Vec<(usize, usize)> =
            pairs.iter().map(|(kind, unit)| (kind / experts, *unit as usize / experts)).collect();
        of_groups.dedup();
        assert_eq!(of_groups.len(), groups, "seed {seed}: {pairs:?}");
    }
}

/// Six kinds of vectors of 24 dimensions around centres whose first half the kinds of a group share; neurons differ in length, which
/// unit norm takes away, and noise is a fifth of what kinds differ by.
fn planted_vectors(seed: u64, width: usize) -> (Vec<Vec<f64>>, Vec<usize>) {
    let mut rng = random::stream(seed, "tests/planted vectors");
    let mut kind: Vec<usize> = (0..width).map(|i| i % 6).collect();
    kind.shuffle(&mut rng);
    let vector = |kind: usize| {
        let scale = 0.5 + rng.random::<f64>();
        let along = |j: usize| {
            let own = if j < 12 { j % 2 == kind / 3 } else { j % 6 == kind };
            scale * (f64::from(u8::from(own)) + 0.2 * (rng.random::<f64>() - 0.5))
        };
        (0..24).map(along).collect()
    };
    (kind.iter().copied().map(vector).collect(), kind)
}

#[test]
fn planted_directions_of_gate_rows_are_found() {
    for seed in 0..20 {
        let (rows, kind) = planted_vectors(seed, 48);
        let rows = reading(vec![Tensor::new(rows, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()]);
        let sources = PartitionSources { gate_rows: Some(&*rows), ..PartitionSources::default() };
        let units = partition::assign(Partition::Kmeans, &spec(&[(2, 1), (3, 1)]), (1, 48), sources, seed).unwrap();
        assert_found(seed, &kind, &units[0], (2, 3));
    }
}

/// What counts is when neurons fire together, not how much each fires on average: every neuron has a level of its own.
#[test]
fn planted_rhythms_are_found_under_any_level() {
    for seed in 0..20 {
        let (rows, kind) = planted_vectors(seed, 48);
        let levelled = rows.iter().enumerate().map(|(i, row)| row.iter().map(|x| x + 3.0 * (i % 5) as f64).collect());
        let levelled: Vec<Vec<f64>> = levelled.collect();
        let hidden = [Tensor::new(levelled, &Device::Cpu).unwrap().t().unwrap()];
        let sources = PartitionSources { coactivation: Some(&hidden), ..PartitionSources::default() };
        let units =
            partition::assign(Partition::Coactivation, &spec(&[(2, 1), (3, 1)]), (1, 48), sources, seed).unwrap();
        assert_found(seed, &kind, &units[0], (2, 3));
    }
}

/// Every strategy reads its own source: where another one's changes nothing moves.
#[rstest]
fn a_strategy_reads_its_own_source(#[values(0, 1, 2, 3, 4, 5)] which: usize) {
    let (strategy, spec) = (CLUSTERED[which], spec(&[(2, 1), (3, 1)]));
    let (a, b) = (Made::new(1, 3, 1, 48), Made::new(2, 3, 1, 48));
    let assign = |sources| partition::assign(strategy, &spec, (1, 48), sources, 0).unwrap();
    let other = match strategy {
        Partition::Kmeans => PartitionSources { gate_rows: Some(&*a.gate_rows), ..b.sources() },
        Partition::Coactivation => PartitionSources { coactivation: Some(&a.hidden), ..b.sources() },
        Partition::CoactivationBinary => PartitionSources { marks: Some(&a.marks), ..b.sources() },
        _ => PartitionSources { integral: Some(&a.integral), ..b.sources() },
    };
    assert_eq!(assign(a.sources()), assign(other));
    assert_ne!(assign(a.sources()), assign(b.sources()));
}

/// Neurons that are all alike are shared out all the same.
#[rstest]
fn equal_neurons_are_shared_out(#[values(0.0, 1.0)] value: f64, #[values(0, 1, 2, 3, 4, 5)] which: usize) {
    let equal = |shape: (usize, usize)| [Tensor::full(value, shape, &Device::Cpu).unwrap()];
    let (integral, rows, hidden) =
        (Integral { neurons: vec![vec![vec![value; 31]]; 2] }, equal((31, 4)), equal((7, 31)));
    let rows = reading(rows.to_vec());
    let marks = marks(&hidden);
    let sources = PartitionSources {
        integral: Some(&integral),
        gate_rows: Some(&*rows),
        coactivation: Some(&hidden),
        marks: Some(&marks),
    };
    let units = partition::assign(CLUSTERED[which], &spec(&[(2, 1), (3, 1)]), (1, 31), sources, 0).unwrap();
    let widths = (0..6).map(|expert| units[0].iter().filter(|unit| **unit == expert).count());
    assert_eq!(widths.collect::<Vec<_>>(), [6, 5, 5, 5, 5, 5]);
}

#[rstest]
fn fewer_neurons_than_experts_are_refused_by_name(#[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] which: usize) {
    let made = Made::new(0, 2, 1, 7);
    let error = message(partition::assign(Partition::ALL[which], &spec(&[(2, 1), (4, 1)]), (1, 7), made.sources(), 0));
    assert!(error.contains("variant `Test`") && error.contains("7 neurons for 8 experts"), "{error}");
}

#[rstest]
#[case(Partition::Kmeans, "clusters the rows of W_g", "the gate projection is not of layer")]
#[case(Partition::Coactivation, "clusters neurons by when they fire", "the sample of activations is not of layer")]
#[case(Partition::CoactivationBinary, "or `always_by`, reads which neurons stand out", "the marks are not of layer")]
#[case(Partition::Rate, "or `always_by`, reads which neurons stand out", "the marks are not of layer")]
#[case(Partition::Activation, "clusters neurons by what they do on tasks", "the scan is not of layer")]
#[case(Partition::Sps, "clusters neurons by what they do on tasks", "the scan is not of layer")]
#[case(Partition::Taylor, "clusters neurons by what they do on tasks", "the scan is not of layer")]
fn clusters_need_a_source_of_this_model(#[case] strategy: Partition, #[case] missing: &str, #[case] other: &str) {
    let spec = spec(&[(2, 1), (2, 1)]);
    let error = |sources: PartitionSources<'_>| message(partition::assign(strategy, &spec, (2, 10), sources, 0));
    let none = error(PartitionSources::default());
    assert!(none.starts_with(&format!("`partition`: `{strategy}`")) && none.contains(missing), "{none}");
    for ((layers, width), layer) in [((2, 9), 0), ((1, 10), 1)] {
        let error = error(Made::new(0, 2, layers, width).sources());
        assert!(error.contains(&format!("{other} {layer} with 10 neurons")), "{error}");
    }
    assert!(partition::assign(Partition::Random, &spec, (2, 10), PartitionSources::default(), 0).is_ok());
}

#[test]
fn names_read_back() {
    for strategy in Partition::ALL {
        assert_eq!(strategy.to_string().parse::<Partition>().unwrap(), strategy);
        assert_eq!(serde_json::to_value(strategy).unwrap(), strategy.to_string());
        let refused = "halves".parse::<Partition>().unwrap_err();
        assert!(refused.contains(strategy.word()), "{refused}");
    }
}

/// |h| of the sampled tokens is what the raw image shows of them; a task with few tokens gives all of them.
#[test]
fn activations_are_those_of_the_image() {
    let cfg = tiny::config(40);
    let store = tiny::dense_store(&cfg, 3);
    let model = tiny::dense(&cfg, &store);
    let (set, options) = (tiny::tokens(1, &[49, 25], 40), ScanOptions { length: 8, batch: 2, tokens_per_task: 1000 });
    let hidden = coactivation(&model, &set, options, &Device::Cpu).unwrap();
    let each: Vec<Vec<u32>> = vec![(0..26).collect(); 2];
    for layer in 0..2 {
        let mut expected: Vec<Vec<f32>> = Vec::new();
        for task in 0..2 {
            for batch in set.batches_of_task(task, 8, 1, &Device::Cpu).unwrap() {
                let image = dump(&model, &batch.unwrap().inputs, &each, 26).unwrap();
                expected.extend(image.activation[layer].to_vec2::<f32>().unwrap());
            }
        }
        let found = hidden[layer].to_vec2::<f32>().unwrap();
        assert_eq!((found.len(), expected.len()), (72, 72));
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            // Two orders of summing 16 products.
            approx::assert_relative_eq!(found, expected, max_relative = 1e-4, epsilon = 1e-5);
        }
    }
}

/// A long task gives its share, one token of each of as many equal parts, at changing places of its rows.
#[test]
fn samples_are_spread_over_tasks_and_rows() {
    let cfg = models::config(26, false);
    let model = models::dense(&cfg, &models::weights(&cfg, DType::F32), DType::F32);
    let options = ScanOptions { length: 16, batch: 4, tokens_per_task: 16_384 };
    let sample = |set: &TokenSet| coactivation(&model, set, options, &Device::Cpu).unwrap();
    let set = tiny::tokens(1, &[16_385, 16_385, 101], 36);
    let hidden = sample(&set);
    assert_eq!(hidden[0].dims(), [2 * (2048 / 3) + 100, 26]);
    assert_eq!(models::bits(&hidden[1]), models::bits(&sample(&set)[1]));
    // One token in 16 of rows of 16, each of which begins with the same token: a sample that kept its place would see
    // it always or never.
    let mut same = tiny::tokens(1, &[16_385, 16_385], 36);
    same.tasks.iter_mut().for_each(|task| task.tokens.iter_mut().step_by(16).for_each(|token| *token = 35));
    let first = sample(&same)[0].narrow(0, 0, 1024).unwrap();
    let alone = TokenSet { tasks: vec![same.tasks[0].clone()], ..same.clone() };
    let one = ScanOptions { length: 16, batch: 1, tokens_per_task: 1 };
    let beginning = coactivation(&model, &alone, one, &Device::Cpu).unwrap().remove(0);
    let apart = first.broadcast_sub(&beginning).unwrap().abs().unwrap().max(1).unwrap().to_vec1::<f32>().unwrap();
    // Batches of other sizes round otherwise; other tokens differ by tenths.
    let seen = apart.iter().filter(|apart| **apart < 1e-4).count();
    assert!((32..=96).contains(&seen), "{seen} of 1024, where one in 16 begins a row");
}

#[test]
fn gate_rows_are_those_of_the_model() {
    let cfg = models::config(26, false);
    let store = models::weights(&cfg, DType::BF16);
    let rows = gate_rows(&store, 1).unwrap();
    assert_eq!(models::bits(&rows), models::bits(store.get("model.layers.1.mlp.gate_proj.weight").unwrap()));
    assert!(message(gate_rows(&store, 2)).contains("model.layers.2.mlp.gate_proj.weight"));
    let dir = tempfile::tempdir().unwrap();
    ModelFolder::save(dir.path().join("model"), &serde_json::json!({}), &store, None).unwrap();
    let folder = ModelFolder::open(dir.path().join("model")).unwrap();
    assert_eq!(models::bits(&stored_gate_rows(&folder, 1).unwrap()), models::bits(&rows));
    assert!(message(stored_gate_rows(&folder, 2)).contains("model.layers.2.mlp.gate_proj.weight"));
}

/// Six kinds of neurons, each of which alone adds much at tokens of its own; of a kind one neuron is loud everywhere, and all have a level of their own, which no mark sees.
fn planted_marks(seed: u64, width: usize) -> (Tensor, Vec<usize>) {
    let mut rng = random::stream(seed, "tests/planted marks");
    // One token marks a tenth: six kinds of a tenth of the neurons, and others that are never marked.
    let tenth = width / 10;
    let mut kind: Vec<usize> = (0..width).map(|i| i / tenth).collect();
    kind.shuffle(&mut rng);
    let rows: Vec<Vec<f32>> = (0..60)
        .map(|token| {
            let loud = |kind: usize| if kind == token % 6 { 10.0 } else { 0.0 };
            kind.iter().map(|kind| loud(*kind) + rng.random::<f32>()).collect()
        })
        .collect();
    (Tensor::new(rows, &Device::Cpu).unwrap(), kind)
}

#[test]
fn neurons_that_are_marked_together_are_found() {
    for seed in 0..20 {
        let (outputs, kind) = planted_marks(seed, 60);
        let marks = marks(&[outputs]);
        let sources = PartitionSources { marks: Some(&marks), ..PartitionSources::default() };
        let flat = spec(&[(10, 1)]);
        let units = partition::assign(Partition::CoactivationBinary, &flat, (1, 60), sources, seed).unwrap().remove(0);
        // The six kinds that are ever marked are an expert each.
        for planted in 0..6 {
            let own: Vec<u32> = (0..60).filter(|at| kind[*at] == planted).map(|at| units[at]).collect();
            assert!(own.iter().all(|expert| *expert == own[0]), "seed {seed}: kind {planted} in {own:?}");
        }
    }
}

#[test]
fn by_rate_experts_are_runs_of_falling_rate() {
    let made = Made::new(5, 1, 1, 47);
    let (sources, spec) = (made.sources(), spec(&[(2, 1), (3, 1)]));
    let units = partition::assign(Partition::Rate, &spec, (1, 47), sources, 0).unwrap().remove(0);
    let rates = made.marks[0].rates();
    let mut order: Vec<usize> = (0..47).collect();
    order.sort_by(|a, b| units[*a].cmp(&units[*b]).then(rates[*b].total_cmp(&rates[*a])).then(a.cmp(b)));
    assert!(
        order
            .windows(2)
            .all(|pair| rates[pair[0]] > rates[pair[1]] || rates[pair[0]] == rates[pair[1]] && pair[0] < pair[1])
    );
}

/// Whatever the partition, the neurons that always take part are the best of all, dealt out in the order in which groups are declared; the others are shared out as evenly as ever.
#[rstest]
fn what_always_takes_part_is_found_first(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] which: usize,
    #[values(AlwaysBy::Rate, AlwaysBy::Output)] by: AlwaysBy,
    #[values(43, 60)] width: usize,
) {
    let groups = [("first", 1), ("second", 2)].map(|(name, experts)| AlwaysSpec { name: name.into(), experts });
    let spec = MoeSpec { always: groups.to_vec().into(), always_by: Some(by), ..spec(&[(2, 1), (3, 1)]) };
    assert!(spec.validate().is_empty());
    let made = Made::new(which as u64, 2, 2, width);
    let units = partition::assign(Partition::ALL[which], &spec, (2, width), made.sources(), 1).unwrap();
    for (layer, units) in units.iter().enumerate() {
        let widths = (0..9).map(|expert| units.iter().filter(|unit| **unit == expert).count());
        let expected = (0..9).map(|expert| width / 9 + usize::from(expert < width % 9));
        assert!(widths.eq(expected));
        let best = made.marks[layer].best(by);
        let always = units.iter().filter(|unit| **unit >= 6).count();
        let of_best: Vec<u32> = best[..always].iter().map(|neuron| units[*neuron]).collect();
        assert!(of_best.iter().all(|unit| *unit >= 6) && of_best.is_sorted(), "{of_best:?}");
    }
}

/// Without the word the partition says by what: these two by rate, the others cluster them beside the rest and read no marks.
#[test]
fn who_says_nothing_leaves_it_to_the_partition() {
    let shared = AlwaysSpec { name: "shared".into(), experts: 2 };
    let spec = MoeSpec { always: vec![shared].into(), ..spec(&[(4, 1)]) };
    let made = Made::new(3, 2, 1, 30);
    for strategy in Partition::ALL {
        let by_marks = matches!(strategy, Partition::CoactivationBinary | Partition::Rate);
        assert_eq!(partition::reads_marks(strategy, &spec), by_marks);
        let sources = PartitionSources { marks: None, ..made.sources() };
        assert_eq!(partition::assign(strategy, &spec, (1, 30), sources, 0).is_err(), by_marks);
        let by_rate = MoeSpec { always_by: Some(AlwaysBy::Rate), ..spec.clone() };
        let assign = |spec| partition::assign(strategy, spec, (1, 30), made.sources(), 0).unwrap();
        assert_eq!(assign(&spec) == assign(&by_rate), by_marks, "{strategy}");
    }
}

/// Marks are those of what the neurons add to the output, on tokens of all tasks alike.
#[test]
fn marks_are_of_the_outputs_of_neurons() {
    let cfg = tiny::config(40);
    let store = tiny::dense_store(&cfg, 3);
    let model = tiny::dense(&cfg, &store);
    let (set, options) = (tiny::tokens(1, &[49, 25], 40), ScanOptions { length: 8, batch: 2, tokens_per_task: 1000 });
    let found = neuron_marks(&model, &set, options, &Device::Cpu).unwrap();
    let hidden = coactivation(&model, &set, options, &Device::Cpu).unwrap();
    for (layer, hidden) in hidden.iter().enumerate() {
        let down = store.get(&format!("model.layers.{layer}.mlp.down_proj.weight")).unwrap().as_detached_tensor();
        let norms = down.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        assert_eq!(found[layer], NeuronMarks::of(&hidden.broadcast_mul(&norms).unwrap()).unwrap());
        // A tenth of 26 neurons.
        approx::assert_relative_eq!(found[layer].rates().iter().sum::<f64>(), 3.0, epsilon = 1e-9);
    }
    assert!(message(neuron_marks(&model, &tiny::tokens(1, &[49, 1], 40), options, &Device::Cpu)).contains("no token"));
}
