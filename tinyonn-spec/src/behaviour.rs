//! What is said of a variant as a whole: what experts are, how they are weighed and combined, what decides for what, how load is kept.
//!
//! ```
//! use tinyonn::gallery::{DeepSeek, DeMix, Mixtral, OwnGate, Smear, Switch, TinyOnn};
//! use tinyonn::moe::{AlwaysBy, Balance, Combine, ExpertsAre, Gate, Neurons, PartitionStrategy, RoutePer};
//!
//! assert_eq!((Smear::SPEC.experts_are, Smear::SPEC.combine), (ExpertsAre::Replicate, Combine::Merge));
//! assert_eq!((Mixtral::SPEC.gate, Mixtral::SPEC.combine), (Gate::Scaled, Combine::Dispatch));
//! assert_eq!((DeMix::SPEC.route_per, Smear::SPEC.route_per), (RoutePer::Task, RoutePer::Sequence { first: 64 }));
//! assert_eq!((Switch::SPEC.balance, DeepSeek::SPEC.balance), (Balance::Loss { coefficient: 0.01 }, Balance::Bias { rate: 0.001 }));
//! assert!(TinyOnn::SPEC.neurons.is_all() && OwnGate::SPEC.neurons == Neurons::Gate);
//! assert_eq!("coactivation".parse(), Ok(PartitionStrategy::Coactivation));
//! assert_eq!(AlwaysBy::ALL.map(AlwaysBy::word), ["rate", "output"]);
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// What an expert is (DESIGN §1).
    pub enum ExpertsAre {
        /// Some of the dense MLP's neurons.
        Slice = "slice",
        /// A copy of the dense MLP: the base, and a delta once it has learnt.
        Replicate = "replicate",
    }

    /// How the chosen experts become one output (DESIGN §1).
    pub enum Combine {
        /// Slices: the gates act on one bank's hidden activation.
        Concat = "concat",
        /// Replicas: the weighted sum of their weights, then one MLP.
        Merge = "merge",
        /// Each input to its own experts, nothing else computed.
        Dispatch = "dispatch",
    }

    /// The weight of a chosen expert; that of any other is 0, that of one that always takes part 1.
    pub enum Gate {
        /// 1.
        Unit = "unit",
        /// p over the chosen, renormalised, times their number. A router that takes one choice learns nothing from it: its p
        /// cancels from every share.
        Scaled = "scaled",
        /// p over the chosen, renormalised: what a merge of weights needs.
        Normalised = "normalised",
        /// 1 in the forward pass, p in the backward.
        StraightThrough = "straight_through",
    }

    /// Which neurons of the chosen experts take part in a routed pass (DESIGN §1). What is taken, and how much of it, is of a checkpoint: it is calibrated on
    /// text.
    pub enum Neurons {
        /// All.
        All = "all",
        /// Those that the token's own gate values choose: the last level of decisions, whose choices are neurons.
        Gate = "gate",
        /// A fixed set a layer, the same for every token.
        Pruned = "pruned",
    }

    /// How the neurons of experts that always take part are found, of all these experts together; they are dealt out in the declared order, the first of them first.
    pub enum AlwaysBy {
        /// Those that stand most often among their token's first tenth by |h|·‖w_down‖.
        Rate = "rate",
        /// Those of the largest mean |h|·‖w_down‖.
        Output = "output",
    }

    /// How neurons are given to experts (the library's `imaging::partition` makes them).
    pub enum PartitionStrategy {
        /// Runs of neighbouring neurons.
        Contiguous = "contiguous",
        /// A random shuffle.
        Random = "random",
        /// Neurons whose rows of W_g point the same way.
        Kmeans = "kmeans",
        /// Neurons active on the same tokens.
        Coactivation = "coactivation",
        /// Neurons that stand among their token's first tenth by |h|·‖w_down‖ on the same tokens; those that always take part are found first.
        CoactivationBinary = "coactivation_binary",
        /// Neurons that stand there about as often: the control of `coactivation_binary`.
        Rate = "rate",
        /// Neurons active on the same tasks.
        Activation = "activation",
        /// Neurons of like ∫SPS over tasks.
        Sps = "sps",
        /// Neurons that help the same tasks.
        Taylor = "taylor",
    }
}

/// What shares a routing decision. All forms are causal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RoutePer {
    /// Each token decides by its own hidden state.
    Token,
    /// Each segment of `tokens` tokens, by the mean hidden state of the segment before it; the first runs all active.
    Segment {
        /// Tokens a segment.
        tokens: usize,
    },
    /// A sequence decides once, by the mean hidden state of its first `first` tokens, which run all active.
    Sequence {
        /// Tokens that are read before the decision.
        first: usize,
    },
    /// A sequence takes the path of its task, whose id the caller gives: an oracle.
    Task,
}

/// How load is kept even while routers learn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Balance {
    /// Not at all.
    None,
    /// The auxiliary loss c · N Σ f_n P_n (Fedus et al., 2021).
    Loss {
        /// c.
        coefficient: f64,
    },
    /// A bias on the scores that selection compares, moved by `rate` against the load after each step (DeepSeek-AI, 2024).
    Bias {
        /// The step.
        rate: f64,
    },
}

impl Default for Neurons {
    /// What a specification without the word means.
    fn default() -> Self {
        Self::All
    }
}

impl Neurons {
    /// Whether all take part, which goes without saying.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

impl fmt::Display for PartitionStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for PartitionStrategy {
    /// What is wrong, and the words there are.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|strategy| strategy.word() == text);
        let known = Self::ALL.map(Self::word);
        named.ok_or_else(|| format!("there is no partition `{text}`; use one of {}", known.join(", ")))
    }
}
