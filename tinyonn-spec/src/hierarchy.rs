//! The hierarchy: levels, the routers of a level, and the groups that no router chooses.
//!
//! ```
//! use tinyonn::moe::{AlwaysSpec, GaussianSpec, LevelSpec, RouterKind, RouterShape, RouterSlot, RouterSpec};
//!
//! // Two groups, one of which is taken; in each a router over three experts, of which it takes two.
//! const KIND: RouterKind = RouterKind::Gaussian(GaussianSpec::new(16));
//! const ROUTERS: &[RouterSpec] = &[RouterSpec::new("expert", 2, 3, 2, KIND)];
//! const EXPERTS: LevelSpec = LevelSpec::new("expert", ROUTERS);
//! assert_eq!((EXPERTS.parents(), EXPERTS.nodes()), (2, 6));
//! assert_eq!(EXPERTS.slots().last(), Some(RouterSlot { nodes: 3..6, top_k: 2 }));
//! assert_eq!(ROUTERS[0].shape(64), RouterShape { hidden: 64, parents: 2, choices: 3 });
//! let shared = AlwaysSpec { name: "shared".into(), experts: 2 };
//! assert_eq!(shared.experts, 2);
//! ```

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::RouterKind;

/// One level of decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSpec {
    /// What its choices are called: `group`, `expert`.
    pub name: Cow<'static, str>,
    /// Its routers in the order of the nodes they stand under.
    pub routers: Cow<'static, [RouterSpec]>,
}

/// Equal routers under neighbouring nodes, their parameters stacked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSpec {
    /// What they choose among, or the name of the group they stand in; `{name}_router` is their place in a checkpoint.
    pub name: Cow<'static, str>,
    /// How many there are, P.
    pub parents: usize,
    /// Choices of each, C.
    pub choices: usize,
    /// How many of them are taken.
    pub top_k: usize,
    /// What they compute.
    pub kind: RouterKind,
}

/// A group whose experts take part in every decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlwaysSpec {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its experts.
    pub experts: usize,
}

/// How many routers there are, of what, from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterShape {
    /// Width of the input, d.
    pub hidden: usize,
    /// Routers that are evaluated together, P.
    pub parents: usize,
    /// Choices of each, C.
    pub choices: usize,
}

/// One router of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterSlot {
    /// The nodes of the level that are its choices.
    pub nodes: Range<usize>,
    /// How many of them it takes.
    pub top_k: usize,
}

impl LevelSpec {
    /// A level whose choices are called `name`.
    #[must_use]
    pub const fn new(name: &'static str, routers: &'static [RouterSpec]) -> Self {
        Self { name: Cow::Borrowed(name), routers: Cow::Borrowed(routers) }
    }

    /// Routers, one for each node of the level before.
    #[must_use]
    pub fn parents(&self) -> usize {
        self.routers.iter().map(|router| router.parents).sum()
    }

    /// Nodes: the choices of all routers.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.routers.iter().map(|router| router.parents * router.choices).sum()
    }

    /// Each router's nodes, in the order of the nodes they stand under.
    pub fn slots(&self) -> impl Iterator<Item = RouterSlot> {
        let each = self.routers.iter().flat_map(|run| std::iter::repeat_n((run.choices, run.top_k), run.parents));
        each.scan(0, |next, (choices, top_k)| {
            let first = *next;
            *next += choices;
            Some(RouterSlot { nodes: first..*next, top_k })
        })
    }
}

impl RouterSpec {
    /// `parents` routers called `name`, each over `choices` choices of which it takes `top_k`.
    #[must_use]
    pub const fn new(name: &'static str, parents: usize, choices: usize, top_k: usize, kind: RouterKind) -> Self {
        Self { name: Cow::Borrowed(name), parents, choices, top_k, kind }
    }

    /// The shape of the routers over inputs of width `hidden`.
    #[must_use]
    pub const fn shape(&self, hidden: usize) -> RouterShape {
        RouterShape { hidden, parents: self.parents, choices: self.choices }
    }
}
