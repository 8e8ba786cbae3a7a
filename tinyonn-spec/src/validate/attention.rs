//! The rules of attention to some pairs.

use super::{At, Found, MOST};
use crate::{AttentionSpec, KeptPairs, MoeSpec, Neurons, PairIndex};

/// The setting, as declarations write it.
const ATTENTION: &str = "attention";

impl MoeSpec {
    /// Whether something else than experts is chosen, so that a declaration may do without a hierarchy.
    pub(super) fn needs_no_levels(&self) -> bool {
        self.neurons != Neurons::All || !self.attention.is_dense()
    }
}

pub(super) fn check(spec: &MoeSpec, found: &mut Found) {
    let AttentionSpec::Pairs(pairs) = &spec.attention else { return };
    let at = |name| At::Argument(ATTENTION, name);
    match pairs.keep {
        KeptPairs::Share(share) if !(share > 0.0 && share <= 1.0) => {
            let remedy = "use a share above 0, and at most 1.0, or `keys(1024)`";
            found.add(at("keep"), format!("`keep` is {share}"), remedy);
        }
        KeptPairs::Share(_) => (),
        KeptPairs::Keys(keys) => found.count(at("keep"), "keys", keys),
    }
    match pairs.index {
        PairIndex::Components(r) => found.count(at("index"), "components", r),
        PairIndex::Directions(r) => found.count(at("index"), "directions", r),
        PairIndex::Blocks(size) => found.count(at("index"), "blocks", size),
        PairIndex::Window | PairIndex::Exact => (),
    }
    for (name, keys) in [("near", pairs.near), ("first", pairs.first)] {
        if keys > MOST {
            found.add(at(name), format!("`{name}` is {keys}"), format!("use {MOST} or less"));
        }
    }
}
