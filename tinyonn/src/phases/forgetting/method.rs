//! How a task is learnt, and what a run of several is.

use serde::{Deserialize, Serialize};

use crate::data::NovelTask;
use crate::decoder::smk_rule::Select;
use crate::moe::{ExpertsAre, MoeSpec};
use crate::phases::RunConfig;
use crate::{Error, Result};

/// How a task is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Method {
    /// `smk.min_k` experts of each layer learn from a step, chosen by `select` (the rest of the rule as in `smk.rule`); all of them if it is `all`.
    Experts {
        /// By what they are chosen.
        select: Select,
        /// Whether each token takes the experts that routers choose, fitted anew, as each task comes, to the text so far; or all of them.
        routed: bool,
    },
    /// Low-rank differences of all matrices learn, everything else is frozen.
    Lora {
        /// The rank.
        rank: usize,
    },
    /// The `smk.min_k` experts of each layer learn, always the same, that matter least to the old text: of least |h ∂L/∂h|, summed over its tasks.
    LeastImportant,
    /// All learns; one row in so many is of the text before the task.
    Replay {
        /// In how many.
        one_in: usize,
    },
    /// All learns, and decays towards the dense weights ([`Anchor`](crate::train::Anchor)).
    Decay {
        /// λ: a step takes back the share η λ of the way.
        strength: f64,
        /// Weighted by the old text's Fisher information, or all alike.
        fisher: bool,
    },
}

impl Method {
    /// Dense fine-tuning of the MLPs.
    pub const DENSE: Self = Self::Experts { select: Select::All, routed: false };

    /// Its name in tables and of files; no other method has it.
    ///
    /// ```
    /// use tinyonn::decoder::smk_rule::Select;
    /// use tinyonn::phases::Method;
    ///
    /// assert_eq!(Method::DENSE.name(), "dense");
    /// assert_eq!(Method::Experts { select: Select::RandomK, routed: true }.name(), "random_k-routed");
    /// assert_eq!(Method::Lora { rank: 10 }.name(), "lora-10");
    /// ```
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Experts { select, routed } => {
                let select = match select {
                    Select::All if !routed => return "dense".into(),
                    Select::All => "all",
                    Select::Smk => "smk",
                    Select::RandomK => "random_k",
                    Select::MaxK => "max_k",
                    Select::MaxProduct => "max_product",
                    Select::MinLoad => "min_load",
                };
                format!("{select}{}", if *routed { "-routed" } else { "" })
            }
            Self::Lora { rank } => format!("lora-{rank}"),
            Self::LeastImportant => "least_important".into(),
            Self::Replay { one_in } => format!("replay-{one_in}"),
            Self::Decay { strength, fisher } => {
                format!("{}-{strength}", if *fisher { "fisher_decay" } else { "decay" })
            }
        }
    }

    /// Whether tokens take the experts that routers choose.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        matches!(self, Self::Experts { routed: true, .. })
    }
}

/// A run: which tasks, in which order, by which method. All else stands in a [`RunConfig`]: model, old text, seed; steps, batch, rate and looks in `smk`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgettingConfig {
    /// The tasks, in the order in which they are learnt.
    pub order: Vec<NovelTask>,
    /// Bytes of each task's text.
    pub task_bytes: usize,
    /// How they are learnt.
    pub method: Method,
    /// Sequences of old text that Fisher information is taken over.
    pub fisher_sequences: u64,
}

impl ForgettingConfig {
    /// Refuses what could only fail; `run` is what else decides the run, `spec` its variant.
    ///
    /// # Errors
    /// Fewer than two tasks, or one twice; a method that cannot work; `min_load` where all are active, or experts that are replicas.
    pub fn check(&self, run: &RunConfig, spec: &MoeSpec) -> Result<()> {
        let twice = self.order.iter().enumerate().find(|(at, task)| self.order[..*at].contains(task));
        if let Some((_, task)) = twice {
            let problem = format!("has `{}` twice", task.name());
            return Err(Error::setting("order", problem, "name each task once"));
        }
        if self.order.len() < 2 {
            let problem = format!("has {} tasks, and forgetting takes one behind another", self.order.len());
            return Err(Error::setting("order", problem, "name two tasks or more"));
        }
        if spec.experts_are == ExpertsAre::Replicate {
            let problem = "its experts are replicas, of which none is a part of the dense model";
            return Err(Error::variant(spec.name.clone(), problem, "use a variant of slices"));
        }
        let refused = |name: &str, problem: &str, remedy: &str| Err(Error::setting(name, problem, remedy));
        match self.method {
            Method::Experts { select: Select::MinLoad, routed: false } => refused(
                "method.experts",
                "is min_load, and where all experts are active all have the same load",
                "set routed = true",
            ),
            Method::Lora { rank: 0 } => refused("method.lora.rank", "is 0, and nothing would learn", "use 1 or more"),
            Method::Replay { one_in: 0 | 1 } => {
                refused("method.replay.one_in", "leaves no row to the new task", "use 2 or more")
            }
            Method::Decay { strength, .. } if !(strength > 0.0 && strength.is_finite()) => {
                refused("method.decay.strength", "is no number above 0", "use a finite number above 0")
            }
            Method::Decay { fisher: true, .. } if self.fisher_sequences == 0 => {
                refused("fisher_sequences", "is 0, and Fisher information is a mean over some", "use 1 or more")
            }
            _ => run.smk.check("smk", spec),
        }
    }
}
