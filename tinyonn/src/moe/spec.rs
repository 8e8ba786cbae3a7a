//! What a variant declares: its hierarchy, its routers, its selection.
//!
//! Legend: levels from the root; the experts are the leaves, numbered by running index, so that expert e of group g of a
//! G × E hierarchy is g·E + e (DESIGN §1).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A declared hierarchy of experts: `const` in the code that `#[moe(..)]` writes, deserialised from a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// The name of the declared type.
    pub name: Cow<'static, str>,
    /// Decisions from the root to the experts; their number is the physical decision depth.
    pub levels: Cow<'static, [LevelSpec]>,
    /// What shares a decision.
    pub route_per: RoutePer,
}

/// One level of decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSpec {
    /// What its choices are called: `group`, `expert`.
    pub name: Cow<'static, str>,
    /// Choices of each router of the level.
    pub choices: usize,
    /// How many of them are taken.
    pub top_k: usize,
    /// The kind of router.
    pub router: RouterSpec,
}

/// The kind of a level's routers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RouterSpec {
    /// Gaussian densities in a projection of at most `dim` dimensions ([`super::GaussianMoeRouter`]).
    Gaussian {
        /// Width of the projection; capped at the hidden size.
        dim: usize,
    },
}

impl RouterSpec {
    /// The width of the projection, before it is capped at the hidden size.
    pub fn dim(&self) -> usize {
        let Self::Gaussian { dim } = self;
        *dim
    }
}

/// What shares a routing decision. Both forms are causal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RoutePer {
    /// Each token decides by its own hidden state.
    Token,
    /// A sequence decides once, by the mean hidden state of its first `first` tokens, which run all active.
    Sequence {
        /// Tokens that are read before the decision.
        first: usize,
    },
}

impl MoeSpec {
    /// Experts in all, N.
    pub fn experts(&self) -> usize {
        self.levels.iter().map(|level| level.choices).product()
    }

    /// Routers at a level: the choices made before it.
    pub fn parents(&self, level: usize) -> usize {
        self.levels[..level].iter().map(|level| level.choices).product()
    }

    /// Experts that a decision takes.
    pub fn active_experts(&self) -> usize {
        self.levels.iter().map(|level| level.top_k).product()
    }

    /// Whether every level has choices and takes at least one and at most all of them.
    ///
    /// # Errors
    /// The variant, the level and the numbers.
    pub fn validate(&self) -> Result<()> {
        let fail = |problem: String, remedy: &str| Err(Error::variant(self.name.clone(), problem, remedy));
        if self.levels.is_empty() {
            return fail("it has no level".into(), "declare groups and experts");
        }
        for level in self.levels.iter() {
            if level.choices == 0 || level.top_k == 0 {
                return fail(format!("level `{}` has no choices or takes none", level.name), "use 1 or more");
            }
            if level.top_k > level.choices {
                let problem =
                    format!("top_k = {} exceeds the {} choices of a {}", level.top_k, level.choices, level.name);
                return fail(problem, "take at most all of them");
            }
        }
        Ok(())
    }
}
