//! The ways to take part of an MLP that the study compares.

use serde::{Deserialize, Serialize};

/// How it is found which neurons of a layer a token takes.
///
/// ```
/// use experiments::evidence::Method;
///
/// assert_eq!(Method::Shared { tokens: 16 }.name(), "shared_16");
/// assert!(Method::Pruned.is_declared() && !Method::Teal.is_declared());
/// assert_eq!(Method::GroupedGate.variant(), Some("GroupedGate"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All of them: the model as it is.
    Dense,
    /// The token's own gate, by the library (`neurons = gate`).
    OwnGate,
    /// One set for all text, by the library (`neurons = pruned`).
    Pruned,
    /// Groups by a router, and the token's own gate within them, by the library.
    GroupedGate,
    /// Groups by a router, whole, by the library.
    WholeGroups,
    /// |h_i| · v_i of the token itself, known only once all is computed: a ceiling, counted in the neurons taken.
    Oracle,
    /// One set for all text, drawn at random.
    Random,
    /// The set that another token's gate chose.
    Permuted,
    /// One set for a run of so many tokens, by E (h_i v_i)² over the run before it, for a first run over calibration text. Counted in the neurons taken.
    Shared {
        /// Tokens of a run.
        tokens: usize,
    },
    /// Inputs of W_g and W_u and hidden values below a threshold each are zero (after TEAL: Liu et al., 2024), the same share of both.
    Teal,
    /// The neurons whose |silu(g_i)| reaches a threshold (after CATS: Lee et al., 2024).
    Cats,
    /// Experts carved in closed form (after CMoE: Pei et al., 2025): half of what is taken always, the neurons that stand most often among a token's ten of
    /// largest |h|; the others in experts of equal size by balanced k-means of these marks, of which a token takes those whose representative neurons have
    /// the largest |h|.
    Cmoe {
        /// Experts, those that are always taken counted in.
        experts: usize,
    },
}

impl Method {
    /// As records and tables name it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Dense => "dense".into(),
            Self::OwnGate => "own_gate".into(),
            Self::Pruned => "pruned".into(),
            Self::GroupedGate => "grouped_gate".into(),
            Self::WholeGroups => "whole_groups".into(),
            Self::Oracle => "oracle".into(),
            Self::Random => "random".into(),
            Self::Permuted => "permuted".into(),
            Self::Shared { tokens } => format!("shared_{tokens}"),
            Self::Teal => "teal".into(),
            Self::Cats => "cats".into(),
            Self::Cmoe { experts } => format!("cmoe_{experts}"),
        }
    }

    /// Whether it is a declared variant of the library, and the study has no part in how it is made.
    #[must_use]
    pub fn is_declared(self) -> bool {
        self.variant().is_some()
    }

    /// That variant's name.
    #[must_use]
    pub fn variant(self) -> Option<&'static str> {
        match self {
            Self::OwnGate => Some("OwnGate"),
            Self::Pruned => Some("Pruned"),
            Self::GroupedGate => Some("GroupedGate"),
            Self::WholeGroups => Some("WholeGroups"),
            _ => None,
        }
    }

    /// Whether a token's choice depends on nothing but itself, so that texts can be read with what they begin with in common.
    pub(crate) fn is_of_the_token(self) -> bool {
        !matches!(self, Self::Permuted | Self::Shared { .. })
    }
}
