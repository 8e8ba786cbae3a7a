//! How many neurons each layer keeps, so that all layers together cost a share of the MLPs' operations and the loss rises least.
//!
//! A [`Cut`] of a layer has the share p of the channels of x that W_g reads, the share c of the neurons that a gate may choose (candidates: those of the largest
//! E|h_i| · v_i) and the share s that tokens take on average, by thresholds. It costs p c/3 + 2 s/3 of the MLP: what W_g reads for the candidates, W_u and W_d of
//! what is taken. s is the mean of the share whose rows of W_u are read, and of the smaller one whose rows of W_d are, once W_u has told what they add
//! ([`Cut::read`]). A fixed set has c = s. Its damage is what [`squared_removal`](crate::ops::squared_removal) estimates on held-out text, from one forward and one backward pass of the dense model
//! for all cuts of all layers.
//!
//! What is made least is the sum over layers of *squared* damages, so that no layer bears most of it: the estimate is of each layer alone, before it is
//! repaired, and says more of which layer suffers than of how much (on SmolLM2 at half of the operations exponents 1, 1.5, 2 and 3 gave perplexities of 1.46,
//! 1.45, 1.45 and 1.46 times the dense model's, ½ 1.54). The cuts of a layer lie above a convex curve of squared damage over cost; each further bit of cost
//! goes where the curve falls most steeply (water-filling), the optimum for what adds up. Between two cuts on a curve p c, c and s are interpolated: cost is
//! linear in them.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::neuron_calibration::{
    Choose, candidate_order, column_norms, least_read, mean_up, scores, sizes, worth_or_norm,
};
use crate::data::{Batch, TokenSet};
use crate::decoder::{Answers, CausalLm, ImageAsk, Keep, Learn, Mlp, Pass};
use crate::metrics::Progress;
use crate::ops::removal::{KeptSet, Removal};
use crate::ops::{Grads, MlpWeights, ReadInputs, host};
use crate::{Error, Result};

/// What a layer is cut down to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// p, the share of x's channels that W_g reads.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub inputs: f64,
    /// c, the share of the neurons that may be taken.
    pub candidates: f64,
    /// s, the share that is taken, at most c; a neuron whose row of W_u alone is read counts half.
    pub neurons: f64,
}

fn all() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_all(share: &f64) -> bool {
    *share >= 1.0
}

/// The exponent of p = (operations / c)^0.6: on SmolLM2 p of 0.65 to 0.75 lost the least at half of the operations.
const INPUTS: f64 = 0.6;

impl Cut {
    /// All of a layer.
    pub const WHOLE: Self = Self::of(1.0, 1.0);

    /// Of the share c of the neurons, of which s is taken; W_g reads all of x.
    #[must_use]
    pub const fn of(candidates: f64, neurons: f64) -> Self {
        Self { inputs: 1.0, candidates, neurons }
    }

    /// By three thresholds, of so many operations and the share c of the neurons: p = (o/c)^0.6, and what is left for W_u and W_d; `None` of so few that nothing
    /// would be.
    ///
    /// ```
    /// use tinyonn::imaging::Cut;
    ///
    /// let cut = Cut::by_thresholds(0.5, 1.0).expect("that is enough");
    /// assert!((cut.operations() - 0.5).abs() < 1e-12 && (cut.inputs - 0.66).abs() < 0.01);
    /// assert!(Cut::by_thresholds(0.01, 1.0).is_none());
    /// ```
    #[must_use]
    pub fn by_thresholds(operations: f64, candidates: f64) -> Option<Self> {
        let inputs = (operations / candidates).powf(INPUTS).min(1.0);
        let neurons = ((3.0 * operations - inputs * candidates) / 2.0).min(candidates);
        (neurons > 0.0).then_some(Self { inputs, candidates, neurons })
    }

    /// The share of the MLP's operations: p c/3 + 2 s/3.
    ///
    /// ```
    /// use tinyonn::imaging::Cut;
    ///
    /// assert_eq!(Cut::of(1.0, 0.25).operations(), 0.5);
    /// assert_eq!(Cut::of(0.5, 0.5).operations(), 0.5);
    /// assert_eq!(Cut { inputs: 0.5, ..Cut::of(1.0, 0.5) }.operations(), 0.5);
    /// ```
    #[must_use]
    pub fn operations(self) -> f64 {
        (self.inputs * self.candidates + 2.0 * self.neurons) / 3.0
    }

    /// The shares of the neurons whose rows of W_u and of W_d a gate reads. By thresholds it is s on average: three quarters of the first go on to W_d, and there
    /// are no more of the first than candidates.
    ///
    /// ```
    /// use tinyonn::imaging::{Choose, Cut};
    ///
    /// let [up, down] = Cut::of(1.0, 0.35).read(Choose::Threshold);
    /// assert!((up - 0.4).abs() < 1e-12 && (down - 0.3).abs() < 1e-12);
    /// assert_eq!(Cut::of(0.5, 0.5).read(Choose::Threshold), [0.5, 0.5]);
    /// assert_eq!(Cut::of(1.0, 0.35).read(Choose::TopK), [0.35, 0.35]);
    /// ```
    #[must_use]
    pub fn read(self, choose: Choose) -> [f64; 2] {
        if choose == Choose::TopK {
            return [self.neurons; 2];
        }
        let up = (2.0 * self.neurons / (1.0 + GO_ON)).min(self.candidates);
        [up, 2.0 * self.neurons - up]
    }

    /// Between two: p c, c and s are interpolated, and so is what it costs.
    fn towards(self, other: Self, part: f64) -> Self {
        let between = |a: f64, b: f64| a + part * (b - a);
        let candidates = between(self.candidates, other.candidates);
        let gates = between(self.inputs * self.candidates, other.inputs * other.candidates);
        Self { inputs: gates / candidates, candidates, neurons: between(self.neurons, other.neurons) }
    }
}

/// Cuts of one layer, and the damage of each, per token.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerDamage {
    /// The cuts.
    pub cuts: Vec<Cut>,
    /// ½ E (Σ c (h − m h') δ_h)², nats a token: m what is taken, h' of what W_g reads.
    pub damage: Vec<f64>,
}

/// What each layer is cut down to, so that they cost `operations` on average and the squares of their damages add up to the least.
///
/// ```
/// use tinyonn::imaging::{Cut, LayerDamage, cuts_by_layer};
///
/// let cuts: Vec<Cut> = [0.2, 0.6, 1.0].map(|share| Cut::of(share, share)).to_vec();
/// // Half of the second layer says nothing.
/// let layers = [vec![4.0, 2.0, 0.0], vec![1.0, 0.0, 0.0]].map(|damage| LayerDamage { cuts: cuts.clone(), damage });
/// let found = cuts_by_layer(&layers, 0.8)?;
/// assert!((found[0].neurons - 1.0).abs() < 1e-9 && (found[1].neurons - 0.6).abs() < 1e-9);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// Less than the cheapest cuts of all layers cost, or more than all neurons; a damage that is no finite number.
pub fn cuts_by_layer(layers: &[LayerDamage], operations: f64) -> Result<Vec<Cut>> {
    let curves: Vec<Vec<(Cut, f64)>> = layers.iter().map(curve).collect::<Result<_>>()?;
    let least: f64 = curves.iter().filter_map(|curve| curve.first()).map(|(cut, _)| cut.operations()).sum();
    let mut left = operations * layers.len() as f64 - least;
    if !(left >= -1e-9 && operations <= 1.0) {
        let cheapest = least / layers.len().max(1) as f64;
        let problem =
            format!("is {operations}, and layers can be cut down to {cheapest:.3} of their operations, no further");
        return Err(Error::setting("active_share", problem, "use more, and at most 1"));
    }
    // Steps from each cut to the next on its curve: the steepest first. Curves are convex, so that steps of a layer stay in their order.
    let mut steps: Vec<(usize, usize, f64)> = Vec::new();
    for (layer, curve) in curves.iter().enumerate() {
        for (at, pair) in curve.windows(2).enumerate() {
            if let [(from, more), (to, less)] = pair {
                steps.push((layer, at, (more - less) / (to.operations() - from.operations())));
            }
        }
    }
    steps.sort_by(|a, b| b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1))));
    let mut cuts: Vec<Cut> = curves.iter().map(|curve| curve.first().map_or(Cut::WHOLE, |(cut, _)| *cut)).collect();
    for (layer, at, _) in steps {
        let (from, to) = (curves[layer][at].0, curves[layer][at + 1].0);
        let cost = to.operations() - from.operations();
        let part = (left / cost).clamp(0.0, 1.0);
        cuts[layer] = from.towards(to, part);
        left -= cost * part;
        if part < 1.0 {
            break;
        }
    }
    Ok(cuts)
}

/// The lower convex hull of squared damage over cost, the cheapest cut first, as far as damage falls.
fn curve(layer: &LayerDamage) -> Result<Vec<(Cut, f64)>> {
    let squares = layer.damage.iter().map(|damage| damage * damage);
    let mut points: Vec<(Cut, f64)> = layer.cuts.iter().copied().zip(squares).collect();
    if let Some((cut, damage)) = points.iter().find(|(_, damage)| !damage.is_finite()) {
        let problem = format!("is {damage} where {:.2} of a layer's neurons are taken", cut.neurons);
        return Err(Error::setting("damage", problem, "check the model's tensors for values that are not finite"));
    }
    let cost = |point: &(Cut, f64)| point.0.operations();
    points.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.1.total_cmp(&b.1)));
    points.dedup_by(|next, kept| cost(next) - cost(kept) < 1e-12);
    let mut hull: Vec<(Cut, f64)> = Vec::new();
    for point in points {
        while let [.., a, b] = hull.as_slice() {
            let above = (b.1 - a.1) * (cost(&point) - cost(a)) >= (point.1 - a.1) * (cost(b) - cost(a));
            if !above {
                break;
            }
            hull.pop();
        }
        if hull.last().is_none_or(|last| point.1 < last.1) {
            hull.push(point);
        }
    }
    Ok(hull)
}

/// The cuts that a gate may make of a layer: candidates by fifths, or one share of them; as much of x as W_g may read, from all to a quarter, or one share of it;
/// what is left of each tenth of the operations is taken.
///
/// ```
/// use tinyonn::imaging::neuron_damage::cuts_of_a_gate;
///
/// assert!(cuts_of_a_gate(Some(0.5), Some(1.0)).iter().all(|cut| cut.candidates == 0.5 && cut.inputs == 1.0));
/// assert!(cuts_of_a_gate(None, None).iter().any(|cut| cut.inputs == 0.6 && cut.candidates == 0.8));
/// ```
#[must_use]
pub fn cuts_of_a_gate(candidates: Option<f64>, inputs: Option<f64>) -> Vec<Cut> {
    let shares = |one: Option<f64>, some: &[f64]| one.map_or_else(|| some.to_vec(), |one| vec![one]);
    let mut cuts = Vec::new();
    for inputs in shares(inputs, &[1.0, 0.8, 0.6, 0.4, 0.25]) {
        for candidates in shares(candidates, &[1.0, 0.8, 0.6, 0.4]) {
            let of = |tenth: u32| (3.0 * f64::from(tenth) / 10.0 - inputs * candidates) / 2.0;
            let some = |neurons: &f64| *neurons > MIN_TAKEN && *neurons < candidates;
            let neurons = (1..=10).map(of).filter(some).chain([candidates]);
            cuts.extend(neurons.map(|neurons| Cut { inputs, candidates, neurons }));
        }
    }
    cuts
}

/// Fixed sets: by twentieths.
#[must_use]
pub fn cuts_of_a_fixed_set() -> Vec<Cut> {
    (1..=20).map(|at| f64::from(at) / 20.0).map(|share| Cut::of(share, share)).collect()
}

/// The least share of the neurons that a cut takes.
const MIN_TAKEN: f64 = 0.02;
/// The part of the neurons whose rows of W_u were read that goes on to W_d.
const GO_ON: f64 = 0.75;
/// Rows of each layer that thresholds are found by.
const ROWS: usize = 1024;

/// How held-out text is read.
#[derive(Clone, Copy, Debug)]
pub struct DamageOptions {
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// Tokens of each task, at most.
    pub tokens: usize,
    /// How what is taken is bounded.
    pub choose: Choose,
}

/// The damage of `cuts` to every layer of the dense `model`, on the beginning of each task of `set`; `worth` is v of each layer, or ‖w_i‖ where there is none.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::imaging::neuron_damage::{cuts_of_a_fixed_set, cuts_of_a_gate};
/// use tinyonn::imaging::{Choose, Cut, DamageOptions, neuron_damage, sensitivity};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
///
/// let options = DamageOptions { length: 32, batch: 2, tokens: 64, choose: Choose::Threshold };
/// let cuts = [Cut::of(1.0, 0.5), Cut::WHOLE];
/// let worth = sensitivity(&model, &set, options)?;
/// let damage = neuron_damage(&model, &set, options, &cuts, Some(&worth))?;
/// assert!(damage[0].damage[0] > 0.0 && damage[0].damage[1] == 0.0); // of what is not cut nothing is lost
/// assert!(cuts_of_a_gate(Some(0.5), None).iter().all(|cut| cut.neurons <= 0.5) && cuts_of_a_fixed_set().len() == 20);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// No text; what the device reports.
pub fn neuron_damage(
    model: &CausalLm<Mlp>,
    set: &TokenSet,
    options: DamageOptions,
    cuts: &[Cut],
    worth: Option<&[Tensor]>,
) -> Result<Vec<LayerDamage>> {
    let batches = batches(model, set, options)?;
    let by = removals(model, &batches, (cuts, options.choose), worth)?;
    let ask = |counted_t| ImageAsk::Removals { counted_t, by: Arc::clone(&by) };
    let (sums, tokens) = summed(model, &batches, ask, |answers| answers.removed.as_ref())?;
    let of_layer = |sums: Vec<f64>| LayerDamage {
        cuts: cuts.to_vec(),
        damage: sums.into_iter().map(|sum| 0.5 * sum / tokens as f64).collect(),
    };
    Ok(sums.into_iter().map(of_layer).collect())
}

/// v of every layer of the dense `model`, `[I]` f32: √E δ_h², how much the loss moves with h, on the beginning of each task of `set`.
///
/// # Errors
/// As of [`neuron_damage`].
pub fn sensitivity(model: &CausalLm<Mlp>, set: &TokenSet, options: DamageOptions) -> Result<Vec<Tensor>> {
    let batches = batches(model, set, options)?;
    let ask = |counted_t| ImageAsk::Sensitivity { counted_t };
    let (sums, tokens) = summed(model, &batches, ask, |answers| answers.sensitivity.as_ref())?;
    let of_layer = |sums: Vec<f64>| {
        let roots: Vec<f32> = sums.into_iter().map(|sum| (sum / tokens as f64).sqrt() as f32).collect();
        Ok(Tensor::new(roots, model.head().device())?)
    };
    sums.into_iter().map(of_layer).collect()
}

/// What is read of a text.
fn batches(model: &CausalLm<Mlp>, set: &TokenSet, options: DamageOptions) -> Result<Vec<Batch>> {
    let mut set = set.clone();
    set.truncate(options.tokens);
    let mut batches: Vec<Batch> = Vec::new();
    for task in 0..set.tasks.len() {
        for batch in set.batches_of_task(task, options.length, options.batch, model.head().device())? {
            batches.push(batch?);
        }
    }
    if !batches.iter().any(|batch| batch.counted.contains(&true)) {
        return Err(Error::setting("damage", "there is no held-out token", "give each kind of text more documents"));
    }
    Ok(batches)
}

/// Sums over batches of what each layer answers, and the number of tokens.
fn summed(
    model: &CausalLm<Mlp>,
    batches: &[Batch],
    ask: impl Fn(Tensor) -> ImageAsk,
    answer: impl Fn(&Answers) -> Option<&Tensor>,
) -> Result<(Vec<Vec<f64>>, usize)> {
    let tokens = batches.iter().flat_map(|batch| &batch.counted).filter(|counted| **counted).count();
    let mut sums: Vec<Vec<f64>> = Vec::new();
    let progress = Progress::new(batches.len() as u64, "neurons' worth");
    for (batch, done) in batches.iter().zip(1..) {
        let forward = model.forward(&batch.inputs, &batch.targets, &Pass { keep: Keep::All, ..Pass::all() })?;
        let learn = Learn { image: Some(Arc::new(ask(batch.counted_t()?))), ..Learn::default() };
        let dlosses = forward.losses.ones_like()?;
        let answers = model.backward(forward.saved, &dlosses, &learn, &mut Grads::new([])?)?;
        let own = host::read(&answers.iter().filter_map(&answer).collect::<Vec<_>>())?;
        sums.resize_with(own.len(), Vec::new);
        for (sums, own) in sums.iter_mut().zip(own) {
            sums.resize(own.len(), 0.0);
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        progress.set(done);
    }
    progress.finish();
    Ok((sums, tokens))
}

/// What is asked of every layer: thresholds from what the dense model's feed-forwards see of some rows.
fn removals(
    model: &CausalLm<Mlp>,
    batches: &[Batch],
    cuts: (&[Cut], Choose),
    worth: Option<&[Tensor]>,
) -> Result<Arc<[Removal]>> {
    let decoder = model.model();
    let device = model.head().device();
    let mut streams = batches.iter().map(|batch| decoder.embed(&batch.inputs)).collect::<Result<Vec<_>>>()?;
    let rows = batches.iter().map(|batch| own_rows(batch, ROWS.div_ceil(batches.len().max(1)), device));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let mut asked = Vec::with_capacity(decoder.layers().len());
    for (layer, block) in decoder.layers().iter().enumerate() {
        let mut seen = Vec::with_capacity(batches.len());
        for (stream, rows) in streams.iter_mut().zip(&rows) {
            let [middle, normed] = decoder.attend(layer, stream)?;
            seen.push(normed.flatten_to(1)?.index_select(rows, 0)?);
            *stream = (middle + block.mlp().output(&normed)?)?;
        }
        let worth_i = worth.and_then(|worth| worth.get(layer));
        asked.push(removal(block.mlp().weights(), &Tensor::cat(&seen, 0)?, cuts, worth_i)?);
    }
    Ok(asked.into())
}

/// Rows of a batch that have a target, at most `most`, evenly spread.
fn own_rows(batch: &Batch, most: usize, device: &Device) -> Result<Tensor> {
    let own: Vec<u32> = batch.counted.iter().zip(0..).filter(|(counted, _)| **counted).map(|(_, at)| at).collect();
    let kept: Vec<u32> = super::inputs::spread(own.len(), most).map(|at| own[at]).collect();
    let count = kept.len();
    Ok(Tensor::from_vec(kept, count, device)?)
}

fn removal(
    weights: MlpWeights<'_>,
    x_nd: &Tensor,
    (cuts, choose): (&[Cut], Choose),
    worth_i: Option<&Tensor>,
) -> Result<Removal> {
    let device = x_nd.device();
    let order = candidate_order(weights, x_nd, worth_i)?;
    let order_i = Tensor::from_slice(&order, order.len(), device)?;
    let mean_up_i = Tensor::new(mean_up(weights, x_nd)?.as_slice(), device)?;
    let column_norm_d = column_norms(weights)?;
    let width = order.len();
    let mut sets = Vec::with_capacity(cuts.len());
    // Cuts that read the same of x come one after another.
    for cuts in cuts.chunk_by(|a, b| a.inputs.to_bits() == b.inputs.to_bits()) {
        let inputs = cuts.first().map_or(1.0, |cut| cut.inputs);
        let least_input = if inputs < 1.0 { least_read(&column_norm_d, x_nd, inputs)? } else { 0.0 };
        let read_nd = if least_input > 0.0 {
            ReadInputs { size_d: &column_norm_d, least: least_input, by_channel: None }.of(x_nd)?
        } else {
            x_nd.clone()
        };
        let in_order_ni = |x_ni: Tensor| Ok::<_, Error>(host::in_memory(&x_ni.index_select(&order_i, 1)?)?);
        let scores = in_order_ni(scores(weights, &read_nd, &mean_up_i, worth_i)?)?;
        let sizes = in_order_ni(sizes(weights, [&read_nd, x_nd], worth_i)?)?;
        let mut sorted: Option<(usize, Vec<(f32, f32)>)> = None;
        for cut in cuts {
            let count = |share: f64| ((share * width as f64).round() as usize).clamp(1, width);
            let (candidates, [up, down]) = (count(cut.candidates), cut.read(choose).map(count));
            let own = match &sorted {
                Some((of, own)) if *of == candidates => own,
                _ => &sorted.insert((candidates, best_first(&scores, &sizes, (width, candidates)))).1,
            };
            let pairs = |neurons: usize| (x_nd.dims()[0] * neurons).clamp(1, own.len());
            // The score that so many pairs reach; of these the |h| v that so many reach.
            let least_score = if up >= candidates { 0.0 } else { own[pairs(up) - 1].0 };
            let least_hidden = if down >= up {
                0.0
            } else {
                let mut taken: Vec<f32> = own[..pairs(up)].iter().map(|(_, size)| *size).collect();
                let at = pairs(down).min(taken.len()) - 1;
                *taken.select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1
            };
            sets.push(KeptSet { least_input, candidates, least_score, least_hidden });
        }
    }
    let in_order = |x_i: &Tensor| x_i.index_select(&order_i, 0);
    Ok(Removal {
        mean_up_i: in_order(&mean_up_i)?,
        worth_i: in_order(&worth_or_norm(weights, worth_i)?)?,
        column_norm_d,
        activation: weights.activation,
        order_i,
        sets,
    })
}

/// Scores and |h| v of the first so many `candidates` of all rows of `width`, the best score first.
fn best_first(scores: &[f32], sizes: &[f32], (width, candidates): (usize, usize)) -> Vec<(f32, f32)> {
    let rows = scores.chunks_exact(width.max(1)).zip(sizes.chunks_exact(width.max(1)));
    let mut own: Vec<(f32, f32)> =
        rows.flat_map(|(row, sizes)| row.iter().copied().zip(sizes.iter().copied()).take(candidates)).collect();
    own.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    own
}
