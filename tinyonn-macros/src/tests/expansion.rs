//! Snapshots of whole expansions.

use std::path::Path;

use rstest::rstest;

use super::tokens;
use crate::declare;

fn pretty(settings: &str, item: &str) -> String {
    prettyplease::unparse(&syn::parse2(declare(tokens(settings), tokens(item))).unwrap())
}

/// `few.rs` is the README's. After a deliberate change: `UPDATE_EXPANSION=1 cargo test -p tinyonn-macros`, then read the difference.
#[rstest]
#[case::few(
    "few.rs",
    "groups = 7, experts = 3, router = gaussian(dim = 16), top_k = [2, 1]",
    "/// Seven groups of three experts; a token takes part in two groups, with one expert of each.\npub struct Few;"
)]
#[case::tiny_onn(
    "tiny_onn.rs",
    "groups = 10, experts = 10, router = gaussian, top_k = [8, 8]",
    "/// The seed's hierarchy.\n#[must_use] pub struct TinyOnn;"
)]
#[case::by_sequence(
    "by_sequence.rs",
    "experts = 3, groups = 7, route_per = sequence(8), router = gaussian(dim = 5)",
    "#[derive(Debug, Default)] pub(crate) struct BySequence;"
)]
#[case::cortex(
    "cortex.rs",
    "router = gaussian(dim = 64, reduce = mean), balance = bias(0.001)",
    "/// Named, uneven groups.\npub enum Cortex {
        /// Words.
        #[group(experts = 10, top_k = 2)] Language,
        #[group(experts = 6, router = cosine)] Arithmetic,
        #[group(experts = 2, always)] SharedAmongAll,
    }"
)]
#[case::deep(
    "deep.rs",
    "levels = [4, 5, 5], router = [linear, gaussian(covariance = shared, project = random), my::Router], \
     top_k = [1, 2, 2], pfag = nucleus(0.9), z_loss = 0.001, jitter = 0.01",
    "struct Deep;"
)]
#[case::merged(
    "merged.rs",
    "levels = [8], experts_are = replicate, combine = merge, route_per = segment(256), top_k = 3, \
     router = gaussian(project = identity, covariance = isotropic, reduce = sum)",
    "pub struct Merged;"
)]
#[case::of_ones_own(
    "of_ones_own.rs",
    "groups = 2, experts = 2, router = Mine, activation = my::Relu2, combine = dispatch, gate = scaled, partition = sps",
    "pub struct OfOnesOwn;"
)]
#[case::long("long.rs", "attention = pairs(keep = 0.125, index = components(8))", "pub struct Long;")]
#[case::refused("refused.rs", "groups = 0, experts = 2", "/// Kept.\npub struct Refused;")]
#[case::refused_groups("refused_groups.rs", "top_k = 5", "pub enum RefusedGroups { #[group(experts = 2)] Alone }")]
fn expands_to(#[case] file: &str, #[case] settings: &str, #[case] item: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expansion").join(file);
    let written = pretty(settings, item);
    if std::env::var_os("UPDATE_EXPANSION").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    assert_eq!(written, std::fs::read_to_string(&path).unwrap(), "the expansion differs from {}", path.display());
}
