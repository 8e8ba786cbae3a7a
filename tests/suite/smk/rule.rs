//! Who competes and who wins under every rule: by loops over the definitions; and what is refused.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use experiments::settings::layered;
use rstest::rstest;
use tinyonn::checkpoint::ParamStore;
use tinyonn::data::Sampler;
use tinyonn::decoder::smk_rule::{Losers, Over, Per, Scope, Select, Surprise};
use tinyonn::decoder::{Ask, CausalLm, Experts, FeedForward, Learn, Pass, Smk, SmkRule};
use tinyonn::metrics::MetricsLog;
use tinyonn::moe::Variant;
use tinyonn::ops::{Grads, MinK};
use tinyonn::phases::RunConfig;
use tinyonn::train::{Memory, SmkConfig, train_smk};

use super::choice::{Telling, Told, by_neuron, least, marked, matrices, surprises};
use super::{VOCAB, is_expert, text, trained, upcycled};
use crate::models::{learnt, message};
use crate::routing::gates_of;
use crate::tiny;

const CPU: Device = Device::Cpu;

/// The norm of each expert's gradient over its three matrices, by loops.
pub(super) fn norms(grads: &Grads, store: &ParamStore, (layer, units): (usize, &[u32]), experts: usize) -> Vec<f64> {
    let mut squares = vec![0.0; experts];
    for name in matrices(layer) {
        for (row, unit) in by_neuron(grads, store, &name).iter().zip(units) {
            squares[*unit as usize] += row.iter().map(|x| x * x).sum::<f64>();
        }
    }
    squares.into_iter().map(f64::sqrt).collect()
}

/// One row of tokens routes to some of 21 experts in 7 groups; in each group, or in the layer, two win.
#[rstest]
fn every_rule_is_that_of_a_loop(
    #[values(Select::All, Select::Smk, Select::MaxK, Select::MaxProduct, Select::MinLoad)] select: Select,
    #[values(Surprise::Token, Surprise::Exact)] surprise: Surprise,
    #[values(Scope::Active, Scope::All)] scope: Scope,
    #[values(Per::Layer, Per::Group)] per: Per,
) {
    const K: usize = 2;
    let (cfg, variant, store) = upcycled("Moe7x3");
    let told: Told = Arc::new(Mutex::new(vec![None; 2]));
    let build = |layer, vb: VarBuilder<'_>| Ok(Telling((variant.build)(&cfg, layer, vb)?, told.clone()));
    let model = CausalLm::new(&cfg, &store.builder(DType::F32, is_expert), build).unwrap();
    let units = tiny::sparse(&cfg, variant, &store).neuron_experts().unwrap().unwrap();
    let rule = SmkRule { select, surprise, scope, per, ..SmkRule::DEFAULT };
    let smk = Smk { min_k: K, rule, seed: 0 };
    let (mut idle, mut idle_won) = (0, 0);
    for seed in 0..4 {
        let set = tiny::tokens(seed, &[9], VOCAB as u32);
        let batch = set.batches_of_task(0, 8, 1, &CPU).unwrap().next().unwrap().unwrap();
        let pass = Pass { ask: Ask { gates: true, load: true, ..Ask::default() }, ..Pass::routed() };
        let learn = Learn { experts: Experts::Smk(smk), ..Learn::default() };
        let mut found = learnt(&model, (&store, &is_expert), (&batch.inputs, &batch.targets), &pass, &learn);
        for layer in 0..2 {
            let [x, dy] = told.lock().unwrap()[layer].take().unwrap();
            let trace = &found.traces[layer];
            let tokens_n = &trace.load.as_ref().unwrap().tokens_n;
            let tokens: Vec<f64> = tokens_n.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
            let (surprise_n, choice): (Vec<f64>, MinK) = match surprise {
                Surprise::Token => {
                    let gates = gates_of(trace);
                    let own = surprises(&store, (layer, &units[layer]), [&x, &dy], &gates, |_| true);
                    let own = own.into_iter().map(|surprise| surprise.unwrap_or(0.0)).collect();
                    (own, found.answers[layer].min_k.clone().unwrap())
                }
                Surprise::Exact => {
                    assert!(found.answers[layer].min_k.is_none());
                    let own = norms(&found.grads, &store, (layer, &units[layer]), 21);
                    let mlp = model.model().layers()[layer].mlp();
                    (own, mlp.keep_winners(&smk, Some(tokens_n), &mut found.grads).unwrap().unwrap())
                }
            };
            let competes = |n: &usize| scope == Scope::All || tokens[*n] > 0.0;
            let key = |n: usize| match select {
                Select::Smk => surprise_n[n],
                Select::MaxK => -surprise_n[n],
                Select::MaxProduct => -surprise_n[n] * tokens[n],
                Select::MinLoad => tokens[n],
                // All of them, or whichever chance takes.
                _ => 0.0,
            };
            let of = |group: std::ops::Range<usize>| {
                let keys: Vec<Option<f64>> =
                    (0..21).map(|n| (competes(&n) && group.contains(&n)).then(|| key(n))).collect();
                least(&keys, if select == Select::All { 21 } else { K })
            };
            let expected: Vec<usize> = match per {
                Per::Layer => of(0..21),
                Per::Group => (0..7).flat_map(|group| of(3 * group..3 * group + 3)).collect(),
            };
            assert_eq!(marked(&choice.learn_n), expected);
            assert_eq!(marked(&choice.active_n), (0..21).filter(competes).collect::<Vec<_>>());
            idle += tokens.iter().filter(|tokens| **tokens == 0.0).count();
            idle_won += expected.iter().filter(|n| tokens[**n] == 0.0).count();
            for name in matrices(layer) {
                let learning = found.grads.learning_rows(store.get(&name).unwrap()).unwrap().to_vec1::<u8>().unwrap();
                for (i, gradient) in by_neuron(&found.grads, &store, &name).iter().enumerate() {
                    let won = expected.contains(&(units[layer][i] as usize));
                    assert_eq!(learning[i] == 1, won);
                    assert!(won || gradient.iter().all(|x| *x == 0.0), "{name}, neuron {i}");
                }
            }
        }
    }
    assert!(idle > 0, "no expert idles: the test is blind");
    if scope == Scope::Active {
        assert_eq!(idle_won, 0);
    } else if matches!(select, Select::Smk | Select::MinLoad) {
        // As in the naive form: what has no gradient has the least.
        assert!(idle_won > 0);
    }
}

/// A draw is its seed's and its layer's; over many seeds each expert that competes wins as often as the others, and no other wins.
#[test]
fn random_k_draws_evenly_among_the_active() {
    const DRAWS: u64 = 600;
    let (cfg, variant, store) = upcycled("Moe7x3");
    let model = tiny::sparse(&cfg, variant, &store);
    let rule = SmkRule { select: Select::RandomK, surprise: Surprise::Exact, ..SmkRule::DEFAULT };
    let tokens: Vec<f32> = (0..21).map(|n| if n % 3 == 1 { 0.0 } else { n as f32 + 1.0 }).collect();
    let tokens_n = Tensor::new(tokens.as_slice(), &CPU).unwrap();
    let draw = |layer: usize, seed: u64| {
        let smk = Smk { min_k: 4, rule, seed };
        marked(&model.moe(layer).keep_winners(&smk, Some(&tokens_n), &mut Grads::none()).unwrap().unwrap().learn_n)
    };
    let mut wins = [0u32; 21];
    let mut same = 0;
    for seed in 0..DRAWS {
        let drawn = draw(0, seed);
        assert_eq!((drawn.len(), &draw(0, seed)), (4, &drawn));
        same += usize::from(draw(1, seed) == drawn);
        drawn.into_iter().for_each(|n| wins[n] += 1);
    }
    // Of 14 experts any four are drawn alike in two layers once in a thousand times.
    assert!(same < 10, "{same}");
    for (n, wins) in wins.into_iter().enumerate() {
        if n % 3 == 1 {
            assert_eq!(wins, 0);
        } else {
            // 4/14 of the draws; five deviations of a binomial.
            let (mean, p) = (DRAWS as f64 * 4.0 / 14.0, 4.0 / 14.0);
            assert!((f64::from(wins) - mean).abs() < 5.0 * (mean * (1.0 - p)).sqrt(), "{n}: {wins}");
        }
    }
}

/// The products of the weight gradients are those of the winners alone: each of its tokens with each of its neurons, three matrices of d columns.
#[rstest]
#[case::all_tokens_meet_all_neurons("Moe7x3", 0)]
#[case::tokens_meet_the_neurons_of_their_experts("Dispatch3x4", 0)]
#[case::decisions_have_neurons_of_their_own("SequenceOf2", 2)]
fn nothing_is_multiplied_for_losers(
    #[case] name: &str,
    #[case] open: usize,
    #[values(1, 3, 99)] min_k: usize,
    #[values(Select::Smk, Select::MaxK, Select::MinLoad, Select::RandomK)] select: Select,
) {
    let (cfg, variant, store) = upcycled(name);
    let model = tinyonn::model::TinyOnnForCausalLm::new(&cfg, variant, &store.builder(DType::F32, is_expert)).unwrap();
    let units = model.neuron_experts().unwrap().unwrap();
    let set = tiny::tokens(3, &[9], VOCAB as u32);
    let batch = set.batches_of_task(0, 8, 1, &CPU).unwrap().next().unwrap().unwrap();
    let pass = Pass { ask: Ask { load: true, ..Ask::default() }, ..Pass::routed() };
    let products = |surprise: Surprise| {
        let rule = SmkRule { select, surprise, ..SmkRule::DEFAULT };
        let learn = Learn { experts: Experts::Smk(Smk { min_k, rule, seed: 7 }), ..Learn::default() };
        learnt(model.lm(), (&store, &is_expert), (&batch.inputs, &batch.targets), &pass, &learn)
    };
    let (early, late) = (products(Surprise::Token), products(Surprise::Exact));
    for layer in 0..2 {
        let tokens = early.traces[layer].load.as_ref().unwrap().tokens_n.to_vec1::<f32>().unwrap();
        // What takes part in the products of an expert, whether or not they are formed.
        let rows = |n: usize| if name == "Moe7x3" { 8 } else { tokens[n] as usize + open };
        let cost = |n: usize| {
            let width = units[layer].iter().filter(|unit| **unit as usize == n).count();
            (3 * cfg.hidden_size * width * rows(n)) as u64
        };
        let mut winners = marked(&early.answers[layer].min_k.as_ref().unwrap().learn_n);
        assert!(winners.len() <= min_k);
        if min_k >= variant.spec.experts() && open == 0 {
            // Nobody loses, and the rows of who was given nothing are zero as they are.
            winners = (0..variant.spec.experts()).collect();
        }
        assert_eq!(early.answers[layer].products, Some(winners.into_iter().map(cost).sum()));
        assert_eq!(late.answers[layer].products, Some((0..variant.spec.experts()).map(cost).sum()));
    }
}

fn with(rule: SmkRule) -> SmkConfig {
    SmkConfig { steps: 1, batch: 4, min_k: 1, rule, ..SmkConfig::DEFAULT }
}

const STEP: SmkRule = SmkRule { over: Some(Over::Step), ..SmkRule::DEFAULT };
const TWO_PARTS: Memory = Memory { micro_batches: 2, ..Memory::DEFAULT };

#[rstest]
#[case::over_a_step_of_two_parts("Moe2x4", SmkConfig { memory: TWO_PARTS, ..with(STEP) }, &["`smk.rule.over`", "2 micro-batches", "surprise = exact"])]
#[case::groups_of_one("Flat5", with(SmkRule { per: Per::Group, ..SmkRule::DEFAULT }), &["`smk.rule.per`", "Flat5", "use layer"])]
fn what_cannot_be_decided_is_refused(#[case] name: &str, #[case] config: SmkConfig, #[case] says: &[&str]) {
    let (cfg, variant, store) = upcycled(name);
    let before = tiny::bits(&store);
    let by_training = message(trained(&cfg, variant, &store, &config));
    let run = RunConfig { variant: name.into(), smk: config, ..RunConfig::default() };
    for refused in [by_training, message(run.validate(variant))] {
        assert!(says.iter().all(|word| refused.contains(word)), "{refused}");
    }
    assert_eq!(tiny::bits(&store), before);
}

/// In one part a step is a micro-batch; what forms all gradients may decide over any number of parts.
#[rstest]
#[case(SmkConfig { ..with(STEP) })]
#[case(SmkConfig { memory: TWO_PARTS, ..with(SmkRule { surprise: Surprise::Exact, ..STEP }) })]
fn a_step_is_compared_where_it_can_be(#[case] config: SmkConfig) {
    let (cfg, variant, store) = upcycled("Moe2x4");
    assert!(trained(&cfg, variant, &store, &config).unwrap().updated_share < 1.0);
}

/// All active, all have the same load, and the first would win for ever.
#[test]
fn the_least_load_of_equals_is_refused() {
    let (cfg, variant, store): (_, &'static Variant, _) = upcycled("Moe2x4");
    let (dir, set) = (tempfile::tempdir().unwrap(), text());
    let sampler = Sampler::new(&set, 8, 4, 0, &CPU).unwrap();
    let mut log = MetricsLog::create(dir.path().join("log.jsonl")).unwrap();
    let config = with(SmkRule { select: Select::MinLoad, ..SmkRule::DEFAULT });
    let refused = message(train_smk((&store, &cfg, variant), &Pass::all(), (&sampler, None), &config, &mut log, None));
    assert!(refused.contains("`smk.rule.select`") && refused.contains("random_k"), "{refused}");
}

/// Files that know of no rule have the default; one that names a part of it has the rest.
#[test]
fn a_rule_is_a_table_of_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        layered(&RunConfig::default(), Some(&path), &()).map(|config| config.smk)
    };
    assert_eq!(read("[smk]\nmin_k = 7").unwrap(), SmkConfig { min_k: 7, ..SmkConfig::DEFAULT });
    let rule = read("[smk.rule]\nselect = \"random_k\"\nlosers = \"zero_grad\"\nscope = \"all\"\nover = \"step\"")
        .unwrap()
        .rule;
    let expected = SmkRule {
        select: Select::RandomK,
        losers: Losers::ZeroGrad,
        scope: Scope::All,
        over: Some(Over::Step),
        ..SmkRule::DEFAULT
    };
    assert_eq!(rule, expected);
    let words = ["max_k", "min_load", "smk", "all"]
        .map(|word| read(&format!("[smk.rule]\nselect = \"{word}\"")).unwrap().rule.select);
    assert_eq!(words, [Select::MaxK, Select::MinLoad, Select::Smk, Select::All]);
    for (text, says) in [("select = \"max\"", "max_k"), ("selects = \"smk\"", "select"), ("per = \"expert\"", "group")]
    {
        let refused = message(read(&format!("[smk.rule]\n{text}")));
        assert!(refused.contains("line 2") && refused.contains(says), "{refused}");
    }
}
