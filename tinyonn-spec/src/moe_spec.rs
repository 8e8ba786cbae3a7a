//! The declaration as a whole.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    AlwaysBy, AlwaysSpec, AttentionSpec, Balance, Combine, ExpertsAre, Gate, LevelSpec, Neurons, PartitionStrategy,
    Pfag, RoutePer,
};

/// A declared mixture of experts: `const` in the code that `#[moe(..)]` writes, deserialised from a checkpoint.
///
/// ```
/// use tinyonn::gallery::{OwnGate, TinyOnn};
/// use tinyonn::moe::{AlwaysSpec, MoeSpec, Neurons};
///
/// // A declaration of a program's own, of no type.
/// let all = AlwaysSpec { name: "shared".into(), experts: 1 };
/// let spec = MoeSpec { name: "OwnGate".into(), always: vec![all].into(), neurons: Neurons::Gate, ..MoeSpec::PLAIN };
/// assert_eq!(spec, OwnGate::SPEC);
/// // A checkpoint holds it.
/// let json = serde_json::to_string(&TinyOnn::SPEC)?;
/// assert_eq!(serde_json::from_str::<MoeSpec>(&json)?, TinyOnn::SPEC);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// The name of the declared type.
    pub name: Cow<'static, str>,
    /// Decisions from the root to the experts; their number is the physical decision depth.
    pub levels: Cow<'static, [LevelSpec]>,
    /// Groups that take part in every decision: no router chooses them.
    pub always: Cow<'static, [AlwaysSpec]>,
    /// How the neurons of these are found; `None` leaves it to the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub always_by: Option<AlwaysBy>,
    /// What an expert is.
    pub experts_are: ExpertsAre,
    /// How the chosen experts become one output.
    pub combine: Combine,
    /// What shares a routing decision.
    pub route_per: RoutePer,
    /// The weight of a chosen expert.
    pub gate: Gate,
    /// Which neurons of the chosen experts take part.
    #[serde(default, skip_serializing_if = "Neurons::is_all")]
    pub neurons: Neurons,
    /// Which pairs the attention before it computes.
    #[serde(default, skip_serializing_if = "AttentionSpec::is_dense")]
    pub attention: AttentionSpec,
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

impl MoeSpec {
    /// What goes without saying, of no name and no hierarchy yet: slices gated in one bank, chosen by each token for itself.
    pub const PLAIN: Self = Self {
        name: Cow::Borrowed(""),
        levels: Cow::Borrowed(&[]),
        always: Cow::Borrowed(&[]),
        always_by: None,
        experts_are: ExpertsAre::Slice,
        combine: Combine::Concat,
        route_per: RoutePer::Token,
        gate: Gate::Unit,
        neurons: Neurons::All,
        attention: AttentionSpec::Dense,
        pfag: Pfag::Off,
        balance: Balance::None,
        z_loss: 0.0,
        jitter: 0.0,
        partition: None,
        activation: None,
    };

    /// Whether text may say what a token takes, beside the declaration: neurons, or experts that each token chooses for itself and that weigh 1.
    ///
    /// ```
    /// use tinyonn::gallery::{GroupedGate, Mixtral, OwnGate, TinyOnn, WholeGroups};
    ///
    /// assert!([OwnGate::SPEC, GroupedGate::SPEC, WholeGroups::SPEC, TinyOnn::SPEC].iter().all(|spec| spec.can_be_calibrated()));
    /// assert!(!Mixtral::SPEC.can_be_calibrated()); // a chosen expert weighs its probability
    /// ```
    #[must_use]
    pub fn can_be_calibrated(&self) -> bool {
        let plain = self.pfag == Pfag::Off && self.balance == Balance::None && self.combine == Combine::Concat;
        let chosen = self.gate == Gate::Unit && self.route_per == RoutePer::Token && plain;
        self.experts_are == ExpertsAre::Slice && (chosen || self.neurons == Neurons::Pruned)
    }
}
