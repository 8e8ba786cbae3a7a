//! Scores: what of a scan is integrated, and in which form.

use serde::{Deserialize, Serialize};

/// What is integrated.
///
/// ```
/// use tinyonn::imaging::Score;
///
/// let names = Score::ALL.map(Score::name);
/// assert_eq!(names[..3], ["sps", "activation", "surprise"]);
/// assert!(Score::Sps.is_standardised() && !Score::Taylor.is_standardised());
/// assert!(Score::Sps.reads_surprise() && !Score::Activation.reads_surprise());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Score {
    /// z(activation) − z(surprise).
    Sps,
    /// z(activation).
    Activation,
    /// z(surprise).
    Surprise,
    /// −z(surprise).
    Calm,
    /// z(activation) + z(surprise).
    ActivationPlusSurprise,
    /// −h ∂L/∂h: by how much the loss would grow without the neuron, to first order. Signs cancel over tokens.
    Taylor,
    /// |h ∂L/∂h|: by how much a token's loss would change, whatever the sign (Molchanov et al., 2017).
    TaylorMagnitude,
}

impl Score {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Sps,
        Self::Activation,
        Self::Surprise,
        Self::Calm,
        Self::ActivationPlusSurprise,
        Self::Taylor,
        Self::TaylorMagnitude,
    ];

    /// Its name in configurations and summaries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sps => "sps",
            Self::Activation => "activation",
            Self::Surprise => "surprise",
            Self::Calm => "calm",
            Self::ActivationPlusSurprise => "activation_plus_surprise",
            Self::Taylor => "taylor",
            Self::TaylorMagnitude => "taylor_magnitude",
        }
    }

    /// Whether it is made of standardised values: their form decides, which leaves Taylor scores as they are.
    #[must_use]
    pub fn is_standardised(self) -> bool {
        matches!(self.terms(), Terms::Standardised(..))
    }

    /// Whether surprise enters.
    #[must_use]
    pub fn reads_surprise(self) -> bool {
        matches!(self.terms(), Terms::Standardised(_, of_surprise) if of_surprise != 0.0)
    }

    /// How it comes from what a scan sums.
    pub(super) fn terms(self) -> Terms {
        match self {
            Self::Sps => Terms::Standardised(1.0, -1.0),
            Self::Activation => Terms::Standardised(1.0, 0.0),
            Self::Surprise => Terms::Standardised(0.0, 1.0),
            Self::Calm => Terms::Standardised(0.0, -1.0),
            Self::ActivationPlusSurprise => Terms::Standardised(1.0, 1.0),
            Self::Taylor => Terms::Taylor { magnitude: false },
            Self::TaylorMagnitude => Terms::Taylor { magnitude: true },
        }
    }
}

/// What a score is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Terms {
    /// z(activation) and z(surprise), each times its number.
    Standardised(f64, f64),
    /// A Taylor score or its magnitude, as it is.
    Taylor { magnitude: bool },
}

/// Over what z standardises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Over a layer's tokens and units.
    #[default]
    Layer,
    /// Over the tokens and units of all layers.
    Global,
    /// Over a layer's, of ln(1 + x / scale) instead of x; the scan must have summed them ([`Log1p`](super::Log1p)).
    Log1p,
}

/// What an expert's value is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertForm {
    /// The mean over its neurons' integrals: a scan of neurons determines it, whatever the partition.
    #[default]
    Mean,
    /// The integral of the expert's own norms, a_n/√width and S_n/√width; the scan must know the partition.
    Norm,
}

/// How a score is integrated.
///
/// ```
/// use tinyonn::imaging::{ExpertForm, Form, Norm};
///
/// let names = Form::ALL.map(Form::name);
/// assert_eq!(names, ["layer", "global", "log1p", "layer_by_expert", "global_by_expert", "log1p_by_expert"]);
/// assert_eq!(Form::ALL[0], Form { norm: Norm::Layer, expert: ExpertForm::Mean });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Form {
    /// Over what z standardises.
    pub norm: Norm,
    /// What an expert's value is made of.
    pub expert: ExpertForm,
}

impl Form {
    /// All of them: each norm of neurons and of experts, the plain one first.
    pub const ALL: [Self; 6] = {
        const fn of(norm: Norm, expert: ExpertForm) -> Form {
            Form { norm, expert }
        }
        [
            of(Norm::Layer, ExpertForm::Mean),
            of(Norm::Global, ExpertForm::Mean),
            of(Norm::Log1p, ExpertForm::Mean),
            of(Norm::Layer, ExpertForm::Norm),
            of(Norm::Global, ExpertForm::Norm),
            of(Norm::Log1p, ExpertForm::Norm),
        ]
    };

    /// A name: `layer`, `global`, `log1p`; with `_by_expert` behind it where the units are experts.
    #[must_use]
    pub fn name(self) -> String {
        let norm = match self.norm {
            Norm::Layer => "layer",
            Norm::Global => "global",
            Norm::Log1p => "log1p",
        };
        format!("{norm}{}", if self.expert == ExpertForm::Norm { "_by_expert" } else { "" })
    }
}
