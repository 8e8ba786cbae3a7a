//! Attention to some pairs, in a model: where it acts and where it does not, what it refuses, and that a text is written as the whole text's mask says.

use candle_core::{DType, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::{KeyDirections, ModelFolder, ParamStore, TinyOnnConfig, TinyOnnFolder, load_model, upcycle};
use tinyonn::decoder::{Arch, Continuation, Family, Generation, InTraining, KvCache, Learn, Pass, Prompt, Sampling};
use tinyonn::imaging::Partition;
use tinyonn::model::{ActiveMode, TinyOnnForCausalLm};
use tinyonn::moe::{AttentionSpec, KeptPairs, MoeSpec, PairIndex, PairsSpec, moe};

use crate::models::{self, CPU, apart, bits, config, dense, ids, learnt, message, partition, sparse, variant, weights};

/// Pairs by each index, of heads of six values, and by each head for itself.
mod declared {
    use tinyonn::moe::moe;

    #[moe(attention = pairs(keep = 0.25, index = components(3), near = 2, first = 1))]
    pub(crate) struct ByComponents;

    #[moe(attention = pairs(keep = 0.25, index = directions(3), near = 2, first = 1, by = head, prefill = sparse))]
    pub(crate) struct ByDirections;

    #[moe(attention = pairs(keep = 0.25, index = blocks(4), near = 2, first = 1, prefill = sparse))]
    pub(crate) struct ByBlocks;

    #[moe(attention = pairs(keep = 0.25, index = window, near = 2, first = 1, prefill = sparse))]
    pub(crate) struct Nearest;

    #[moe(attention = pairs(keep = 0.25, index = exact, near = 2, first = 1, by = head, prefill = sparse))]
    pub(crate) struct ByLogits;

    #[moe(attention = pairs(keep = 0.25, index = components(3), near = 2, first = 1, prefill = sparse))]
    pub(crate) struct FromTheStart;

    /// All pairs, three ways.
    #[moe(attention = pairs(keep = 1.0, index = components(3)))]
    pub(crate) struct AllPairs;

    #[moe(attention = pairs(keep = keys(40), index = window, near = 0, first = 0))]
    pub(crate) struct ManyKeys;

    #[moe(attention = pairs(keep = 0.01, index = directions(3), near = 36, first = 4))]
    pub(crate) struct AllNear;

    /// More values than heads of six have.
    #[moe(attention = pairs(keep = 0.25, index = components(7)))]
    pub(crate) struct Wide;
}

/// Experts and pairs at once.
#[moe(groups = 2, experts = 3, top_k = [1, 2], attention = pairs(keep = 0.25, index = components(3), near = 2, first = 1))]
pub struct ExpertsAndPairs;

const LENGTH: usize = 40;

/// A declared model over random weights, and these.
fn upcycled(name: &str, cfg: &Arch, dtype: DType) -> (ParamStore, ParamStore) {
    let (variant, store) = (variant(name), weights(cfg, dtype));
    let experts = partition(Partition::Contiguous, &variant.spec, cfg).unwrap();
    let made = upcycle(store.deep_copy().unwrap(), cfg, variant, &experts, 4).unwrap();
    (store, made)
}

/// Some directions of keys: any orthonormal ones will do.
fn with_directions(model: TinyOnnForCausalLm, store: &ParamStore) -> TinyOnnForCausalLm {
    let cfg = model.lm().config().clone();
    let parent = tempfile::tempdir().unwrap();
    ModelFolder::save(parent.path().join("m"), &cfg.to_json(), store, None).unwrap();
    let folder = ModelFolder::open(parent.path().join("m")).unwrap();
    let directions = KeyDirections::fit(&folder, model.lm(), &[ids((2, LENGTH))]).unwrap();
    model.with_key_directions(directions.layers()).unwrap()
}

#[rstest]
fn all_active_the_model_is_the_dense_one_bit_for_bit(
    #[values("ByComponents", "ByDirections", "ByBlocks", "Nearest", "ByLogits", "ExpertsAndPairs")] name: &str,
    #[values(DType::F32, DType::BF16)] dtype: DType,
) {
    let cfg = Arch { family: Family::Llama, ..config(61, true) };
    let (plain, made) = upcycled(name, &cfg, dtype);
    let ids = ids((2, LENGTH));
    let model = with_directions(sparse(&cfg, variant(name), &made, dtype), &plain);
    let expected = dense(&cfg, &plain, dtype).logits(&ids, &Pass::all(), None).unwrap();
    assert_eq!(bits(&model.logits(&ids, &Pass::all(), None).unwrap()), bits(&expected));
    let routed = model.logits(&ids, &Pass::routed(), None).unwrap();
    assert!(apart(&routed.to_dtype(DType::F32).unwrap(), &expected.to_dtype(DType::F32).unwrap()) > 1e-3);
}

/// keep = 1.0, as many keys as there are, or all of them near: the dense path itself, which asks no index, not even for directions.
#[rstest]
fn all_pairs_are_the_dense_path(
    #[values("AllPairs", "ManyKeys", "AllNear")] name: &str,
    #[values(DType::F32, DType::BF16)] dtype: DType,
) {
    let cfg = config(61, false);
    let (plain, made) = upcycled(name, &cfg, dtype);
    let (ids, model) = (ids((2, LENGTH)), sparse(&cfg, variant(name), &made, dtype));
    let expected = dense(&cfg, &plain, dtype).logits(&ids, &Pass::all(), None).unwrap();
    assert_eq!(bits(&model.logits(&ids, &Pass::routed(), None).unwrap()), bits(&expected));
    let mut cache = KvCache::new(cfg.num_hidden_layers);
    let cached = model.logits(&ids, &Pass::routed(), Some(&mut cache)).unwrap();
    assert_eq!(bits(&cached), bits(&expected));
}

/// Along the paths of tasks, which an oracle gives, attention is dense as well.
#[test]
fn pairs_are_chosen_in_routed_passes_alone() {
    use std::sync::Arc;
    use tinyonn::decoder::{Active, PathTable};

    let cfg = config(61, false);
    let (plain, made) = upcycled("ExpertsAndPairs", &cfg, DType::F32);
    let (ids, model) = (ids((1, LENGTH)), sparse(&cfg, variant("ExpertsAndPairs"), &made, DType::F32));
    let all = PathTable { experts: vec![vec![(0..6).collect(); cfg.num_hidden_layers]] };
    let along = Pass { active: Active::Paths(Arc::new(all)), ..Pass::all() }.of_tasks(&[0]);
    let expected = dense(&cfg, &plain, DType::F32).logits(&ids, &Pass::all(), None).unwrap();
    // Gates of one are multiplied in: roundings of another order of sums.
    assert!(apart(&model.logits(&ids, &along, None).unwrap(), &expected) < 1e-4);
}

/// Read token by token, a text has the logits of the mask over the whole of it, and the best tokens are its.
#[rstest]
fn decoding_agrees_with_the_mask(
    #[values("ByDirections", "ByBlocks", "Nearest", "ByLogits", "FromTheStart")] name: &str,
    #[values(1, 7, 39)] prompt: usize,
) {
    let cfg = Arch { family: Family::Llama, ..config(61, true) };
    let (plain, made) = upcycled(name, &cfg, DType::F32);
    let model = with_directions(sparse(&cfg, variant(name), &made, DType::F32), &plain);
    let ids = ids((2, LENGTH));
    let whole = model.logits(&ids, &Pass::routed(), None).unwrap();
    let mut cache = KvCache::with_room(cfg.num_hidden_layers, 16);
    let mut read = vec![model.logits(&ids.narrow(1, 0, prompt).unwrap(), &Pass::routed(), Some(&mut cache)).unwrap()];
    for t in prompt..LENGTH {
        read.push(model.logits(&ids.narrow(1, t, 1).unwrap(), &Pass::routed(), Some(&mut cache)).unwrap());
    }
    let read = Tensor::cat(&read, 1).unwrap();
    assert!(apart(&read, &whole) < 1e-4, "{}", apart(&read, &whole));

    let how = Generation { tokens: 6, stop_ids: Vec::new(), sampling: Sampling::GREEDY };
    let mut text: Vec<u32> = ids.get(0).unwrap().to_vec1().unwrap();
    let written = model.generate(vec![Prompt::new(text.clone(), 0, 0)], &how, &Pass::routed(), &mut |_| Ok(()));
    for token in written.unwrap().remove(0) {
        let so_far = Tensor::new(text.as_slice(), &CPU).unwrap().unsqueeze(0).unwrap();
        let logits = model.logits(&so_far, &Pass::routed(), None).unwrap().get(0).unwrap();
        let last: Vec<f32> = logits.get(text.len() - 1).unwrap().to_vec1().unwrap();
        let best = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(best - last[token as usize] < 1e-4); // the best, or as good within what decoding may differ by
        text.push(token);
    }
}

/// What a cache reads first attends to all; what comes behind chooses.
#[test]
fn a_dense_prefill_is_dense() {
    let cfg = config(61, true);
    let (plain, made) = upcycled("ByComponents", &cfg, DType::F32);
    let (ids, model) = (ids((2, LENGTH)), sparse(&cfg, variant("ByComponents"), &made, DType::F32));
    let read = |first: usize, pass: &Pass| {
        let mut cache = KvCache::new(cfg.num_hidden_layers);
        let prompt = model.logits(&ids.narrow(1, 0, first).unwrap(), pass, Some(&mut cache)).unwrap();
        let rest = model.logits(&ids.narrow(1, first, LENGTH - first).unwrap(), pass, Some(&mut cache)).unwrap();
        (prompt, rest)
    };
    let (routed, all) = (read(30, &Pass::routed()), read(30, &Pass::all()));
    assert_eq!(bits(&routed.0), bits(&all.0));
    assert!(apart(&routed.1, &all.1) > 1e-3);
    let expected = dense(&cfg, &plain, DType::F32).logits(&ids.narrow(1, 0, 30).unwrap(), &Pass::all(), None).unwrap();
    assert_eq!(bits(&routed.0), bits(&expected));
}

/// A likelihood is that of writing: what is given is read densely, alone as beside others, and what is scored chooses.
#[rstest]
fn likelihoods_read_what_is_given_as_a_prompt(#[values("ByComponents", "FromTheStart")] name: &str) {
    let cfg = config(61, true);
    let (_, made) = upcycled(name, &cfg, DType::F32);
    let model = sparse(&cfg, variant(name), &made, DType::F32);
    let text: Vec<u32> = ids((1, LENGTH)).get(0).unwrap().to_vec1().unwrap();
    let other = [&text[..30], &[3, 1, 4, 1][..]].concat();
    let one = |tokens: &[u32], from| Continuation { tokens: tokens.to_vec(), from };
    let said = |asked: &[Continuation]| -> Vec<f64> {
        let found = model.likelihoods(asked, &Pass::routed(), false).unwrap();
        found.iter().map(|one| one.log_likelihood).collect()
    };
    let by_hand = |tokens: &[u32], from: usize| -> f64 {
        let mut cache = KvCache::new(cfg.num_hidden_layers);
        let ids = Tensor::new(tokens, &CPU).unwrap().unsqueeze(0).unwrap();
        let parts = [(0, from), (from, tokens.len() - from)];
        let logits = parts.map(|(first, count)| {
            model.logits(&ids.narrow(1, first, count).unwrap(), &Pass::routed(), Some(&mut cache)).unwrap()
        });
        let logits = Tensor::cat(&logits, 1).unwrap().get(0).unwrap();
        let log_p = candle_nn::ops::log_softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap();
        (from..tokens.len()).map(|t| f64::from(log_p[t - 1][tokens[t] as usize])).sum()
    };
    let expected = [by_hand(&text, 30), by_hand(&other, 30)];
    let together = said(&[one(&text, 30), one(&other, 30)]);
    let alone = [said(&[one(&text, 30)])[0], said(&[one(&other, 30)])[0]];
    // What is given reaches further in one of these than what both begin with.
    let uneven = said(&[one(&text, 32), one(&other, 30)]);
    for (found, expected) in together.iter().chain(&alone).zip(expected.iter().chain(&expected)) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}"); // ten log-probabilities, of logits within 1e-4
    }
    assert!((uneven[0] - by_hand(&text, 32)).abs() < 1e-3 && (uneven[1] - expected[1]).abs() < 1e-3);
}

/// A dense model that is asked for pairs is the one that declares them; asked for all again, the dense one.
#[rstest]
fn a_dense_model_attends_as_one_that_declares_it(
    #[values("ByComponents", "ByBlocks", "Nearest")] name: &str,
    #[values(DType::F32, DType::BF16)] dtype: DType,
) {
    let cfg = Arch { family: Family::Llama, ..config(61, true) };
    let (plain, made) = upcycled(name, &cfg, dtype);
    let (ids, attention) = (ids((2, LENGTH)), variant(name).spec.attention);
    let expected = sparse(&cfg, variant(name), &made, dtype).logits(&ids, &Pass::routed(), None).unwrap();
    let asked = dense(&cfg, &plain, dtype).with_attention(&attention).unwrap();
    assert_eq!(asked.attention(), attention);
    assert_eq!(bits(&asked.logits(&ids, &Pass::routed(), None).unwrap()), bits(&expected));
    let all = asked.with_attention(&AttentionSpec::Dense).unwrap();
    let expected = dense(&cfg, &plain, dtype).logits(&ids, &Pass::all(), None).unwrap();
    assert_eq!(bits(&all.logits(&ids, &Pass::routed(), None).unwrap()), bits(&expected));
    let none = "pairs(keep = 0.0, index = window)".parse().unwrap();
    assert!(message(dense(&cfg, &plain, dtype).with_attention(&none).map(drop)).contains("`keep` is 0"));
}

/// The first queries see so few keys that all are kept: they agree with the dense model.
#[test]
fn queries_that_keep_all_agree_with_the_dense_model() {
    let cfg = config(61, true);
    let (plain, made) = upcycled("ByComponents", &cfg, DType::F32);
    let ids = ids((2, LENGTH));
    let routed = sparse(&cfg, variant("ByComponents"), &made, DType::F32).logits(&ids, &Pass::routed(), None).unwrap();
    let expected = dense(&cfg, &plain, DType::F32).logits(&ids, &Pass::all(), None).unwrap();
    let first = |x: &Tensor| x.narrow(1, 0, 3).unwrap();
    assert!(apart(&first(&routed), &first(&expected)) < 1e-5);
}

/// The derivative of a routed loss along a direction of the attention's own weights, in f64; the choice, made in f32, does not move so little as these steps do.
#[rstest]
fn gradients_are_those_of_differences(#[values("ByComponents", "ByBlocks", "Nearest")] name: &str) {
    let cfg = Arch { family: Family::Llama, ..config(13, false) };
    let (_, made) = upcycled(name, &cfg, DType::F64);
    let (ids, targets) = (ids((1, 17)), tinyonn::checkpoint::tokens::random_tokens(37, (1, 17), 6, &CPU).unwrap());
    let of_attention = |tensor: &str| tensor.contains("self_attn");
    let pass = Pass { training: Some(InTraining::whole(0)), ..Pass::routed() };
    let model = TinyOnnForCausalLm::new(&cfg, variant(name), &made.builder(DType::F64, of_attention)).unwrap();
    let learnt = learnt(model.lm(), (&made, &of_attention), (&ids, &targets), &pass, &Learn::default());
    let loss = |step: f64| {
        let mut moved = made.deep_copy().unwrap();
        for (at, (tensor, var)) in made.iter().enumerate().filter(|(_, (tensor, _))| of_attention(tensor)) {
            let direction = crate::gradients::inputs(at as u64, &[var.dims()]).remove(0);
            moved.remove(tensor);
            moved.insert(tensor, (var.as_tensor() + (direction * step).unwrap()).unwrap()).unwrap();
        }
        let model = TinyOnnForCausalLm::new(&cfg, variant(name), &moved.builder(DType::F64, |_| false)).unwrap();
        let losses = model.lm().token_losses(&ids, &targets, &pass).unwrap();
        losses.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let exact: f64 = made
        .iter()
        .enumerate()
        .filter(|(_, (tensor, _))| of_attention(tensor))
        .map(|(at, (_, var))| {
            let direction = crate::gradients::inputs(at as u64, &[var.dims()]).remove(0);
            let grad = learnt.grads.get(var).unwrap().copy().unwrap().to_dtype(DType::F64).unwrap();
            (grad * direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
        })
        .sum();
    let numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5;
    // As of the dense decoders: ε² times the third derivative, some thousand times the first.
    approx::assert_relative_eq!(numeric, exact, max_relative = 1e-6);
}

#[test]
fn what_a_model_cannot_compute_is_refused() {
    let built = |name: &str, cfg: &Arch| {
        let (_, made) = upcycled(name, cfg, DType::F32);
        TinyOnnForCausalLm::new(cfg, variant(name), &made.builder(DType::F32, |_| false)).map(drop)
    };
    let said = message(built("Wide", &config(61, true)));
    assert_eq!(said, "`attention`: its index reads 7 values of heads that have 6; declare 6 or fewer");
    let said = message(built("Nearest", &Arch { family: Family::Mistral, ..config(61, true) }));
    assert!(said.contains("the family mistral, which has a window") && said.contains("components(8)"), "{said}");
}

#[test]
fn directions_are_kept_beside_a_checkpoint_and_no_others_are_taken() {
    let cfg = config(61, true);
    let (_, made) = upcycled("ByDirections", &cfg, DType::F32);
    let parent = tempfile::tempdir().unwrap();
    let [own, other] = ["own", "other"].map(|name| parent.path().join(name));
    let saved = |dir: &std::path::Path, store: &ParamStore| {
        let object = TinyOnnConfig {
            active: ActiveMode::Routed,
            ..TinyOnnConfig::new(variant("ByDirections"), Partition::Contiguous, 3)
        };
        TinyOnnFolder::save(dir, &cfg.to_json(), &object, store, None).unwrap();
        ModelFolder::open(dir).unwrap()
    };
    let folder = saved(&own, &made);
    let ids = ids((1, LENGTH));
    let loaded = load_model(&own, &CPU, None).unwrap();
    let said = message(loaded.logits(&ids, &Pass::routed()));
    assert!(said.contains("the main directions of the keys, and there are none") && said.contains("fit"), "{said}");
    assert!(loaded.logits(&ids, &Pass::all()).is_ok()); // dense attention reads none

    let model = sparse(&cfg, variant("ByDirections"), &made, DType::F32);
    let text = models::ids((2, 30));
    let directions = KeyDirections::fit(&folder, model.lm(), [&text, &ids]).unwrap();
    for rows in directions.layers() {
        let product = rows.matmul(&rows.t().unwrap()).unwrap();
        let identity = Tensor::eye(6, DType::F32, &CPU).unwrap().unsqueeze(0).unwrap().repeat((2, 1, 1)).unwrap();
        assert!(apart(&product, &identity) < 1e-5); // orthonormal, rounded to f32
    }
    directions.save(&own).unwrap();
    let expected = model.with_key_directions(directions.layers()).unwrap().logits(&ids, &Pass::routed(), None).unwrap();
    let again = load_model(&own, &CPU, None).unwrap().logits(&ids, &Pass::routed()).unwrap();
    assert_eq!(bits(&again), bits(&expected));

    let mut changed = made.deep_copy().unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    let doubled = (changed.get(name).unwrap().as_tensor() * 2.0).unwrap();
    changed.remove(name);
    changed.insert(name, doubled).unwrap();
    let of_another = saved(&other, &changed);
    directions.save(&other).unwrap();
    let said = message(KeyDirections::beside(&of_another));
    assert!(said.contains("of another model") && said.contains("fit"), "{said}");
    assert!(load_model(&other, &CPU, None).is_err());
    assert!(KeyDirections::fit(&folder, dense_lm(&cfg).lm(), []).is_err());
    let few = directions.layers()[..1].to_vec();
    assert!(
        message(sparse(&cfg, variant("ByDirections"), &made, DType::F32).with_key_directions(&few))
            .contains("1 layers of 2")
    );
}

fn dense_lm(cfg: &Arch) -> TinyOnnForCausalLm {
    let (_, made) = upcycled("ByComponents", cfg, DType::F32);
    sparse(cfg, variant("ByComponents"), &made, DType::F32)
}

#[test]
fn a_declaration_is_what_a_file_holds() {
    let spec = declared::ByDirections::SPEC;
    let json = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        json["attention"],
        serde_json::json!({ "pairs": {
            "keep": 0.25, "index": { "directions": 3 }, "near": 2, "first": 1, "by": "head", "choose": "top_k", "prefill": "sparse",
        } })
    );
    assert_eq!(serde_json::from_value::<MoeSpec>(json).unwrap(), spec);
    assert!(serde_json::to_value(tinyonn::gallery::TinyOnn::SPEC).unwrap().get("attention").is_none());

    // The same in words.
    for name in ["ByComponents", "ByDirections", "ByBlocks", "Nearest", "ByLogits", "AllPairs", "ManyKeys"] {
        let attention = variant(name).spec.attention;
        assert_eq!(attention.to_string().parse(), Ok(attention), "{attention}");
        let read: AttentionSpec = serde_json::from_value(serde_json::json!(attention.to_string())).unwrap();
        assert_eq!(read, attention);
    }
    for (said, says) in [
        ("pairs(keep = 1, index = exact)", "write `keep = 1.0` for all pairs, or `keep = keys(1)`"),
        ("pairs(0.5, index = exact)", "`0.5` of `pairs` has no name"),
        ("pairs(keep = 0.5, keep = 0.5)", "said twice"),
        ("pairs(keep = 0.5, index = exact, by = heads)", "`head`, `kv_head`"),
        ("pairs(keep = 0.5, index = blocks(x))", "`x` of `blocks` is no whole number"),
        ("pairs(keep = 0.5", "does not end with a bracket"),
        ("all", "neither `dense` nor"),
    ] {
        let refused = said.parse::<AttentionSpec>().unwrap_err();
        assert!(refused.contains(says), "{refused}");
    }

    // The same in TOML, what goes without saying left out.
    let read = |text: &str| toml::from_str::<AttentionSpec>(text);
    let short = read("[pairs]\nkeep = 0.125\nindex = { components = 8 }").unwrap();
    assert_eq!(short, AttentionSpec::Pairs(PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Components(8))));
    let keys = read("[pairs]\nkeep = { keys = 64 }\nindex = \"window\"").unwrap();
    assert_eq!(keys, AttentionSpec::Pairs(PairsSpec::new(KeptPairs::Keys(64), PairIndex::Window)));
    let said = read("[pairs]\nkeep = 1\nindex = \"exact\"").unwrap_err().to_string();
    assert!(said.contains("write `1.0` for all pairs, or `{ keys = 1 }`"), "{said}");
    assert!(read("[pairs]\nkeep = -1\nindex = \"exact\"").is_err());
    assert!(read("[pairs]\nkeep = { keyz = 3 }\nindex = \"exact\"").is_err());
}
