//! Causal validation: does a task need what its image points at, more than other tasks do? (DESIGN §3.)
//!
//! The units (experts or neurons) of each layer that score highest on a task are ablated (×0) or amplified (×1.5), and the change of every task's
//! held-out loss is measured: the matrix Δ[task whose units are touched][task measured]. The *specificity* is the mean of its diagonal minus the
//! mean of the rest: above zero, a score finds what its own task needs and others do not.
//!
//! That alone may be size: what puts out much on a task's text costs that text much, whatever it is for. So ∫SPS' and activation's units are held
//! against others of the same number *and* output norm, `√Σ E[h_i²] ‖W_d[:, i]‖²` over the task's training text (cross terms left out), in two ways:
//!
//! - against random units. These have less norm, so of the source's own outputs only as large a share is taken (or added) as has their norm;
//! - against units that are not the source's own, drawn to have its norm. Where even the strongest others have less, they are these, and the
//!   source's outputs are weakened as above. What is strong on a task's text is a null that knows the task: the harder one.
//!
//! [`Intervention::beyond_random`] is the difference of the two specificities, at one number and one norm.

mod change;
mod touch;
mod units;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use self::change::{Change, difference, specificity};
use self::touch::Touch;
use self::units::{CONTROLS, Control, Layers, SPS, Source, Units, sources};
use tinyonn::data::TokenSet;
use tinyonn::decoder::{CausalLm, Mlp, Pass};
use tinyonn::imaging::NeuronScan;
use tinyonn::metrics::{Interval, Progress, interval};
use tinyonn::phases::Run;
use tinyonn::train::Losses;
use tinyonn::{Error, Result};

pub use self::units::{AS_OTHERS, AS_RANDOM, random_of_norm};

/// The share of a layer's units that are touched.
const SHARE: f64 = 0.1;
/// What outputs are multiplied by.
const FACTORS: [f64; 2] = [0.0, 1.5];

/// One kind of intervention, on every task in turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intervention {
    /// What chose the units: a score, `random`, `random_of_norm_of_` a score; a score's own weakened to the norm of the first are its
    /// `_as_random`, to that of the second its `_as_others`.
    pub source: String,
    /// `expert` or `neuron`.
    pub unit: String,
    /// What their outputs were multiplied by, 0 or 1.5, where nothing is weakened.
    pub factor: f64,
    /// How much of that was done: outputs × (1 + (factor − 1) · strength); mean over tasks and layers, 1 where nothing is weakened.
    pub strength: f64,
    /// Units touched in each layer.
    pub count: usize,
    /// Draws of random units, whose mean all figures are; 1 of what a score chose, or where there is but one choice.
    pub draws: usize,
    /// Their output norm × strength relative to that of the task's highest ∫SPS, mean over tasks.
    pub norm_to_sps: f64,
    /// The same relative to the units whose norm they were drawn to have; it is 1 but where no other units come that near.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_to_matched: Option<f64>,
    /// Change of the loss in nats a token, `[task whose units are touched][task measured]`.
    pub delta: Vec<Vec<f64>>,
    /// Mean of the diagonal minus mean of the rest.
    pub specificity: Interval,
    /// Of weakened ones: specificity minus that of the units whose number and norm they share, paired by document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond_random: Option<Interval>,
}

/// What interventions are measured on.
struct Ground<'a> {
    run: &'a Run<'a>,
    scan: &'a NeuronScan,
    set: TokenSet,
    dense: Losses,
}

/// All interventions; `units[layer][i]` is the expert of neuron i.
///
/// # Errors
/// Whatever the device reports.
pub fn causal(run: &Run<'_>, scan: &NeuronScan, units: &[Vec<u32>]) -> Result<Vec<Intervention>> {
    let mut set = run.tokens.test.clone();
    set.beginnings(run.config.study_tokens.max(run.config.length + 1));
    let dense = run.evaluate_on(&run.dense_model()?, &set, &Pass::all())?;
    let ground = Ground { run, scan, set, dense };
    let (experts, width) = (run.variant.spec.experts(), run.dense.cfg.intermediate_size);
    let each = vec![(0..width as u32).collect::<Vec<_>>(); units.len()];
    let power = output_power(run, scan)?;
    let kinds = [("expert", units, experts), ("neuron", &each[..], width)];
    let steps = kinds.len() * FACTORS.len() * (sources().len() + CONTROLS.len());
    let progress = Progress::new(steps as u64, "causal");
    let mut done = Vec::new();
    for (unit, owner, count) in kinds {
        let touched = ((count as f64 * SHARE).round() as usize).clamp(1, count);
        let layers = Layers { unit, owner, count, touched, power: unit_power(&power, owner, count) };
        done.extend(ground.interventions(&layers, || progress.set(progress.position() + 1))?);
    }
    progress.finish();
    Ok(done)
}

/// What chooses the units of every intervention, by the names that [`Intervention::source`] has.
#[must_use]
pub fn chosen() -> Vec<String> {
    let of_control = |control: Control| {
        let weakened = control.held_against().iter().map(|source| control.weakened(*source)).collect::<Vec<_>>();
        weakened.into_iter().chain([control.name()])
    };
    sources().into_iter().map(Source::name).chain(CONTROLS.into_iter().flat_map(of_control)).collect()
}

impl Ground<'_> {
    fn interventions(&self, of: &Layers<'_>, step: impl Fn()) -> Result<Vec<Intervention>> {
        let sps = SPS.choose(self.scan, of);
        let measured = |touch: &Touch, factor: f64| self.measured(of, touch, factor, &sps);
        let mut done = Vec::new();
        for source in sources() {
            let touch = Touch::whole(source.name(), vec![source.choose(self.scan, of)]);
            for factor in FACTORS {
                done.push(measured(&touch, factor)?.0);
                step();
            }
        }
        for control in CONTROLS {
            let drawn = Touch::whole(control.name(), control.draw(self.scan, of, self.run.config.seed));
            let weakened = |source: &Source| {
                let own = source.choose(self.scan, of);
                let norm = drawn.norm_to(&own, &of.power);
                (norm, Touch::weakened(control.weakened(*source), own, &drawn.draws, &of.power))
            };
            let weakened: Vec<(f64, Touch)> = control.held_against().iter().map(weakened).collect();
            for factor in FACTORS {
                let (mut random, of_random) = measured(&drawn, factor)?;
                for (norm, touch) in &weakened {
                    if let Control::OfNorm(_) = control {
                        random.norm_to_matched = Some(*norm);
                    }
                    let (mut found, of_own) = measured(touch, factor)?;
                    found.beyond_random = Some(interval(&difference(&of_own, &of_random), self.run.config.seed));
                    done.push(found);
                }
                done.push(random);
                step();
            }
        }
        Ok(done)
    }

    /// One intervention, mean over the draws of its units; and what each document adds to its specificity.
    fn measured(
        &self,
        of: &Layers<'_>,
        touch: &Touch,
        factor: f64,
        sps: &Units,
    ) -> Result<(Intervention, Vec<(f64, f64)>)> {
        let after = |units: &Units, task: usize| {
            let touched = touched(self.run, &units[task], of.owner, &touch.factors(task, factor))?;
            self.run.evaluate_on(&touched, &self.set, &Pass::all())
        };
        let change = |task: usize| {
            let draws = touch.draws.iter().map(|units| after(units, task)).collect::<Result<Vec<_>>>()?;
            Ok(Change::new(&draws, &self.dense))
        };
        let changes = (0..sps.len()).map(change).collect::<Result<Vec<_>>>()?;
        let by_document = specificity(&changes, &self.dense.by_document);
        let found = Intervention {
            source: touch.name.clone(),
            unit: of.unit.into(),
            factor,
            strength: touch.mean_strength(),
            count: of.touched,
            draws: touch.draws.len(),
            norm_to_sps: touch.norm_to(sps, &of.power),
            norm_to_matched: None,
            specificity: interval(&by_document, self.run.config.seed),
            beyond_random: None,
            delta: changes.into_iter().map(|change| change.by_task).collect(),
        };
        Ok((found, by_document))
    }
}

/// The dense model with the outputs of `layers[layer]`, units of neurons by `owner`, multiplied by a factor a layer.
pub(crate) fn touched(
    run: &Run<'_>,
    layers: &[Vec<usize>],
    owner: &[Vec<u32>],
    factors: &[f64],
) -> Result<CausalLm<Mlp>> {
    let of_layer = |((units, owner), factor): ((&Vec<usize>, &Vec<u32>), &f64)| {
        let count = owner.iter().max().map_or(0, |last| *last as usize + 1);
        let mut of_unit = vec![1.0; count.max(units.iter().max().map_or(0, |last| last + 1))];
        units.iter().for_each(|unit| of_unit[*unit] = *factor);
        owner.iter().map(|unit| of_unit[*unit as usize]).collect()
    };
    with_neurons_scaled(run, &layers.iter().zip(owner).zip(factors).map(of_layer).collect::<Vec<_>>())
}

/// The dense model with the output of each neuron multiplied: `factors[layer][i]` on the columns of W_d.
fn with_neurons_scaled(run: &Run<'_>, factors: &[Vec<f64>]) -> Result<CausalLm<Mlp>> {
    let mut store = run.dense.store.share();
    for (layer, factors) in factors.iter().enumerate().filter(|(_, factors)| factors.iter().any(|f| *f != 1.0)) {
        let name = down_proj(layer);
        let missing = || Error::tensor(&name, "is missing", "give a whole checkpoint");
        let down = store.remove(&name).ok_or_else(missing)?.as_detached_tensor();
        let factors: Vec<f32> = factors.iter().map(|f| *f as f32).collect();
        let factors = Tensor::new(factors.as_slice(), down.device())?;
        // In f32: a factor near 1 is none of bf16's.
        let touched = down.to_dtype(DType::F32)?.broadcast_mul(&factors.unsqueeze(1)?)?;
        store.insert(name, touched.to_dtype(down.dtype())?)?;
    }
    CausalLm::dense(&run.dense.cfg, &store.frozen())
}

/// The dense model whose MLPs give nothing: W_d = 0.
///
/// # Errors
/// Whatever the device reports.
pub fn without_mlps(run: &Run<'_>) -> Result<CausalLm<Mlp>> {
    let cfg = &run.dense.cfg;
    with_neurons_scaled(run, &vec![vec![0.0; cfg.intermediate_size]; cfg.num_hidden_layers])
}

/// `E[h_i²] ‖W_d[:, i]‖²` over each task's text, `[task][layer][i]`.
pub(crate) fn output_power(run: &Run<'_>, scan: &NeuronScan) -> Result<Vec<Vec<Vec<f64>>>> {
    let norms = (0..scan.sums.len())
        .map(|layer| Ok(down_projection(run, layer)?.to_dtype(DType::F64)?.sqr()?.sum(1)?.to_vec1::<f64>()?));
    let norms = norms.collect::<Result<Vec<_>>>()?;
    let power = |task: usize, layer: usize| {
        let tokens = scan.tokens[task].max(1) as f64;
        let squares = &scan.sums[layer][task].activation_squared;
        squares.iter().zip(&norms[layer]).map(|(sum, norm)| sum / tokens * norm).collect()
    };
    Ok((0..scan.tasks.len()).map(|task| (0..norms.len()).map(|layer| power(task, layer)).collect()).collect())
}

/// W_d of a layer, `[I, d]`.
pub(crate) fn down_projection(run: &Run<'_>, layer: usize) -> Result<Tensor> {
    let name = down_proj(layer);
    let missing = || Error::tensor(&name, "is missing", "give a whole checkpoint");
    Ok(run.dense.store.get(&name).ok_or_else(missing)?.as_detached_tensor())
}

fn down_proj(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.down_proj.weight")
}

/// Each unit's share of the output power, `[task][layer][unit]`.
pub(crate) fn unit_power(power: &[Vec<Vec<f64>>], owner: &[Vec<u32>], count: usize) -> Vec<Vec<Vec<f64>>> {
    let of_layer = |(power, owner): (&Vec<f64>, &Vec<u32>)| {
        let mut sums = vec![0.0; count];
        power.iter().zip(owner).for_each(|(power, unit)| sums[*unit as usize] += power);
        sums
    };
    power.iter().map(|layers| layers.iter().zip(owner).map(of_layer).collect()).collect()
}
