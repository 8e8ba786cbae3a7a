//! What accepted declarations mean: defaults, arithmetic, and the groups of an enum.

use proc_macro2::{Delimiter, Group};
use rstest::rstest;

use super::{UNIT, tokens, understood};
use crate::errors::{Errors, source};
use crate::keywords::{Combine, ExpertsAre, Gate};
use crate::variant::{Balance, Pfag, RoutePer, Router, Variant};
use crate::{parse, validate};

const CORTEX: &str = "enum Cortex {
    #[group(experts = 10, top_k = 3)] Language,
    #[group(router = a::B, experts = 6)] HTTPServer,
    #[group(experts = 1)] r#Type,
    #[group(experts = 2, always)] Shared,
    #[group(always, experts = 4)] Group,
}";

fn of(settings: &str) -> Variant {
    understood(settings, UNIT).unwrap_or_else(|errors| panic!("{settings}: {errors:?}"))
}

/// (name, parents, choices, top_k) of every run.
fn runs(variant: &Variant) -> Vec<(&str, usize, usize, usize)> {
    let runs = variant.levels.iter().flat_map(|level| &level.runs);
    runs.map(|run| (run.name.as_str(), run.parents, run.choices, run.top_k)).collect()
}

fn kinds(variant: &Variant) -> Vec<String> {
    let runs = variant.levels.iter().flat_map(|level| &level.runs);
    let kind = |router: &Router| match router {
        Router::Gaussian(form) => format!("gaussian {}", form.dim),
        Router::Linear => "linear".to_owned(),
        Router::Cosine => "cosine".to_owned(),
        Router::Random => "random".to_owned(),
        Router::Custom(path) => source(path),
    };
    runs.map(|run| kind(&run.router)).collect()
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
    let variant = of(settings);
    assert_eq!(runs(&variant), expected);
    assert_eq!((variant.experts(), variant.active_experts()), (experts, active));
    assert!(variant.always.is_empty() && variant.groups.is_empty());
}

#[rstest]
#[case("groups = 4, experts = 16, always = 2, top_k = [2, 3]", 66, 8)]
#[case("always = 1, levels = [5]", 6, 3)]
fn experts_that_always_take_part_beside_an_even_hierarchy(
    #[case] settings: &str,
    #[case] experts: usize,
    #[case] active: usize,
) {
    let variant = of(settings);
    assert_eq!((variant.experts(), variant.active_experts()), (experts, active));
    let always: Vec<_> = variant.always.iter().map(|group| (group.name.as_str(), group.experts)).collect();
    assert_eq!(always, [("shared", variant.always_experts())]);
    assert!(variant.groups.is_empty());
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
    let variant = understood(settings, CORTEX).ok().unwrap();
    assert_eq!(runs(&variant), expected);
    assert_eq!(variant.levels.iter().map(|level| level.name).collect::<Vec<_>>(), ["group", "expert"]);
    let always: Vec<_> = variant.always.iter().map(|group| (group.name.as_str(), group.experts)).collect();
    assert_eq!(always, [("shared", 2), ("group", 4)]);
    assert_eq!((variant.experts(), variant.active_experts()), (23, active));
    let names: Vec<_> = variant.groups.iter().map(|group| (group.ident.to_string(), group.name.as_str())).collect();
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
    assert_eq!(kinds(&understood(settings, item).ok().unwrap()), expected);
}

#[test]
fn all_that_is_not_said_has_a_default() {
    let variant = of("levels = [2]").behaviour;
    assert_eq!(
        (variant.experts_are, variant.combine, variant.gate),
        (ExpertsAre::Slice, Combine::Concat, Some(Gate::Unit))
    );
    assert!(variant.partition.is_none() && variant.activation.is_none());
    assert!(matches!(variant.route_per, RoutePer::Token) && matches!(variant.pfag, Pfag::Off));
    assert!(matches!(variant.balance, Balance::None) && variant.z_loss == 0.0 && variant.jitter == 0.0);
    let replicas = of("levels = [2], experts_are = replicate").behaviour;
    assert_eq!((replicas.combine, replicas.gate), (Combine::Merge, None));
    assert!(matches!(of("levels = [2], route_per = sequence").behaviour.route_per, RoutePer::Sequence { first: 64 }));
}

#[test]
fn numbers_are_read_with_a_point_and_without() {
    let variant = of("levels = [2], pfag = nucleus(1), balance = loss(1e-2), z_loss = 1_0, jitter = 0.25").behaviour;
    assert!(matches!(variant.pfag, Pfag::Nucleus { mass: 1.0 }));
    assert!(matches!(variant.balance, Balance::Loss { coefficient: 0.01 }));
    assert_eq!((variant.z_loss, variant.jitter), (10.0, 0.25));
    assert!(matches!(of("levels = [2], balance = bias(0)").behaviour.balance, Balance::Bias { rate: 0.0 }));
}

#[test]
fn what_is_substituted_by_another_macro_is_read_through() {
    let ten = Group::new(Delimiter::None, tokens("10"));
    let mut errors = Errors::default();
    let declaration = parse::parse(quote::quote!(groups = #ten, experts = #ten), tokens(UNIT), &mut errors);
    let variant = validate::validate(&declaration, &mut errors);
    assert_eq!(variant.map(|variant| variant.experts()), Some(100));
}
