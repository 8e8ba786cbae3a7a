//! What travels with a pass, and what comes back from it: six plain structs, and no other way in or out (DESIGN §6).
//!
//! Forward: a [`Pass`] says which experts take part and what is asked; each layer returns its output, a [`Trace`] and, if a backward
//! follows, what that needs (`Saved`, of each module its own). Backward: [`Learn`] says who learns and what imaging asks,
//! [`Grads`] takes weight gradients, [`Answers`] come back. All of it lies on the device.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Smk;
use crate::ops::{
    self, ExpertNeurons, GradSite, Grads, ImageTensors, Imaging, Learners, LearningNeurons, Log1pScale, MinK,
    MlpBackward, Removal, TokenScores,
};
use crate::ranks::Collective;
use crate::{Error, Result};

/// Which experts take part.
#[derive(Clone, Debug, Default)]
pub enum Active {
    /// All of them, without gates: the pseudo-dense pass.
    #[default]
    All,
    /// Those that the routers choose.
    Routed,
    /// Those on a given path of each sequence's task ([`Pass::tasks`]): an oracle that reads the task.
    Paths(Arc<PathTable>),
}

/// Fixed computation paths: the chosen experts of every task and layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTable {
    /// `experts[task][layer]`, ascending flat indices.
    pub experts: Vec<Vec<Vec<u32>>>,
}

/// What travels with a forward pass.
///
/// ```
/// use std::sync::Arc;
/// use tinyonn::decoder::{Active, Ask, InTraining, Keep, Pass, PathTable};
///
/// let routed = Pass { ask: Ask { load: true, ..Ask::default() }, ..Pass::routed() };
/// assert!(matches!((Pass::all().active, &routed.active), (Active::All, Active::Routed)));
/// let step = Pass { training: Some(InTraining::whole(7)), ..routed.kept() };
/// assert!(step.keep != Keep::Nothing && step.ask.load);
/// // Two tasks, one layer: each sequence of the batch takes the experts of its task.
/// let table = PathTable { experts: vec![vec![vec![0, 1]], vec![vec![2]]] };
/// let along = Pass { active: Active::Paths(Arc::new(table)), ..Pass::all() }.of_tasks(&[1, 0]);
/// assert_eq!(along.tasks.as_deref(), Some(&[1, 0][..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Which experts take part.
    pub active: Active,
    /// The task of each sequence of the batch; needed for given paths only.
    pub tasks: Option<Arc<[u32]>>,
    /// The paths that a routed variant takes which decides by task (`route_per = task`).
    pub paths: Option<Arc<PathTable>>,
    /// The surprisal of each input token given those before it, in nats, `[B, T]` f32: what adaptive gating by surprisal reads.
    pub surprisal: Option<Tensor>,
    /// In training: routers' inputs are jittered, auxiliary losses formed, where a variant declares them.
    pub training: Option<InTraining>,
    /// What a backward pass will find.
    pub keep: Keep,
    /// What is asked beside the output.
    pub ask: Ask,
}

impl Pass {
    /// Everything active.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Routed.
    #[must_use]
    pub fn routed() -> Self {
        Self { active: Active::Routed, ..Self::default() }
    }

    /// The same, a backward pass to follow.
    #[must_use]
    pub fn kept(&self) -> Self {
        Self { keep: Keep::All, ..self.clone() }
    }

    /// The same for a batch of these tasks.
    #[must_use]
    pub fn of_tasks(&self, tasks: &[u32]) -> Self {
        Self { tasks: Some(Arc::from(tasks)), ..self.clone() }
    }
}

/// What a pass of a training step knows of the step.
#[derive(Clone, Debug)]
pub struct InTraining {
    /// The seed of its noise.
    pub seed: u64,
    /// What its auxiliary losses count: one by the number of passes of the step.
    pub share: f64,
    /// Of several ranks that pass one batch together, those whose rows stand before its own: noise is each row's own.
    pub before: usize,
    /// All of these ranks: a loss for balance is of the choices of the whole batch.
    pub ranks: Option<Arc<dyn Collective>>,
}

impl InTraining {
    /// The only pass of its step.
    #[must_use]
    pub fn whole(seed: u64) -> Self {
        Self { seed, share: 1.0, before: 0, ranks: None }
    }
}

/// What a forward pass keeps for the backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: inference.
    #[default]
    Nothing,
    /// Every value that the backward reads.
    All,
    /// The input of each layer, whose values the backward computes once more: the same bits, in the memory of one layer.
    Inputs,
}

/// What is asked of a forward pass beside its output: [`Trace`] answers.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// How much work each expert was given.
    pub load: bool,
    /// The gates of the experts.
    pub gates: bool,
    /// The inputs of the feed-forwards, which are what routers see.
    pub inputs: Option<InputRows>,
    /// The rows of `[B·T]`, u32, whose |h| is wanted (dense feed-forwards only).
    pub hidden: Option<Tensor>,
    /// The outputs of the blocks.
    pub outputs: bool,
}

/// Which inputs of a feed-forward are wanted.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::decoder::{Ask, InputRows, Pass};
///
/// // What routers see of rows 0 and 5, and the mean over the first eight tokens of each sequence.
/// let inputs = InputRows { rows: Tensor::new(&[0u32, 5], &Device::Cpu)?, windows: (1, 8) };
/// let pass = Pass { ask: Ask { inputs: Some(inputs), ..Ask::default() }, ..Pass::all() };
/// assert!(pass.ask.inputs.is_some());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InputRows {
    /// Rows of `[B·T]`, u32, f32 values of which are returned.
    pub rows: Tensor,
    /// So many windows of so many tokens from the beginning of each sequence, (windows, tokens), whose means are returned.
    pub windows: (usize, usize),
}

/// What a layer's forward pass says beside its output.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// [`Ask::load`], of a layer that was routed.
    pub load: Option<Load>,
    /// [`Ask::gates`], of a layer that was routed: those of every token, `[B·T, N]`; ones where no decision is for it.
    pub gates: Option<Tensor>,
    /// [`Ask::inputs`]: the rows `[k, d]`, f32.
    pub inputs: Option<Tensor>,
    /// [`Ask::inputs`]: the means of the windows `[B, windows, d]`, f32.
    pub means: Option<Tensor>,
    /// [`Ask::hidden`]: |h| `[k, I]`.
    pub hidden: Option<Tensor>,
    /// [`Ask::outputs`]: `[B, T, d]`.
    pub output: Option<Tensor>,
    /// The declared auxiliary loss of a layer that was routed in training, a scalar: part of what is minimised.
    pub auxiliary: Option<Tensor>,
}

/// How much work the experts of one layer were given.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::decoder::{Load, Trace};
///
/// let load = Load::none(3, &Device::Cpu)?;
/// assert_eq!((load.tokens_n.to_vec1::<f32>()?, load.counts.dims1()?), (vec![0.0; 3], 4)); // a token takes none to three
/// let trace = Trace { load: Some(load), ..Trace::default() };
/// assert!(trace.gates.is_none());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Load {
    /// Tokens by expert, `[N]` f32; tokens that no decision is for count nowhere.
    pub tokens_n: Tensor,
    /// Tokens by how many experts they took, from none to all, `[N + 1]` f32.
    pub counts: Tensor,
    /// Of a layer that chooses neurons, how many each token took, `[B·T]` f32.
    pub neurons_t: Option<Tensor>,
    /// Where W_g reads a part of x, how many channels of it for each token, `[B·T]` f32.
    pub inputs_t: Option<Tensor>,
}

/// Who learns from a backward pass, and what imaging asks of it.
///
/// ```
/// use candle_core::Device;
/// use std::sync::Arc;
/// use tinyonn::decoder::pass::{ImageAsk, NeuronMask};
/// use tinyonn::decoder::{Experts, Learn, Smk};
///
/// let everyone = Learn::default();
/// assert!(matches!(everyone.experts, Experts::All));
/// let winners = Learn { experts: Experts::Smk(Smk::DEFAULT), ..Learn::default() };
/// let second = NeuronMask::new(&[false, true], &Device::Cpu)?;
/// let one_neuron = Learn { experts: Experts::Mask(Arc::new([second])), ..Learn::default() };
/// // Nobody learns; imaging asks for both forms of each expert's surprise.
/// let imaged = Learn { image: Some(Arc::new(ImageAsk::Surprises)), ..Learn::default() };
/// assert!(imaged.image.is_some() && matches!((winners.experts, one_neuron.experts), (Experts::Smk(_), Experts::Mask(_))));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Learn {
    /// Of the weights that learn at all (those with a place in the gradients), whose experts'.
    pub experts: Experts,
    /// Whether routers learn: by their gates' gradients and their auxiliary losses.
    pub routers: bool,
    /// What imaging asks; [`Answers`] has it.
    pub image: Option<Arc<ImageAsk>>,
    /// The ranks that pass one batch together, where there are several: surprise is over all its tokens.
    pub ranks: Option<Arc<dyn Collective>>,
}

impl Load {
    /// Nobody was given anything.
    ///
    /// # Errors
    /// What the device reports.
    pub fn none(experts: usize, device: &Device) -> Result<Self> {
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, device);
        Ok(Self { tokens_n: zeros(experts)?, counts: zeros(experts + 1)?, neurons_t: None, inputs_t: None })
    }
}

impl Learn {
    /// What imaging is told of one layer's backward pass.
    ///
    /// # Errors
    /// Gates that read a part of x; what the device reports.
    pub fn answers(&self, layer: usize, seen: &MlpBackward<'_>) -> Result<Answers> {
        let mut answers = Answers::default();
        if self.image.is_some() {
            seen.check_whole()?;
        }
        match self.image.as_deref() {
            // Surprises are those of experts: who has some answers.
            None | Some(ImageAsk::Surprises) => {}
            Some(ImageAsk::Sums { counted_t, site, experts, scales }) => {
                let imaging = Imaging { site: *site, experts: experts.get(layer), scale: scales.get(layer).copied() };
                answers.sums = Some(ops::image_moments(seen, counted_t, &imaging)?);
            }
            Some(ImageAsk::Scores { kept_k, by }) => {
                answers.scores = Some(ops::token_scores::token_scores(seen, kept_k, &by[layer])?);
            }
            Some(ImageAsk::Removals { counted_t, by }) => {
                answers.removed = Some(ops::squared_removal(seen, counted_t, &by[layer])?);
            }
            Some(ImageAsk::Sensitivity { counted_t }) => {
                answers.sensitivity = Some(ops::squared_sensitivity(seen, counted_t)?);
            }
            Some(ImageAsk::Dump(experts)) => {
                let [a_ti, s_ti] = ops::activation_and_surprise(seen)?;
                answers.dump = Some([experts[layer].norms(&a_ti)?, experts[layer].norms(&s_ti)?]);
            }
        }
        Ok(answers)
    }
}

/// Whose weights learn.
#[derive(Clone, Debug, Default)]
pub enum Experts {
    /// Every expert's.
    #[default]
    All,
    /// Those that Surprise Min-K chooses of each layer's. Under `surprise = token` before any weight gradient is formed: those of the others never
    /// are. Under `surprise = exact` the pass forms all of them, and who called it chooses behind it:
    /// [`FeedForward::keep_winners`](super::FeedForward::keep_winners).
    Smk(Smk),
    /// Those of given neurons, by layer: the others' are never formed, and their rows are skipped.
    Mask(Arc<[NeuronMask]>),
}

/// Some neurons of a layer's feed-forward.
#[derive(Clone, Debug)]
pub struct NeuronMask {
    /// 1 for those that learn, `[I]` u8.
    pub(crate) learn_i: Tensor,
    /// How many they are.
    pub(crate) count: usize,
}

impl NeuronMask {
    /// Those that are marked.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(marks: &[bool], device: &Device) -> Result<Self> {
        let learn: Vec<u8> = marks.iter().map(|mark| u8::from(*mark)).collect();
        let count = marks.iter().filter(|mark| **mark).count();
        Ok(Self { learn_i: Tensor::from_vec(learn, marks.len(), device)?, count })
    }

    /// Whose weight gradients are formed; of the three matrices the rows of the others are skipped.
    pub(crate) fn learners(&self, [gate, up, down]: [&Tensor; 3], grads: &mut Grads) -> Result<Learners> {
        if self.learn_i.dims() != [gate.dim(0)?] {
            let problem = format!("marks {:?} of {} neurons", self.learn_i.dims(), gate.dim(0)?);
            return Err(Error::setting("mask", problem, "give a mark for every neuron of every layer"));
        }
        for matrix_id in [gate, up, down] {
            grads.restrict(matrix_id, &self.learn_i, self.count)?;
        }
        Ok(Learners::Neurons(LearningNeurons::new(&self.learn_i, self.count)?))
    }
}

impl Experts {
    /// The choice that is made before weight gradients are formed, where there is one.
    pub(crate) fn early(&self) -> Option<&Smk> {
        match self {
            Self::Smk(smk) => Some(smk).filter(|smk| smk.is_early()),
            Self::All | Self::Mask(_) => None,
        }
    }

    /// The mask of a layer, where there are masks.
    pub(crate) fn mask(&self, layer: usize) -> Result<Option<&NeuronMask>> {
        let Self::Mask(masks) = self else { return Ok(None) };
        let missing = || Error::setting("mask", format!("has none for layer {layer}"), "give one a layer");
        masks.get(layer).ok_or_else(missing).map(Some)
    }
}

/// What imaging asks of a backward pass.
#[derive(Clone, Debug)]
pub enum ImageAsk {
    /// Sums over tokens by unit.
    Sums {
        /// 1 for each token that counts, `[B·T]` u8.
        counted_t: Tensor,
        /// Which gradient's norm surprise is.
        site: GradSite,
        /// By layer, experts to sum beside neurons; none, or one a layer.
        experts: Arc<[ExpertNeurons]>,
        /// By layer, the scale of log1p values to sum as well; none, or one a layer.
        scales: Arc<[Log1pScale]>,
    },
    /// The scores of some tokens.
    Scores {
        /// Which, `[k]` u32.
        kept_k: Tensor,
        /// By layer.
        by: Arc<[TokenScores]>,
    },
    /// What taking neurons away would do to the loss.
    Removals {
        /// 1 for each token that counts, `[B·T]` u8.
        counted_t: Tensor,
        /// By layer.
        by: Arc<[Removal]>,
    },
    /// How much the loss moves with the value of each neuron.
    Sensitivity {
        /// 1 for each token that counts, `[B·T]` u8.
        counted_t: Tensor,
    },
    /// Both forms of the surprise of each slice.
    Surprises,
    /// Every token's activation and surprise of every expert.
    Dump(Arc<[ExpertNeurons]>),
}

/// Both forms of surprise ([`Surprise`](super::smk_rule::Surprise)), of each of a layer's experts.
#[derive(Clone, Debug)]
pub struct Surprises {
    /// By its tokens, `[N]` f64.
    pub token_n: Tensor,
    /// The norm of its whole gradient, `[N]` f64.
    pub exact_n: Tensor,
    /// 1 for those that were given a token, `[N]` u8.
    pub active_n: Tensor,
}

/// What a layer's backward pass says beside its gradients.
///
/// ```
/// use tinyonn::decoder::pass::{Answers, ImageAsk};
/// use tinyonn::decoder::Learn;
/// use tinyonn::ops::MlpBackward;
///
/// /// What a feed-forward of one's own does where imaging asks: it shows its inner values.
/// fn answers(learn: &Learn, layer: usize, seen: &MlpBackward<'_>) -> tinyonn::Result<Answers> {
///     learn.answers(layer, seen)
/// }
/// assert!(Answers::default().sums.is_none()); // nobody asked
/// ```
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// [`ImageAsk::Sums`].
    pub sums: Option<ImageTensors>,
    /// [`ImageAsk::Scores`]: `[k, Σ nodes]` f64.
    pub scores: Option<Tensor>,
    /// [`ImageAsk::Removals`]: `[sets]` f64.
    pub removed: Option<Tensor>,
    /// [`ImageAsk::Sensitivity`]: Σ δ_h² `[I]` f64.
    pub sensitivity: Option<Tensor>,
    /// [`ImageAsk::Surprises`].
    pub surprises: Option<Surprises>,
    /// [`ImageAsk::Dump`]: activation and surprise, `[B·T, N]` f32 each.
    pub dump: Option<[Tensor; 2]>,
    /// [`Experts::Smk`], decided within the pass: who competed, and who learns.
    pub min_k: Option<MinK>,
    /// Multiply-adds that the weight gradients of the feed-forward took; of replicas they are not counted.
    pub products: Option<u64>,
}
