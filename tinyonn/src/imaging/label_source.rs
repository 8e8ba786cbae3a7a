//! What labels are made by: a score, or a control that knows less (DESIGN §3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Form, Integral, LabelBalance, Labels, NeuronScan, Score};
use crate::moe::MoeSpec;
use crate::{Error, Result};

/// A source of labels. In configurations: a score (`sps`, `activation`, …), a score with `_lowest`, `_one_path` or `_permuted` behind it,
/// `random`, or `oracle`.
///
/// ```
/// use tinyonn::imaging::{Form, How, LabelBalance, LabelInputs, LabelSource, NeuronScan, Score};
/// use tinyonn::moe::moe;
///
/// #[moe(levels = [2], top_k = 1)]
/// struct Sourced;
///
/// let parsed: LabelSource = "taylor_magnitude_lowest".parse()?;
/// assert_eq!(parsed, LabelSource::By(Score::TaylorMagnitude, How::Lowest));
/// assert_eq!((LabelSource::SPS.to_string(), LabelSource::ACTIVATION_PLUS_SURPRISE.to_string()), ("sps".into(), "activation_plus_surprise".into()));
/// assert!(LabelSource::Random.is_drawn() && !parsed.is_drawn());
///
/// // One layer of two neurons, each an expert; one token of one task, which the second neuron answers.
/// let mut scan = NeuronScan::zero(vec!["t".into()], 1, 2);
/// scan.tokens[0] = 1;
/// (scan.sums[0][0].activation, scan.sums[0][0].activation_squared) = (vec![1.0, 3.0], vec![1.0, 9.0]);
/// let (units, spec) = ([vec![0, 1]], &Sourced::SPEC);
/// let from = LabelInputs { scan: &scan, form: Form::default(), units: &units, spec, contrast: false, balance: LabelBalance::None };
/// let labels = LabelSource::By(Score::Activation, How::Best).labels(&from, 0)?.expect("a score gives labels");
/// assert_eq!(labels.paths.experts, [[[1]]]);
/// assert!(LabelSource::Oracle.labels(&from, 0)?.is_none()); // it is measured, not read from an image
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum LabelSource {
    /// By the score of the scan.
    By(Score, How),
    /// Paths drawn at random.
    Random,
    /// Paths found by greedy ablation on training text ([`Labels::greedy`]): what measuring, instead of scoring, would give.
    Oracle,
}

/// How a score is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// Each task takes its best.
    Best,
    /// Each task takes its worst.
    Lowest,
    /// All tasks take the best of their mean.
    OnePath,
    /// Each task takes another one's best.
    Permuted,
}

/// What labels are read from, and how.
#[derive(Clone, Copy)]
pub struct LabelInputs<'a> {
    /// The image.
    pub scan: &'a NeuronScan,
    /// How a score is integrated over it.
    pub form: Form,
    /// The expert of each neuron, `[layer][i]`.
    pub units: &'a [Vec<u32>],
    /// The hierarchy, and how many of each router's choices a path takes.
    pub spec: &'a MoeSpec,
    /// Minus the mean over tasks.
    pub contrast: bool,
    /// Whether tasks share the experts out evenly.
    pub balance: LabelBalance,
}

impl LabelSource {
    /// z(activation) + z(surprise).
    pub const ACTIVATION_PLUS_SURPRISE: Self = Self::By(Score::ActivationPlusSurprise, How::Best);
    /// ∫SPS, what is asked about.
    pub const SPS: Self = Self::By(Score::Sps, How::Best);

    /// Whether it is drawn: then the mean of several draws is taken.
    #[must_use]
    pub fn is_drawn(self) -> bool {
        matches!(self, Self::Random | Self::By(_, How::Permuted))
    }

    /// The labels; `seed` draws those that are drawn. None of the oracle's, which are measured and in no image.
    ///
    /// # Errors
    /// A form whose sums the scan does not hold.
    pub fn labels(self, from: &LabelInputs<'_>, seed: u64) -> Result<Option<Labels>> {
        let LabelInputs { scan, form, units, spec, contrast, balance } = *from;
        let (score, how) = match self {
            Self::Random => return Ok(Some(Labels::random(scan.tasks.len(), scan.sums.len(), spec, seed))),
            Self::Oracle => return Ok(None),
            Self::By(score, how) => (score, how),
        };
        let integral = Integral::of(scan, score, form)?;
        let integral = if contrast { integral.contrasted() } else { integral };
        let labels = |integral: &Integral| Labels::balanced(integral, units, spec, balance);
        Ok(Some(match how {
            How::Best => labels(&integral),
            How::Lowest => labels(&integral.negated()),
            How::OnePath => labels(&integral.averaged()),
            How::Permuted => labels(&integral).permuted(seed),
        }))
    }
}

const HOW: [(&str, How); 3] = [("_lowest", How::Lowest), ("_one_path", How::OnePath), ("_permuted", How::Permuted)];

impl fmt::Display for LabelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Oracle => f.write_str("oracle"),
            Self::By(score, how) => {
                let behind = HOW.iter().find(|(_, known)| known == how).map_or("", |(name, _)| name);
                write!(f, "{}{behind}", score.name())
            }
        }
    }
}

impl FromStr for LabelSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "random" => return Ok(Self::Random),
            "oracle" => return Ok(Self::Oracle),
            _ => {}
        }
        let split = HOW.iter().find_map(|(name, how)| Some((text.strip_suffix(name)?, *how)));
        let (name, how) = split.unwrap_or((text, How::Best));
        let score = Score::ALL.into_iter().find(|score| score.name() == name).ok_or_else(|| {
            let scores = Score::ALL.map(Score::name).join(", ");
            let remedy = format!(
                "use random, oracle, or one of {scores}, alone or with _lowest, _one_path or _permuted behind it"
            );
            Error::setting("labels", format!("there is no source `{text}`"), remedy)
        })?;
        Ok(Self::By(score, how))
    }
}

impl TryFrom<String> for LabelSource {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LabelSource> for String {
    fn from(source: LabelSource) -> Self {
        source.to_string()
    }
}
