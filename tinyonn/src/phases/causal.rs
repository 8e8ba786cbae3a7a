//! Causal validation: does a task need what its image points at, more than other tasks do? (DESIGN §3.)
//!
//! The units (experts or neurons) of each layer that score highest on a task are ablated (×0) or amplified (×1.5), and the change of every task's
//! held-out loss is measured: the matrix Δ[task whose units are touched][task measured]. The statistic is the mean of its diagonal minus the
//! mean of the rest: above zero, a score finds what its own task needs and others do not. Beside ∫SPS stand its lowest units, other
//! scores, and random units: of the same number, and of the same number *and* output norm, `√Σ E[h_i²] ‖W_d[:, i]‖²` over the task's training
//! text: what matters by its size alone is told apart from what matters to a task.

use candle_core::{DType, Tensor};
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::run::Run;
use crate::checkpoint::ParamStore;
use crate::imaging::{Integral, NeuronScan, Score};
use crate::metrics::{Interval, Progress, interval};
use crate::qwen3::{Mlp, Qwen3ForCausalLm, RouteCtx};
use crate::random::{self, Rng};
use crate::train::Losses;
use crate::{Error, Result};

/// The share of a layer's units that are touched.
const SHARE: f64 = 0.1;
/// What their outputs are multiplied by.
const FACTORS: [f64; 2] = [0.0, 1.5];

/// One kind of intervention, on every task in turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intervention {
    /// What chose the units.
    pub source: String,
    /// `expert` or `neuron`.
    pub unit: String,
    /// What their outputs were multiplied by.
    pub factor: f64,
    /// Units touched in each layer.
    pub count: usize,
    /// Their output norm relative to that of the task's highest ∫SPS, mean over tasks.
    pub norm_ratio: f64,
    /// Change of the loss in nats a token, `[task whose units are touched][task measured]`.
    pub delta: Vec<Vec<f64>>,
    /// Mean of the diagonal minus mean of the rest.
    pub specificity: Interval,
}

/// Units by task and layer.
type Units = Vec<Vec<Vec<usize>>>;

impl Run<'_> {
    /// All interventions; `units[layer][i]` is the expert of neuron i.
    pub(super) fn causal(&self, scan: &NeuronScan, units: &[Vec<u32>]) -> Result<Vec<Intervention>> {
        let mut set = self.tokens.test.clone();
        set.beginnings(self.config.study_tokens.max(self.config.length + 1));
        let dense = self.evaluate_on(&self.dense_model()?, &set, &RouteCtx::all())?;
        let experts = self.variant.spec.experts();
        let width = self.dense.cfg.intermediate_size;
        let each = vec![(0..width as u32).collect::<Vec<_>>(); units.len()];
        let kinds = [("expert", units, experts), ("neuron", &each[..], width)];
        let power = self.output_power(scan)?;
        let mut done = Vec::new();
        let names = sources().len() as u64;
        let progress = Progress::new(kinds.len() as u64 * names * FACTORS.len() as u64, "causal");
        for (kind, owner, count) in kinds {
            let touched = ((count as f64 * SHARE).round() as usize).clamp(1, count);
            let by_unit = unit_power(&power, owner, count);
            let wanted = highest(&Integral::new(scan, Score::Sps), owner, count, touched);
            for source in sources() {
                let chosen = source.choose(scan, (owner, count, touched), &by_unit, &wanted, self.config.seed);
                for factor in FACTORS {
                    let after = chosen
                        .iter()
                        .map(|layers| self.evaluate_on(&self.touched(layers, owner, factor)?, &set, &RouteCtx::all()))
                        .collect::<Result<Vec<Losses>>>()?;
                    let delta =
                        |losses: &Losses| losses.by_task.iter().zip(&dense.by_task).map(|(a, b)| a - b).collect();
                    done.push(Intervention {
                        source: source.name(),
                        unit: kind.into(),
                        factor,
                        count: touched,
                        norm_ratio: norm_ratio(&chosen, &wanted, &by_unit),
                        delta: after.iter().map(delta).collect(),
                        specificity: specificity(&after, &dense, self.config.seed),
                    });
                    progress.set(done.len() as u64);
                }
            }
        }
        progress.finish();
        Ok(done)
    }

    /// The dense model with the outputs of `layers[layer]`, units of neurons by `owner`, multiplied.
    fn touched(&self, layers: &[Vec<usize>], owner: &[Vec<u32>], factor: f64) -> Result<Qwen3ForCausalLm<Mlp>> {
        let of_layer = |(units, owner): (&Vec<usize>, &Vec<u32>)| {
            owner.iter().map(|unit| if units.contains(&(*unit as usize)) { factor } else { 1.0 }).collect()
        };
        self.with_neurons_scaled(&layers.iter().zip(owner).map(of_layer).collect::<Vec<_>>())
    }

    /// The dense model with the output of each neuron multiplied: `factors[layer][i]` on the columns of W_d.
    pub(super) fn with_neurons_scaled(&self, factors: &[Vec<f64>]) -> Result<Qwen3ForCausalLm<Mlp>> {
        let mut store = ParamStore::from_handles(self.dense.store.device(), self.dense.store.handles());
        for (layer, factors) in factors.iter().enumerate().filter(|(_, factors)| factors.iter().any(|f| *f != 1.0)) {
            let name = down_proj(layer);
            let missing = || Error::tensor(&name, "is missing", "give a whole checkpoint");
            let down = store.remove(&name).ok_or_else(missing)?.as_detached_tensor();
            let factors: Vec<f32> = factors.iter().map(|f| *f as f32).collect();
            let factors = Tensor::new(factors.as_slice(), down.device())?;
            store.insert(name, down.broadcast_mul(&factors.to_dtype(down.dtype())?)?)?;
        }
        Qwen3ForCausalLm::dense(&self.dense.cfg, &store.builder(DType::F32, |_| false))
    }

    /// `E[h_i²] ‖W_d[:, i]‖²` over each task's text, `[task][layer][i]`.
    fn output_power(&self, scan: &NeuronScan) -> Result<Vec<Vec<Vec<f64>>>> {
        let norms = (0..scan.sums.len()).map(|layer| {
            let name = down_proj(layer);
            let missing = || Error::tensor(&name, "is missing", "give a whole checkpoint");
            let down = self.dense.store.get(&name).ok_or_else(missing)?.as_detached_tensor();
            Ok(down.to_dtype(DType::F64)?.sqr()?.sum(0)?.to_vec1::<f64>()?)
        });
        let norms = norms.collect::<Result<Vec<_>>>()?;
        let power = |task: usize, layer: usize| {
            let tokens = scan.tokens[task].max(1) as f64;
            let squares = &scan.sums[layer][task].activation_squared;
            squares.iter().zip(&norms[layer]).map(|(sum, norm)| sum / tokens * norm).collect()
        };
        Ok((0..scan.tasks.len()).map(|task| (0..norms.len()).map(|layer| power(task, layer)).collect()).collect())
    }
}

fn down_proj(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.down_proj.weight")
}

/// What chooses units.
enum Source {
    Highest { score: Score, contrasted: bool },
    LowestSps,
    Random,
    RandomOfSameNorm,
}

fn sources() -> Vec<Source> {
    let scores = [Score::Sps, Score::Activation, Score::Surprise, Score::ActivationPlusSurprise, Score::Taylor];
    let highest =
        scores.into_iter().flat_map(|score| [false, true].map(|contrasted| Source::Highest { score, contrasted }));
    highest.chain([Source::LowestSps, Source::Random, Source::RandomOfSameNorm]).collect()
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Highest { score, contrasted: false } => score.name().into(),
            Self::Highest { score, contrasted: true } => format!("{}_contrasted", score.name()),
            Self::LowestSps => "sps_lowest".into(),
            Self::Random => "random".into(),
            Self::RandomOfSameNorm => "random_of_same_norm".into(),
        }
    }

    fn choose(
        &self,
        scan: &NeuronScan,
        (owner, count, touched): (&[Vec<u32>], usize, usize),
        power: &[Vec<Vec<f64>>],
        wanted: &Units,
        seed: u64,
    ) -> Units {
        let by = |integral: &Integral| highest(integral, owner, count, touched);
        let mut rng = random::stream(seed, &format!("causal/{}", self.name()));
        let mut drawn = || {
            let mut order: Vec<usize> = (0..count).collect();
            order.shuffle(&mut rng);
            order
        };
        match self {
            Self::Highest { score, contrasted: false } => by(&Integral::new(scan, *score)),
            Self::Highest { score, contrasted: true } => by(&Integral::new(scan, *score).contrasted()),
            Self::LowestSps => by(&Integral::new(scan, Score::Sps).negated()),
            Self::Random => wanted.iter().map(|l| l.iter().map(|_| drawn()[..touched].to_vec()).collect()).collect(),
            Self::RandomOfSameNorm => {
                let of_task = |(layers, power): (&Vec<Vec<usize>>, &Vec<Vec<f64>>)| {
                    let of_layer = |(units, power): (&Vec<usize>, &Vec<f64>)| {
                        let target = units.iter().map(|unit| power[*unit]).sum();
                        let order = drawn();
                        of_same_norm(power, order, touched, target, &mut random::stream(seed, "causal/swaps"))
                    };
                    layers.iter().zip(power).map(of_layer).collect()
                };
                wanted.iter().zip(power).map(of_task).collect()
            }
        }
    }
}

/// The units of the highest values, ties to the lower index.
fn highest(integral: &Integral, owner: &[Vec<u32>], count: usize, touched: usize) -> Units {
    let best = |values: &Vec<f64>| {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
        order.truncate(touched);
        order
    };
    integral.by_unit(owner, count).iter().map(|layers| layers.iter().map(best).collect()).collect()
}

/// Each unit's share of the output power, `[task][layer][unit]`.
fn unit_power(power: &[Vec<Vec<f64>>], owner: &[Vec<u32>], count: usize) -> Vec<Vec<Vec<f64>>> {
    let of_layer = |(power, owner): (&Vec<f64>, &Vec<u32>)| {
        let mut sums = vec![0.0; count];
        power.iter().zip(owner).for_each(|(power, unit)| sums[*unit as usize] += power);
        sums
    };
    power.iter().map(|layers| layers.iter().zip(owner).map(of_layer).collect()).collect()
}

/// The first `touched` of a random `order`, then swaps of random units as long as they bring the power nearer to `target`.
fn of_same_norm(power: &[f64], mut order: Vec<usize>, touched: usize, target: f64, rng: &mut Rng) -> Vec<usize> {
    const CLOSE: f64 = 0.01;
    const TRIES: usize = 200;
    let mut held: f64 = order[..touched].iter().map(|unit| power[*unit]).sum();
    for _ in 0..TRIES * touched {
        if touched == order.len() || (held - target).abs() <= CLOSE * target {
            break;
        }
        let (out, into) = (rng.random_range(0..touched), rng.random_range(touched..order.len()));
        let swapped = held - power[order[out]] + power[order[into]];
        if (swapped - target).abs() < (held - target).abs() {
            order.swap(out, into);
            held = swapped;
        }
    }
    order.truncate(touched);
    order
}

fn norm_ratio(chosen: &Units, wanted: &Units, power: &[Vec<Vec<f64>>]) -> f64 {
    let norm = |units: &Vec<Vec<usize>>, power: &Vec<Vec<f64>>| {
        units.iter().zip(power).flat_map(|(units, power)| units.iter().map(|u| power[*u])).sum::<f64>().sqrt()
    };
    let of_task = |((chosen, wanted), power)| norm(chosen, power) / norm(wanted, power).max(f64::MIN_POSITIVE);
    chosen.iter().zip(wanted).zip(power).map(of_task).sum::<f64>() / chosen.len() as f64
}

/// Mean of the diagonal of Δ minus mean of the rest, drawn over documents; tasks weigh equally.
fn specificity(after: &[Losses], dense: &Losses, seed: u64) -> Interval {
    let tasks = after.len();
    let mut tokens = vec![0.0; tasks];
    dense.by_document.iter().for_each(|document| tokens[document.task] += document.tokens);
    let of_document = |at: usize| {
        let before = &dense.by_document[at];
        let delta = |touched: usize| after[touched].by_document[at].sum - before.sum;
        let others = (0..tasks).filter(|touched| *touched != before.task).map(delta).sum::<f64>();
        let own = delta(before.task) - others / (tasks - 1).max(1) as f64;
        let weight = 1.0 / tokens[before.task].max(1.0);
        (own * weight, before.tokens * weight)
    };
    let clusters: Vec<(f64, f64)> = (0..dense.by_document.len()).map(of_document).collect();
    interval(&clusters, seed)
}
