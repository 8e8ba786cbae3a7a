//! SPS = z(activation) − z(surprise), and its integral over a task; and the scores that it is compared with.
//!
//! z standardises over a layer's tokens and units, tasks weighted equally; z = 0 where the deviation is at most 1e-9, or no
//! more than the rounding of the sums. The moments are known only at the end of a scan, but ∫SPS is linear in them: from ā and S̄, a task's means a token,
//! ∫SPS[task, layer, i] / token = (ā_i − m_a)/s_a − (S̄_i − m_S)/s_S (DESIGN §3). Everything here is *per token*, so that tasks of
//! uneven size do not decide by size. [`Norm`] says over what z is taken, [`ExpertForm`] whether the units are neurons (an expert's
//! value is then the mean over its own) or experts. A group's value is the mean over its experts' neurons.

use super::score::{ExpertForm, Form, Norm, Score, Terms};
use super::{NeuronScan, Units};
use crate::ops::{NeuronSums, UnitSums, ZTerm};
use crate::{Error, Result};

/// A score integrated over each task, per token.
///
/// ```
/// use tinyonn::imaging::Integral;
///
/// // Two tasks, one layer, two neurons.
/// let integral = Integral { neurons: vec![vec![vec![3.0, 1.0]], vec![vec![1.0, 1.0]]] };
/// assert_eq!(integral.averaged().neurons, [[[2.0, 1.0]], [[2.0, 1.0]]]);
/// assert_eq!(integral.contrasted().neurons, [[[1.0, 0.0]], [[-1.0, 0.0]]]);
/// assert_eq!(integral.negated().neurons[0], [[-3.0, -1.0]]);
/// assert_eq!(integral.by_unit(&[vec![0, 0]], 1), [[[2.0]], [[1.0]]]); // both neurons are of one expert
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Integral {
    /// `neurons[task][layer][i]`.
    pub neurons: Vec<Vec<Vec<f64>>>,
}

/// Deviations at or below this are taken for none.
const FLAT: f64 = 1e-9;
/// So are variances at or below this share of the mean square: the difference of two f64 sums over millions of tokens, from
/// f32 values, says nothing finer.
const ROUNDING: f64 = 1e-12;

/// One quantity of one layer, a token, by (task, unit).
struct Quantity {
    means: Vec<Vec<f64>>,
    mean_squares: Vec<Vec<f64>>,
    /// Whether the task has tokens: a share of a text may hold none of it. One without stands at the mean.
    read: Vec<bool>,
}

impl Quantity {
    /// E[x] and E[x²] over units, tasks weighted equally.
    fn moments(&self) -> [f64; 2] {
        let tasks = self.read.iter().filter(|read| **read).count().max(1) as f64;
        [&self.means, &self.mean_squares].map(|values| {
            let read = values.iter().zip(&self.read).filter(|(_, read)| **read);
            read.map(|(task, _)| task.iter().sum::<f64>() / task.len() as f64).sum::<f64>() / tasks
        })
    }

    fn standardised(&self, moments: [f64; 2]) -> Vec<Vec<f64>> {
        let standard = Standard::of(moments);
        let z = |read: bool, x: &f64| if read { standard.z(*x) } else { 0.0 };
        let tasks = self.means.iter().zip(&self.read);
        tasks.map(|(task, read)| task.iter().map(|x| z(*read, x)).collect()).collect()
    }
}

/// z(x) of one quantity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standard {
    mean: f64,
    /// `None` where nothing varies: z is 0.
    deviation: Option<f64>,
}

impl Standard {
    /// By E[x] and E[x²].
    fn of([mean, mean_square]: [f64; 2]) -> Self {
        let variance = (mean_square - mean * mean).max(0.0);
        let deviation = variance.sqrt();
        let flat = deviation <= FLAT || variance <= ROUNDING * mean_square;
        Self { mean, deviation: (!flat).then_some(deviation) }
    }

    /// z(x).
    fn z(self, x: f64) -> f64 {
        self.deviation.map_or(0.0, |deviation| (x - self.mean) / deviation)
    }

    /// z(x) times a weight, for single tokens.
    pub(super) fn term(self, weight: f64) -> ZTerm {
        ZTerm { weight, mean: self.mean, deviation: self.deviation }
    }
}

/// z(activation) and z(surprise) of neurons by the moments of each layer of a scan.
pub(super) fn standards(scan: &NeuronScan) -> Vec<[Standard; 2]> {
    let [a, s] = of_neurons(scan);
    a.iter().zip(&s).map(|(a, s)| [a, s].map(|layer| Standard::of(layer.moments()))).collect()
}

/// z of one quantity, `[layer][task][unit]`.
fn standardised(layers: &[Quantity], norm: Norm) -> Vec<Vec<Vec<f64>>> {
    let mut moments: Vec<[f64; 2]> = layers.iter().map(Quantity::moments).collect();
    if norm == Norm::Global {
        let over_layers = |which: usize| moments.iter().map(|m| m[which]).sum::<f64>() / layers.len().max(1) as f64;
        moments = vec![[over_layers(0), over_layers(1)]; layers.len()];
    }
    layers.iter().zip(moments).map(|(layer, moments)| layer.standardised(moments)).collect()
}

/// a and S of every unit, `[layer]`, from sums that `get(layer, task)` finds as those of a, a², S, S².
fn quantities<'a>(scan: &NeuronScan, get: impl Fn(usize, usize) -> [&'a Vec<f64>; 4]) -> [Vec<Quantity>; 2] {
    [0, 2].map(|first| {
        let per_token = |layer: usize, which: usize| -> Vec<Vec<f64>> {
            let of_task = |task: usize| {
                let tokens = scan.tokens[task].max(1) as f64;
                get(layer, task)[which].iter().map(|sum| sum / tokens).collect()
            };
            (0..scan.tasks.len()).map(of_task).collect()
        };
        let of_layer = |layer: usize| Quantity {
            means: per_token(layer, first),
            mean_squares: per_token(layer, first + 1),
            read: scan.tokens.iter().map(|tokens| *tokens > 0).collect(),
        };
        (0..scan.sums.len()).map(of_layer).collect()
    })
}

fn of_neurons(scan: &NeuronScan) -> [Vec<Quantity>; 2] {
    quantities(scan, |layer, task| {
        let [a, a2, s, s2, ..] = scan.sums[layer][task].each();
        [a, a2, s, s2]
    })
}

/// Norms of experts of uneven width, made comparable: x/√width.
fn narrow(layers: &mut [Quantity], units: &Units) {
    for (layer, experts) in layers.iter_mut().zip(&units.neuron_expert) {
        let mut widths = vec![0usize; units.count];
        experts.iter().for_each(|expert| widths[*expert as usize] += 1);
        let widths: Vec<f64> = widths.into_iter().map(|width| width.max(1) as f64).collect();
        for values in &mut layer.means {
            values.iter_mut().zip(&widths).for_each(|(x, width)| *x /= width.sqrt());
        }
        for values in &mut layer.mean_squares {
            values.iter_mut().zip(&widths).for_each(|(x, width)| *x /= width);
        }
    }
}

impl Integral {
    /// Integrates `score` over the tasks of `scan`.
    ///
    /// ```
    /// use tinyonn::imaging::{Integral, NeuronScan, Score};
    /// // One layer of two neurons; one token of each of two tasks, activations (3, 1) and (1, 3), no surprise.
    /// let mut scan = NeuronScan::zero(vec!["a".into(), "b".into()], 1, 2);
    /// for (task, activation) in [[3.0, 1.0], [1.0, 3.0]].into_iter().enumerate() {
    ///     scan.tokens[task] = 1;
    ///     scan.sums[0][task].activation = activation.to_vec();
    ///     scan.sums[0][task].activation_squared = activation.map(|a| a * a).to_vec();
    /// }
    /// // Their mean is 2, their deviation 1; a flat surprise adds nothing.
    /// let integral = Integral::new(&scan, Score::Sps);
    /// assert_eq!(integral.neurons, [[[1.0, -1.0]], [[-1.0, 1.0]]]);
    /// ```
    ///
    /// z is over a layer's tokens and neurons; [`of`](Self::of) has the other forms.
    #[must_use]
    pub fn new(scan: &NeuronScan, score: Score) -> Self {
        Self::combined(scan, &of_neurons(scan), score, Norm::Layer)
    }

    /// Integrates `score` over the tasks of `scan` in the given `form`. With [`ExpertForm::Norm`] every neuron has the value of its
    /// expert, so that [`by_unit`](Self::by_unit) over the scan's own partition gives the experts' values, and a group's is the
    /// width-weighted mean over its experts.
    ///
    /// # Errors
    /// A form whose sums the scan does not hold; a Taylor score as a norm, which it has none of.
    pub fn of(scan: &NeuronScan, score: Score, form: Form) -> Result<Self> {
        let log1p = match (form.norm, &scan.log1p) {
            (Norm::Log1p, None) => {
                let problem = "the scan holds no sums of log1p values";
                return Err(Error::setting("norm", problem, "scan with norm = log1p, or use layer or global"));
            }
            (Norm::Log1p, log1p) => log1p.as_ref(),
            _ => None,
        };
        if form.expert == ExpertForm::Norm {
            return Self::of_experts(scan, score, form.norm);
        }
        let quantities = match log1p {
            None => of_neurons(scan),
            Some(log1p) => quantities(scan, |layer, task| log1p.neurons[layer][task].each()),
        };
        Ok(Self::combined(scan, &quantities, score, form.norm))
    }

    fn of_experts(scan: &NeuronScan, score: Score, norm: Norm) -> Result<Self> {
        let Some(experts) = &scan.experts else {
            let problem = "an expert's norms do not follow from its neurons' sums, and the scan holds no others";
            return Err(Error::setting("expert", problem, "scan with the partition known, or use expert = mean"));
        };
        if !score.is_standardised() {
            let problem = "a Taylor score is a sum, which has no norm";
            return Err(Error::setting("expert", problem, "use expert = mean"));
        }
        let of_log1p = scan.log1p.as_ref().and_then(|log1p| log1p.experts.as_ref());
        let sums: &Vec<Vec<UnitSums>> = of_log1p.filter(|_| norm == Norm::Log1p).unwrap_or(&experts.sums);
        let mut quantities = quantities(scan, |layer, task| sums[layer][task].each());
        if norm != Norm::Log1p {
            quantities.iter_mut().for_each(|layers| narrow(layers, &experts.units));
        }
        let by_expert = Self::combined(scan, &quantities, score, norm);
        let spread =
            |(values, units): (&Vec<f64>, &Vec<u32>)| units.iter().map(|unit| values[*unit as usize]).collect();
        let of_task = |layers: &Vec<Vec<f64>>| layers.iter().zip(&experts.units.neuron_expert).map(spread).collect();
        Ok(Self { neurons: by_expert.neurons.iter().map(of_task).collect() })
    }

    fn combined(scan: &NeuronScan, [a, s]: &[Vec<Quantity>; 2], score: Score, norm: Norm) -> Self {
        let mut neurons = vec![Vec::with_capacity(scan.sums.len()); scan.tasks.len()];
        let (of_activation, of_surprise) = match score.terms() {
            Terms::Standardised(of_activation, of_surprise) => (of_activation, of_surprise),
            Terms::Taylor { magnitude } => return Self::taylor(scan, magnitude),
        };
        for (a, s) in standardised(a, norm).iter().zip(&standardised(s, norm)) {
            for (task, (a, s)) in a.iter().zip(s).enumerate() {
                neurons[task].push(a.iter().zip(s).map(|(a, s)| of_activation * a + of_surprise * s).collect());
            }
        }
        Self { neurons }
    }

    fn taylor(scan: &NeuronScan, magnitude: bool) -> Self {
        let of_layer = |layer: &Vec<NeuronSums>, task: usize| {
            let sums = if magnitude { &layer[task].taylor_magnitude } else { &layer[task].taylor };
            let tokens = scan.tokens[task].max(1) as f64;
            sums.iter().map(|sum| sum / tokens).collect()
        };
        let of_task = |task: usize| scan.sums.iter().map(|layer| of_layer(layer, task)).collect();
        Self { neurons: (0..scan.tasks.len()).map(of_task).collect() }
    }

    /// What sets tasks apart: each value minus its mean over tasks.
    #[must_use]
    pub fn contrasted(&self) -> Self {
        let (mean, mut neurons) = (self.over_tasks(), self.neurons.clone());
        for task in &mut neurons {
            let values = task.iter_mut().flatten().zip(mean.iter().flatten());
            values.for_each(|(value, mean)| *value -= mean);
        }
        Self { neurons }
    }

    /// The same with its sign turned: the lowest come first.
    #[must_use]
    pub fn negated(&self) -> Self {
        let mut neurons = self.neurons.clone();
        neurons.iter_mut().flatten().flatten().for_each(|x| *x = -*x);
        Self { neurons }
    }

    /// What tasks have in common: in place of each value the mean over tasks.
    #[must_use]
    pub fn averaged(&self) -> Self {
        Self { neurons: vec![self.over_tasks(); self.neurons.len()] }
    }

    /// The mean over tasks, `[layer][i]`.
    fn over_tasks(&self) -> Vec<Vec<f64>> {
        let mut mean = self.neurons.first().cloned().unwrap_or_default();
        for (layer, values) in mean.iter_mut().enumerate() {
            for (i, mean) in values.iter_mut().enumerate() {
                *mean = self.neurons.iter().map(|task| task[layer][i]).sum::<f64>() / self.neurons.len() as f64;
            }
        }
        mean
    }

    /// The mean over each unit's neurons, `[task][layer][unit]`; `units[layer][i]` is the unit of neuron i, of `count`.
    #[must_use]
    pub fn by_unit(&self, units: &[Vec<u32>], count: usize) -> Vec<Vec<Vec<f64>>> {
        let of_layer = |values: &Vec<f64>, units: &Vec<u32>| {
            let (mut sums, mut widths) = (vec![0.0; count], vec![0usize; count]);
            for (value, unit) in values.iter().zip(units) {
                sums[*unit as usize] += value;
                widths[*unit as usize] += 1;
            }
            sums.iter().zip(&widths).map(|(sum, width)| sum / (*width).max(1) as f64).collect()
        };
        self.neurons.iter().map(|layers| layers.iter().zip(units).map(|(v, u)| of_layer(v, u)).collect()).collect()
    }
}
