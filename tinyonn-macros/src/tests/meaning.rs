//! What accepted declarations mean: defaults, arithmetic, and the groups of an enum.

use proc_macro2::{Delimiter, Group};
use rstest::rstest;
use tinyonn_spec::{
    AttentionSpec, Balance, Combine, ExpertsAre, Gate, KeptPairs, MoeSpec, Neurons, PairIndex, PairsBy, PairsSpec,
    Pfag, Prefill, RoutePer, RouterKind, RouterSpec,
};

use super::{UNIT, tokens, understood};
use crate::errors::Errors;
use crate::variant::{Variant, snake_case};
use crate::{parse, read};

const CORTEX: &str = "enum Cortex {
    #[group(experts = 10, top_k = 3)] Language,
    #[group(router = a::B, experts = 6)] HTTPServer,
    #[group(experts = 1)] r#Type,
    #[group(experts = 2, always)] Shared,
    #[group(always, experts = 4)] Group,
}";

fn of(settings: &str) -> MoeSpec {
    understood(settings, UNIT).unwrap_or_else(|errors| panic!("{settings}: {errors:?}")).spec
}

fn declared(spec: &MoeSpec) -> impl Iterator<Item = &RouterSpec> {
    spec.levels.iter().flat_map(|level| level.routers.iter())
}

/// (name, parents, choices, top_k) of every run.
fn runs(spec: &MoeSpec) -> Vec<(&str, usize, usize, usize)> {
    declared(spec).map(|run| (&*run.name, run.parents, run.choices, run.top_k)).collect()
}

/// (name, experts) of every group that always takes part.
fn always(spec: &MoeSpec) -> Vec<(&str, usize)> {
    spec.always.iter().map(|group| (&*group.name, group.experts)).collect()
}

fn kinds(spec: &MoeSpec) -> Vec<String> {
    let kind = |kind: &RouterKind| match kind {
        RouterKind::Gaussian(form) => format!("gaussian {}", form.dim),
        RouterKind::Linear => "linear".to_owned(),
        RouterKind::LowRank { dim } => format!("linear {dim}"),
        RouterKind::Cosine => "cosine".to_owned(),
        RouterKind::Random => "random".to_owned(),
        RouterKind::Custom(path) => path.to_string(),
    };
    declared(spec).map(|run| kind(&run.kind)).collect()
}

#[rstest]
#[case("groups = 1, experts = 1", &[("group", 1, 1, 1), ("expert", 1, 1, 1)], 1, 1)]
#[case("groups = 9, experts = 0x9,", &[("group", 1, 9, 1), ("expert", 9, 9, 2)], 81, 2)]
#[case("groups = 9, experts = 9, top_k = [9, 9,]", &[("group", 1, 9, 9), ("expert", 9, 9, 9)], 81, 81)]
#[case("levels = [1_00]", &[("expert", 1, 100, 2)], 100, 2)]
#[case("levels = [7], top_k = 7", &[("expert", 1, 7, 7)], 7, 7)]
#[case("levels = [7], top_k = [3]", &[("expert", 1, 7, 3)], 7, 3)]
#[case("levels = [2, 3]", &[("group", 1, 2, 1), ("expert", 2, 3, 2)], 6, 2)]
#[case("levels = [4, 5, 6], top_k = [2, 3, 4]", &[("cluster", 1, 4, 2), ("group", 4, 5, 3), ("expert", 20, 6, 4)], 120, 24)]
#[case(
    "levels = [2, 3, 4, 1]",
    &[("division", 1, 2, 1), ("cluster", 2, 3, 1), ("group", 6, 4, 1), ("expert", 24, 1, 1)],
    24,
    1
)]
#[case("levels = [3, 5], pfag = entropy", &[("group", 1, 3, 3), ("expert", 3, 5, 5)], 15, 15)]
#[case(
    "levels = [3, 5], route_per = task, gate = unit, pfag = off, balance = none, z_loss = 0, jitter = 0.0",
    &[("group", 1, 3, 1), ("expert", 3, 5, 2)],
    15,
    2
)]
#[case("levels = [3, 5], pfag = off", &[("group", 1, 3, 1), ("expert", 3, 5, 2)], 15, 2)]
#[case("levels = [3, 5], pfag = nucleus(1), top_k = [2, 3]", &[("group", 1, 3, 2), ("expert", 3, 5, 3)], 15, 6)]
fn an_even_hierarchy(
    #[case] settings: &str,
    #[case] expected: &[(&str, usize, usize, usize)],
    #[case] experts: usize,
    #[case] active: usize,
) {
    let spec = of(settings);
    assert_eq!(runs(&spec), expected);
    assert_eq!((spec.experts(), spec.active_experts()), (experts, active));
    assert!(spec.always.is_empty());
}

#[rstest]
#[case("groups = 4, experts = 16, always = 2, top_k = [2, 3]", 66, 8)]
#[case("always = 1, levels = [5]", 6, 3)]
fn experts_that_always_take_part_beside_an_even_hierarchy(
    #[case] settings: &str,
    #[case] experts: usize,
    #[case] active: usize,
) {
    let spec = of(settings);
    assert_eq!((spec.experts(), spec.active_experts()), (experts, active));
    assert_eq!(always(&spec), [("shared", spec.always_experts())]);
}

/// Where neurons are what is chosen, a hierarchy may be left out: one expert, or as many as are said, hold them all.
#[rstest]
#[case("neurons = gate", Neurons::Gate, 1)]
#[case("neurons = pruned, always = 3", Neurons::Pruned, 3)]
fn neurons_without_a_hierarchy(#[case] settings: &str, #[case] neurons: Neurons, #[case] experts: usize) {
    let spec = of(settings);
    assert_eq!((spec.neurons, spec.levels.len()), (neurons, 0));
    assert_eq!((spec.experts(), spec.active_experts(), spec.routed_experts()), (experts, experts, 0));
    assert_eq!(always(&spec), [("shared", experts)]);
}

/// Pairs alone leave the MLP as it is: no levels, one expert that holds all neurons.
#[rstest]
#[case("", PairsSpec::new(KeptPairs::Share(0.125), PairIndex::Components(8)))]
#[case("keep = keys(64), index = window, near = 0, first = 0", PairsSpec {
    near: 0,
    first: 0,
    ..PairsSpec::new(KeptPairs::Keys(64), PairIndex::Window)
})]
#[case("first = 1, by = head, index = directions(16), prefill = sparse, keep = 1.0, choose = top_k", PairsSpec {
    first: 1,
    by: PairsBy::Head,
    prefill: Prefill::Sparse,
    ..PairsSpec::new(KeptPairs::Share(1.0), PairIndex::Directions(16))
})]
fn pairs_without_a_hierarchy(#[case] arguments: &str, #[case] pairs: PairsSpec) {
    let arguments = if arguments.is_empty() { "keep = 0.125, index = components(8)" } else { arguments };
    let spec = of(&format!("attention = pairs({arguments})"));
    assert_eq!((spec.attention, spec.levels.len(), spec.experts()), (AttentionSpec::Pairs(pairs), 0, 1));
    let within = of(&format!("levels = [2, 2], neurons = gate, attention = pairs({arguments})"));
    assert_eq!((within.attention, within.experts()), (spec.attention, 4));
    assert!(of("levels = [2], attention = dense").attention.is_dense());
}

#[test]
fn neurons_within_a_hierarchy() {
    let spec = of("groups = 32, experts = 8, top_k = [8, 8], always = 4, neurons = gate");
    assert_eq!((spec.neurons, spec.experts(), spec.active_experts()), (Neurons::Gate, 260, 68));
    assert_eq!(of("groups = 2, experts = 2").neurons, Neurons::All);
}

#[rstest]
#[case("", &[("group", 1, 3, 1), ("language", 1, 10, 3), ("http_server", 1, 6, 2), ("type", 1, 1, 1)], 9)]
#[case("top_k = 2", &[("group", 1, 3, 2), ("language", 1, 10, 3), ("http_server", 1, 6, 2), ("type", 1, 1, 1)], 11)]
#[case(
    "pfag = surprisal",
    &[("group", 1, 3, 3), ("language", 1, 10, 3), ("http_server", 1, 6, 6), ("type", 1, 1, 1)],
    16
)]
fn named_groups(#[case] settings: &str, #[case] expected: &[(&str, usize, usize, usize)], #[case] active: usize) {
    let Variant { spec, groups, .. } = understood(settings, CORTEX).ok().unwrap();
    assert_eq!(runs(&spec), expected);
    assert_eq!(spec.levels.iter().map(|level| &*level.name).collect::<Vec<_>>(), ["group", "expert"]);
    assert_eq!(always(&spec), [("shared", 2), ("group", 4)]);
    assert_eq!((spec.experts(), spec.active_experts()), (23, active));
    let names: Vec<_> = groups.iter().map(|group| (group.ident.to_string(), group.name.as_str())).collect();
    let expected = [("Language", "language"), ("HTTPServer", "http_server"), ("r#Type", "type"), ("Shared", "shared")];
    assert_eq!(names[..4], expected.map(|(ident, name)| (ident.to_owned(), name)));
}

#[rstest]
#[case("levels = [2, 2]", UNIT, &["gaussian 64", "gaussian 64"])]
#[case("levels = [2, 2], router = gaussian(dim = 3)", UNIT, &["gaussian 3", "gaussian 3"])]
#[case("levels = [2, 2], router = [linear, cosine]", UNIT, &["linear", "cosine"])]
#[case("levels = [2, 2], router = [Mine, ::my::Own<3, [u8; 4]>]", UNIT, &["Mine", "::my::Own<3,[u8;4]>"])]
#[case("levels = [2, 2], router = random", UNIT, &["random", "random"])]
#[case("", CORTEX, &["gaussian 64", "gaussian 64", "a::B", "gaussian 64"])]
#[case("router = cosine", CORTEX, &["cosine", "cosine", "a::B", "cosine"])]
#[case("router = [linear, cosine]", CORTEX, &["linear", "cosine", "a::B", "cosine"])]
fn routers(#[case] settings: &str, #[case] item: &str, #[case] expected: &[&str]) {
    assert_eq!(kinds(&understood(settings, item).ok().unwrap().spec), expected);
}

#[test]
fn all_that_is_not_said_has_a_default() {
    let spec = of("levels = [2]");
    assert_eq!((spec.experts_are, spec.combine, spec.gate), (ExpertsAre::Slice, Combine::Concat, Gate::Unit));
    assert!(spec.partition.is_none() && spec.activation.is_none());
    assert_eq!((spec.route_per, spec.pfag, spec.balance), (RoutePer::Token, Pfag::Off, Balance::None));
    assert_eq!((spec.z_loss, spec.jitter), (0.0, 0.0));
    let replicas = of("levels = [2], experts_are = replicate");
    assert_eq!((replicas.combine, replicas.gate), (Combine::Merge, Gate::Normalised));
    assert_eq!(of("levels = [2], route_per = sequence").route_per, RoutePer::Sequence { first: 64 });
}

#[test]
fn numbers_are_read_with_a_point_and_without() {
    let spec = of("levels = [2], pfag = nucleus(1), balance = loss(1e-2), z_loss = 1_0, jitter = 0.25");
    assert_eq!(spec.pfag, Pfag::Nucleus { mass: 1.0 });
    assert_eq!(spec.balance, Balance::Loss { coefficient: 0.01 });
    assert_eq!((spec.z_loss, spec.jitter), (10.0, 0.25));
    assert_eq!(of("levels = [2], balance = bias(0)").balance, Balance::Bias { rate: 0.0 });
}

#[test]
fn what_is_substituted_by_another_macro_is_read_through() {
    let ten = Group::new(Delimiter::None, tokens("10"));
    let mut errors = Errors::default();
    let declaration = parse::parse(quote::quote!(groups = #ten, experts = #ten), tokens(UNIT), &mut errors);
    let variant = read::read(&declaration, &mut errors);
    assert_eq!(variant.map(|variant| variant.spec.experts()), Some(100));
}

#[rstest]
#[case("WrittenWords", "written_words")]
#[case("HTTPServer", "http_server")]
#[case("SwiGLU", "swi_glu")]
#[case("V100Experts", "v100_experts")]
#[case("H2O", "h2o")]
#[case("r#Type", "type")]
fn names_are_in_snake_case(#[case] written: &str, #[case] name: &str) {
    let ident: proc_macro2::Ident = syn::parse_str(written).unwrap_or_else(|e| panic!("{written}: {e}"));
    assert_eq!(snake_case(&ident), name);
}
