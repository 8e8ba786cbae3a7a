//! What a variant declares: its hierarchy, its routers, what is shared, taken and combined.
//!
//! A hierarchy is a list of levels from the root. A level holds the routers that decide it, one for each choice of the level before
//! ([`LevelSpec::routers`]: runs of equal routers, so that an even hierarchy is one run a level and a named, uneven one has a run
//! for each group). The choices of all routers of a level, numbered in that order, are its *nodes*; the nodes of the last level are
//! the routed experts, by running index: expert e of group g of an even G × E hierarchy is g·E + e (DESIGN §1). Experts that
//! always take part come after them.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A declared mixture of experts: `const` in the code that `#[moe(..)]` writes, deserialised from a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// The name of the declared type.
    pub name: Cow<'static, str>,
    /// Decisions from the root to the experts; their number is the physical decision depth.
    pub levels: Cow<'static, [LevelSpec]>,
    /// Groups that take part in every decision: no router chooses them.
    pub always: Cow<'static, [AlwaysSpec]>,
    /// What an expert is.
    pub experts_are: ExpertsAre,
    /// How the chosen experts become one output.
    pub combine: Combine,
    /// What shares a routing decision.
    pub route_per: RoutePer,
    /// The weight of a chosen expert.
    pub gate: Gate,
    /// How many choices of a router are taken, where that depends on its input.
    pub pfag: Pfag,
    /// How load is kept even while routers learn.
    pub balance: Balance,
    /// c of the router z-loss c · mean (logsumexp ℓ)² (Zoph et al., 2022); 0 is none.
    pub z_loss: f64,
    /// ε of the multiplicative noise U(1 − ε, 1 + ε) on a router's input in training (Fedus et al., 2021); 0 is none.
    pub jitter: f64,
    /// How neurons are given to experts unless a program is told otherwise; `None` leaves it to the program.
    pub partition: Option<PartitionStrategy>,
    /// The activation between the MLP's products, by its name in `hidden_act`; `None` is the model's own.
    pub activation: Option<Cow<'static, str>>,
}

/// One level of decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSpec {
    /// What its choices are called: `group`, `expert`.
    pub name: Cow<'static, str>,
    /// Its routers in the order of the nodes they stand under.
    pub routers: Cow<'static, [RouterSpec]>,
}

/// Equal routers under neighbouring nodes: one field of the module, their parameters stacked.
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

/// What a router computes from its input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RouterKind {
    /// Log-densities of Gaussians ([`super::GaussianMoeRouter`]).
    Gaussian(GaussianSpec),
    /// ℓ = W x + b ([`super::LinearRouter`]).
    Linear,
    /// ℓ = s · cos(x, e) ([`super::CosineRouter`]).
    Cosine,
    /// Fixed random scores of the input ([`super::RandomRouter`]): the control that knows nothing.
    Random,
    /// A type of the user's with the [`super::Router`] trait, as it was written.
    Custom(Cow<'static, str>),
}

/// The form of Gaussian routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianSpec {
    /// Width of the projection; capped at the hidden size, which it is under [`Project::Identity`].
    pub dim: usize,
    /// How the dimensions' log-densities become one.
    pub reduce: Reduce,
    /// What the variances are shared by.
    pub covariance: Covariance,
    /// Where z comes from.
    pub project: Project,
}

impl GaussianSpec {
    /// Of `dim` dimensions and otherwise as declared by `gaussian` alone.
    #[must_use]
    pub const fn new(dim: usize) -> Self {
        Self { dim, reduce: Reduce::Mean, covariance: Covariance::Diag, project: Project::Learned }
    }
}

/// How the dimensions' log-densities become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// Their mean; the scale s starts at r, the true density.
    Mean,
    /// Their sum; s starts at 1.
    Sum,
}

/// What the variances of Gaussians are shared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Covariance {
    /// One for each choice and dimension.
    Diag,
    /// One for each dimension, shared by a router's choices: its decisions are linear in z.
    Shared,
    /// One for each choice, shared by its dimensions.
    Isotropic,
}

/// Where the z of a Gaussian router comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Project {
    /// z = P x, P fitted.
    Learned,
    /// z = x.
    Identity,
    /// z = P x, P drawn at random once and never fitted.
    Random,
}

/// What an expert is (DESIGN §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertsAre {
    /// Some of the dense MLP's neurons.
    Slice,
    /// A copy of the dense MLP: the base, and a delta once it has learnt.
    Replicate,
}

/// How the chosen experts become one output (DESIGN §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Slices: the gates act on one bank's hidden activation.
    Concat,
    /// Replicas: the weighted sum of their weights, then one MLP.
    Merge,
    /// Each input to its own experts, nothing else computed.
    Dispatch,
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

/// The weight of a chosen expert; that of any other is 0, that of one that always takes part 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// 1.
    Unit,
    /// p over the chosen, renormalised, times their number. A router that takes one choice learns nothing from it: its p cancels
    /// from every share.
    Scaled,
    /// p over the chosen, renormalised: what a merge of weights needs.
    Normalised,
    /// 1 in the forward pass, p in the backward.
    StraightThrough,
}

/// How many choices a router takes: `top_k`, or as many as its input is difficult (DESIGN §4).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pfag {
    /// `top_k`.
    Off,
    /// ⌊exp H(p) + ½⌋.
    Entropy,
    /// As few as hold the probability `mass`.
    Nucleus {
        /// Between 0 and 1.
        mass: f64,
    },
    /// As few as hold the probability σ(clamp(s, 0.1, 5)), s the surprisal of the input token.
    Surprisal,
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

/// How neurons are given to experts (`imaging::partition` makes them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionStrategy {
    /// Runs of neighbouring neurons.
    Contiguous,
    /// A random shuffle.
    Random,
    /// Neurons whose rows of W_g point the same way.
    Kmeans,
    /// Neurons active on the same tokens.
    Coactivation,
    /// Neurons active on the same tasks.
    Activation,
    /// Neurons of like ∫SPS over tasks.
    Sps,
    /// Neurons that help the same tasks.
    Taylor,
}

/// One router of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The nodes of the level that are its choices.
    pub nodes: Range<usize>,
    /// How many of them it takes.
    pub top_k: usize,
}

impl LevelSpec {
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
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let each = self.routers.iter().flat_map(|run| std::iter::repeat_n((run.choices, run.top_k), run.parents));
        each.scan(0, |next, (choices, top_k)| {
            let first = *next;
            *next += choices;
            Some(Slot { nodes: first..*next, top_k })
        })
    }
}

impl MoeSpec {
    /// Experts in all, N: those that routers choose from, then those that always take part.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.routed_experts() + self.always_experts()
    }

    /// Experts that routers choose from.
    #[must_use]
    pub fn routed_experts(&self) -> usize {
        self.levels.last().map_or(0, LevelSpec::nodes)
    }

    /// Experts that always take part.
    #[must_use]
    pub fn always_experts(&self) -> usize {
        self.always.iter().map(|group| group.experts).sum()
    }

    /// The most experts that a decision of fixed `top_k` takes, those that always take part among them.
    #[must_use]
    pub fn active_experts(&self) -> usize {
        let mut below = vec![1; self.routed_experts()];
        for level in self.levels.iter().rev() {
            let most = |slot: Slot| {
                let mut under = below[slot.nodes].to_vec();
                under.sort_unstable_by(|a, b| b.cmp(a));
                under.iter().take(slot.top_k).sum()
            };
            below = level.slots().map(most).collect();
        }
        below.iter().sum::<usize>() + self.always_experts()
    }

    /// Neurons that a decision of fixed `top_k` computes, relative to the dense MLP's, experts being equally wide: the largest
    /// share of slices that are taken; 1 for merged replicas; for dispatched ones their number.
    #[must_use]
    pub fn active_share(&self) -> f64 {
        let active = self.active_experts() as f64;
        match (self.experts_are, self.combine) {
            (ExpertsAre::Slice, _) => active / self.experts().max(1) as f64,
            (ExpertsAre::Replicate, Combine::Dispatch) => active,
            (ExpertsAre::Replicate, _) => 1.0,
        }
    }

    /// The routed experts under each node of a level.
    #[must_use]
    pub fn experts_under(&self, level: usize) -> Vec<Range<usize>> {
        let mut under: Vec<Range<usize>> = (0..self.routed_experts()).map(|expert| expert..expert + 1).collect();
        for below in self.levels[level + 1..].iter().rev() {
            let span = |slot: Slot| under[slot.nodes.start].start..under[slot.nodes.end - 1].end;
            under = below.slots().map(span).collect();
        }
        under
    }

    /// The node of a level that each routed expert is under.
    #[must_use]
    pub fn node_of_experts(&self, level: usize) -> Vec<usize> {
        let nodes = self.experts_under(level).into_iter().enumerate();
        nodes.flat_map(|(node, experts)| std::iter::repeat_n(node, experts.len())).collect()
    }

    /// The width of the widest projection that is fitted, at most `hidden`; 1 if none is.
    #[must_use]
    pub fn projection_width(&self, hidden: usize) -> usize {
        let runs = self.levels.iter().flat_map(|level| level.routers.iter());
        let width = |run: &RouterSpec| match &run.kind {
            RouterKind::Gaussian(form) if form.project == Project::Learned => Some(form.dim.min(hidden)),
            _ => None,
        };
        runs.filter_map(width).max().unwrap_or(1)
    }

    /// Positions at the start of a sequence that run all active, whatever the routers would choose; 0 for token and task.
    #[must_use]
    pub fn open_positions(&self) -> usize {
        match self.route_per {
            RoutePer::Token | RoutePer::Task => 0,
            RoutePer::Segment { tokens } => tokens,
            RoutePer::Sequence { first } => first,
        }
    }

    /// What a node is called: the name of its group where that has one, else its level's name and its number.
    #[must_use]
    pub fn node_name(&self, level: usize, node: usize) -> String {
        // Routers over a named group are called by it, others like their level.
        let below = self.levels.get(level + 1);
        match below.and_then(|below| below.routers.get(node).filter(|run| run.name != below.name)) {
            Some(run) => run.name.to_string(),
            None => format!("{} {node}", self.levels[level].name),
        }
    }
}
