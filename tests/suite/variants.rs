//! Declared variants: the registry, what a declaration becomes, and its routing against loops over the definitions.
//!
//! [`declared`] is the set of hierarchies that other subjects of the suite run over too.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use rstest::rstest;
use tinyonn::decoder::{Arch, AttentionBias, Family, FeedForward, Mlp, Pass, RopeScaling};
use tinyonn::moe::{
    self, GaussianMoeRouter, GaussianSpec, MoeLayer, MoeSpec, RoutePer, Router, RouterKind, RouterShape, RouterSpec,
    Scores,
};

use crate::gradients::inputs;
use crate::routing::layer_gates;

/// Hierarchies of several shapes: one expert, few, the seed's, and shapes that divide nothing.
pub(crate) mod declared {
    use tinyonn::moe::moe;

    /// One expert: the dense MLP in other words.
    #[moe(groups = 1, experts = 1)]
    pub(crate) struct Moe1x1;

    /// All defaults.
    #[moe(groups = 2, experts = 4)]
    pub(crate) struct Moe2x4;

    /// The seed's shape.
    #[moe(groups = 10, experts = 10, router = gaussian, top_k = [8, 8])]
    pub(crate) struct Moe10x10;

    /// Odd numbers, a projection narrower than the input.
    #[moe(groups = 7, experts = 3, router = gaussian(dim = 5), top_k = [3, 2])]
    pub(crate) struct Moe7x3;

    /// Every group, one expert of each.
    #[moe(groups = 12, experts = 8, top_k = [12, 1], route_per = token)]
    pub(crate) struct Moe12x8;

    /// One decision a sequence.
    #[moe(groups = 4, experts = 4, top_k = [2, 2], route_per = sequence(8))]
    pub(crate) struct MoeSequence;
}

/// A user's crate at its least convenient: everything that generated code might name means something else, lints deny.
#[deny(missing_docs, unused, unreachable_pub, clippy::all, clippy::pedantic)]
mod crowded {
    use tinyonn::moe::moe;

    /// Documented, derives of its own, switched on.
    #[moe(groups = 2, experts = 3)]
    #[cfg(test)]
    #[derive(Clone)]
    pub(crate) struct Crowded;

    /// Switched off, with all that the macro writes for it.
    #[moe(groups = 2, experts = 3)]
    #[cfg(not(test))]
    pub(crate) struct Absent;

    // Private, undocumented, named like what its expansion uses.
    #[moe(groups = 1, experts = 2)]
    struct Tensor;

    macro_rules! declare {
        ($name:ident, $groups:literal, $experts:expr) => {
            #[moe(groups = $groups, experts = $experts)]
            pub(crate) struct $name;
        };
    }
    declare!(Substituted, 3, 5);

    #[allow(dead_code)]
    mod names {
        pub(super) struct Result;
        pub(super) struct Option;
        pub(super) struct Box;
        pub(super) struct Vec;
        pub(super) struct MoeSpec;
        pub(super) struct Cow;
        pub(super) trait Router {}
        pub(super) trait FeedForward {}
        pub(super) fn route() {}
    }
    #[allow(unused_imports)]
    use names::*;
    #[allow(non_snake_case, dead_code)]
    fn Ok() {}
    #[allow(unused_macros)]
    macro_rules! vec {
        () => {};
    }
}

const HIDDEN: usize = 24;
const WIDTH: usize = 131;
const ALL: [&str; 6] = ["Moe1x1", "Moe2x4", "Moe10x10", "Moe7x3", "Moe12x8", "MoeSequence"];

fn config() -> Arch {
    Arch {
        vocab_size: 32,
        hidden_size: HIDDEN,
        intermediate_size: WIDTH,
        hidden_act: "silu".into(),
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 12,
        max_position_embeddings: 64,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: AttentionBias::None,
        family: Family::Qwen3,
        rope_scaling: RopeScaling::None,
        nope_layers: Vec::new(),
    }
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    inputs(seed, &[shape]).remove(0).to_dtype(DType::F32).unwrap()
}

/// Random parameters for every name that `spec` asks for; neurons are dealt out to the experts like cards.
fn parameters(spec: &MoeSpec) -> HashMap<String, Tensor> {
    let owners: Vec<u32> = (0..WIDTH).map(|i| (i * 37 % WIDTH % spec.experts()) as u32).collect();
    let mut all = HashMap::from([
        ("gate_proj.weight".to_owned(), random(1, &[WIDTH, HIDDEN])),
        ("up_proj.weight".to_owned(), random(2, &[WIDTH, HIDDEN])),
        ("down_proj.weight".to_owned(), random(3, &[WIDTH, HIDDEN])),
        ("neuron_expert".to_owned(), Tensor::from_vec(owners, WIDTH, &Device::Cpu).unwrap()),
    ]);
    for (index, level) in spec.levels.iter().enumerate() {
        let [RouterSpec { parents, choices, kind: RouterKind::Gaussian(form), .. }] = &*level.routers else {
            panic!("even levels of Gaussian routers are declared")
        };
        let routers = router_parameters(10 * (1 + index as u64), form.dim, *parents, *choices);
        all.extend(routers.into_iter().map(|(name, value)| (format!("{}_router.{name}", level.name), value)));
    }
    all
}

fn router_parameters(seed: u64, dim: usize, parents: usize, choices: usize) -> HashMap<String, Tensor> {
    let r = dim.min(HIDDEN);
    HashMap::from([
        ("projection".to_owned(), (random(seed, &[r, HIDDEN]) * 0.3).unwrap()),
        ("mean".to_owned(), random(seed + 1, &[parents, choices, r])),
        ("log_variance".to_owned(), random(seed + 2, &[parents, choices, r])),
        ("log_prior".to_owned(), random(seed + 3, &[parents, choices])),
        ("scale".to_owned(), Tensor::new(0.7 * r as f32, &Device::Cpu).unwrap()),
    ])
}

fn builder(parameters: &HashMap<String, Tensor>) -> VarBuilder<'static> {
    VarBuilder::from_tensors(parameters.clone(), DType::F32, &Device::Cpu)
}

fn built(name: &str) -> (MoeLayer, HashMap<String, Tensor>) {
    let variant = moe::variant(name).unwrap();
    let parameters = parameters(&variant.spec);
    ((variant.build)(&config(), 0, builder(&parameters)).unwrap(), parameters)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn flat(parameters: &HashMap<String, Tensor>, name: &str) -> Vec<f64> {
    parameters[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// log p of every choice under each parent, by the definition: z = P x; ℓ = s · mean_j [−½ (z − μ)² / σ² − ½ log σ²] + log π.
fn naive_log_probs(parameters: &HashMap<String, Tensor>, prefix: &str, x: &[f32]) -> Vec<Vec<f64>> {
    let get = |name: &str| flat(parameters, &format!("{prefix}{name}"));
    let (projection, mean, log_variance) = (get("projection"), get("mean"), get("log_variance"));
    let (log_prior, scale) = (get("log_prior"), get("scale")[0]);
    let z: Vec<f64> = projection
        .chunks_exact(HIDDEN)
        .map(|row| row.iter().zip(x).map(|(weight, value)| weight * f64::from(*value)).sum())
        .collect();
    let r = z.len();
    let logit = |c: usize| {
        let terms = z.iter().enumerate().map(|(j, z)| {
            let (mean, log_variance) = (mean[c * r + j], log_variance[c * r + j]);
            -0.5 * (z - mean).powi(2) / log_variance.exp() - 0.5 * log_variance
        });
        scale * terms.sum::<f64>() / r as f64 + log_prior[c]
    };
    let choices = parameters[&format!("{prefix}log_prior")].dim(1).unwrap();
    let logits: Vec<f64> = (0..log_prior.len()).map(logit).collect();
    logits
        .chunks_exact(choices)
        .map(|row| {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = top + row.iter().map(|logit| (logit - top).exp()).sum::<f64>().ln();
            row.iter().map(|logit| logit - total).collect()
        })
        .collect()
}

/// Whether fewer than `k` of the others are better.
fn taken(row: &[f64], choice: usize, k: usize) -> bool {
    row.iter().filter(|other| **other > row[choice]).count() < k
}

/// The gates of one decision, expert by expert, by the definition of the two-level selection.
fn naive_gates(spec: &MoeSpec, parameters: &HashMap<String, Tensor>, x: &[f32]) -> Vec<f32> {
    let [group, expert] = &*spec.levels else { panic!("two levels are declared") };
    let (group, expert) = (&group.routers[0], &expert.routers[0]);
    let groups = naive_log_probs(parameters, "group_router.", x);
    let experts = naive_log_probs(parameters, "expert_router.", x);
    (0..spec.experts())
        .map(|n| {
            let (g, e) = (n / expert.choices, n % expert.choices);
            f32::from(taken(&groups[0], g, group.top_k) && taken(&experts[g], e, expert.top_k))
        })
        .collect()
}

fn gates(layer: &MoeLayer, x: &Tensor) -> Vec<Vec<f32>> {
    layer_gates(layer, x, &Pass::routed())
}

#[rstest]
#[case("Moe1x1", &declared::Moe1x1::SPEC, [(1, 1), (1, 1)])]
#[case("Moe2x4", &declared::Moe2x4::SPEC, [(2, 1), (4, 2)])]
#[case("Moe10x10", &declared::Moe10x10::SPEC, [(10, 8), (10, 8)])]
#[case("Moe7x3", &declared::Moe7x3::SPEC, [(7, 3), (3, 2)])]
#[case("Moe12x8", &declared::Moe12x8::SPEC, [(12, 12), (8, 1)])]
#[case("MoeSequence", &declared::MoeSequence::SPEC, [(4, 2), (4, 2)])]
#[case("TinyOnn", &tinyonn::gallery::TinyOnn::SPEC, [(10, 8), (10, 8)])]
fn is_found_by_name_as_it_was_declared(
    #[case] name: &str,
    #[case] spec: &MoeSpec,
    #[case] choices_and_top_k: [(usize, usize); 2],
) {
    let variant = moe::variant(name).unwrap();
    assert_eq!(variant.spec, *spec);
    assert_eq!(spec.name, name);
    let routers: Vec<&RouterSpec> = spec.levels.iter().flat_map(|level| level.routers.iter()).collect();
    assert_eq!(routers.iter().map(|run| (run.choices, run.top_k)).collect::<Vec<_>>(), choices_and_top_k);
    assert_eq!(routers.iter().map(|run| run.parents).collect::<Vec<_>>(), [1, choices_and_top_k[0].0]);
    assert_eq!(spec.levels.iter().map(|level| &*level.name).collect::<Vec<_>>(), ["group", "expert"]);
    let dim = if name == "Moe7x3" { 5 } else { 64 };
    assert!(routers.iter().all(|run| run.kind == RouterKind::Gaussian(GaussianSpec::new(dim))));
    let sequence = RoutePer::Sequence { first: 8 };
    assert_eq!(spec.route_per, if name == "MoeSequence" { sequence } else { RoutePer::Token });
    moe::check(spec).unwrap();
    let json = serde_json::to_string(spec).unwrap();
    assert_eq!(serde_json::from_str::<MoeSpec>(&json).unwrap(), *spec, "{json}");
}

#[test]
fn the_registry_says_where_and_refuses_unknown_names_by_listing_known_ones() {
    assert_eq!(moe::variant("Moe2x4").unwrap().module_path, "suite::variants::declared");
    assert_eq!(moe::variant("TinyOnn").unwrap().module_path, "tinyonn::gallery");
    let error = moe::variant("Moe3x3").map(|_| ()).unwrap_err().to_string();
    for known in ALL.into_iter().chain(["Moe3x3", "TinyOnn", "my_variants"]) {
        assert!(error.contains(known), "{error}");
    }
}

#[test]
fn names_in_scope_attributes_and_other_macros_do_not_disturb_a_declaration() {
    for (name, experts) in [("Crowded", 6), ("Tensor", 2), ("Substituted", 15)] {
        assert_eq!(built(name).0.spec().experts(), experts);
    }
    assert_eq!(crowded::Crowded::SPEC.experts(), crowded::Substituted::SPEC.experts() - 9);
    assert!(moe::variant("Absent").is_err());
}

#[rstest]
fn all_active_is_the_dense_mlp_bit_for_bit(
    #[values("Moe1x1", "Moe2x4", "Moe10x10", "Moe7x3", "Moe12x8", "MoeSequence")] name: &str,
) {
    let (layer, parameters) = built(name);
    let dense = Mlp::new(&config(), 0, &builder(&parameters)).unwrap();
    let x = random(5, &[2, 9, HIDDEN]);
    let ctx = Pass::all();
    assert_eq!(bits(&layer.forward(&x, &ctx).unwrap().0), bits(&dense.forward(&x, &ctx).unwrap().0));
    assert_eq!(layer.experts().layer(), 0);
}

#[rstest]
fn each_token_takes_the_experts_that_the_definition_takes(
    #[values("Moe1x1", "Moe2x4", "Moe10x10", "Moe7x3", "Moe12x8")] name: &str,
) {
    let (layer, parameters) = built(name);
    let x = random(6, &[2, 11, HIDDEN]);
    let tokens = x.flatten_to(1).unwrap().to_vec2::<f32>().unwrap();
    let gates = gates(&layer, &x);
    for (token, gates) in tokens.iter().zip(&gates) {
        let ones = gates.iter().filter(|gate| gate.to_bits() == 1f32.to_bits()).count();
        assert_eq!(ones, layer.spec().active_experts());
        assert_eq!(*gates, naive_gates(layer.spec(), &parameters, token));
    }
    let distinct: std::collections::BTreeSet<Vec<u32>> =
        gates.iter().map(|row| row.iter().map(|gate| gate.to_bits()).collect()).collect();
    assert!(name == "Moe1x1" || distinct.len() > 1, "all tokens chose alike: nothing was tested");
}

#[test]
fn a_sequence_decides_once_by_the_mean_of_its_first_tokens() {
    let (layer, parameters) = built("MoeSequence");
    let (sequences, length, first) = (5, 13, 8);
    let x = random(7, &[sequences, length, HIDDEN]);
    let mean = x.narrow(1, 0, first).unwrap().mean(1).unwrap().to_vec2::<f32>().unwrap();
    let gates = gates(&layer, &x);
    for (sequence, rows) in gates.chunks_exact(length).enumerate() {
        let expected = naive_gates(layer.spec(), &parameters, &mean[sequence]);
        for (t, row) in rows.iter().enumerate() {
            assert_eq!(*row, if t < first { vec![1.0; 16] } else { expected.clone() }, "token {t}");
        }
    }
    assert!(gates.iter().skip(length - 1).step_by(length).any(|row| *row != gates[length - 1]));
}

#[rstest]
fn log_probs_are_those_of_the_formula_and_sum_to_one(
    #[values((1, 5), (7, 3))] (parents, choices): (usize, usize),
    #[values(1, 5, 24, 64)] dim: usize,
) {
    let parameters = router_parameters(40, dim, parents, choices);
    let router = router(dim, (parents, choices), &builder(&parameters));
    let x = random(8, &[6, HIDDEN]);
    let log_probs = candle_nn::ops::log_softmax(&router.logits(&x).unwrap(), D::Minus1).unwrap();
    assert_eq!(log_probs.dims(), [6, parents, choices]);
    let log_probs = log_probs.to_vec3::<f32>().unwrap();
    for (x, found) in x.to_vec2::<f32>().unwrap().iter().zip(&log_probs) {
        for (found, expected) in found.iter().zip(naive_log_probs(&parameters, "", x)) {
            let sum: f64 = found.iter().map(|value| f64::from(*value).exp()).sum();
            approx::assert_abs_diff_eq!(sum, 1.0, epsilon = 1e-5);
            for (found, expected) in found.iter().zip(expected) {
                approx::assert_relative_eq!(f64::from(*found), expected, max_relative = 1e-5, epsilon = 1e-5);
            }
        }
    }
}

fn router(dim: usize, (parents, choices): (usize, usize), vb: &VarBuilder<'_>) -> GaussianMoeRouter {
    let shape = RouterShape { hidden: HIDDEN, parents, choices };
    GaussianMoeRouter::with_form(shape, &GaussianSpec::new(dim), vb).unwrap()
}

#[test]
fn a_layer_scores_with_its_routers() {
    let (layer, parameters) = built("Moe7x3");
    let x = random(9, &[4, HIDDEN]);
    let levels = Scores::new(&layer, &x).unwrap().logits;
    assert_eq!(levels.iter().map(|level| level[0].dims().to_vec()).collect::<Vec<_>>(), [[4, 1, 7], [4, 7, 3]]);
    for (level, prefix) in levels.iter().zip(["group_router", "expert_router"]) {
        let own = router(5, (level[0].dim(1).unwrap(), level[0].dim(2).unwrap()), &builder(&parameters).pp(prefix));
        assert_eq!(bits(&level[0]), bits(&own.logits(&x).unwrap()));
    }
}

#[test]
fn a_parameter_that_is_missing_is_named() {
    let variant = moe::variant("Moe2x4").unwrap();
    for name in ["gate_proj.weight", "neuron_expert", "group_router.mean", "expert_router.scale"] {
        let mut parameters = parameters(&variant.spec);
        parameters.remove(name).unwrap();
        let error = (variant.build)(&config(), 0, builder(&parameters)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
