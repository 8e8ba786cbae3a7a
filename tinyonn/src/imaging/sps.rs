//! SPS = z(activation) − z(surprise), and its integral over a task; and the scores that it is compared with.
//!
//! z standardises over a layer's tokens and neurons, tasks weighted equally; z = 0 where the deviation is at most 1e-9, or no
//! more than the rounding of the sums. The moments are known only at the end of a scan, but ∫SPS is linear in them: from ā and S̄, a task's means a token,
//! ∫SPS[task, layer, i] / token = (ā_i − m_a)/s_a − (S̄_i − m_S)/s_S (DESIGN §3). Everything here is *per token*, so that tasks of
//! uneven size do not decide by size. An expert's value is the mean over its neurons, a group's over its experts' neurons.

use serde::{Deserialize, Serialize};

use super::NeuronScan;
use crate::ops::NeuronSums;

/// What is integrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// −h ∂L/∂h: by how much the loss would grow without the neuron, to first order (Molchanov et al., 2017).
    Taylor,
}

impl Score {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Sps, Self::Activation, Self::Surprise, Self::Calm, Self::ActivationPlusSurprise, Self::Taylor];

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
        }
    }

    /// What z(activation) and z(surprise) are multiplied by; `None` of what is made of neither.
    pub(super) fn signs(self) -> Option<(f64, f64)> {
        match self {
            Self::Sps => Some((1.0, -1.0)),
            Self::Activation => Some((1.0, 0.0)),
            Self::Surprise => Some((0.0, 1.0)),
            Self::Calm => Some((0.0, -1.0)),
            Self::ActivationPlusSurprise => Some((1.0, 1.0)),
            Self::Taylor => None,
        }
    }
}

/// A score integrated over each task, per token.
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

/// z(x) of one quantity of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standard {
    mean: f64,
    /// `None` where nothing varies: z is 0.
    deviation: Option<f64>,
}

impl Standard {
    /// By the means of x and x² a token, `[task][i]`.
    fn of(means: &[Vec<f64>], mean_squares: &[Vec<f64>]) -> Self {
        let average = |values: &[Vec<f64>]| {
            let by_task = values.iter().map(|task| task.iter().sum::<f64>() / task.len() as f64);
            by_task.sum::<f64>() / values.len() as f64
        };
        let mean = average(means);
        let mean_square = average(mean_squares);
        let variance = (mean_square - mean * mean).max(0.0);
        let deviation = variance.sqrt();
        let flat = deviation <= FLAT || variance <= ROUNDING * mean_square;
        Self { mean, deviation: (!flat).then_some(deviation) }
    }

    /// z(x).
    pub(super) fn z(self, x: f64) -> f64 {
        self.deviation.map_or(0.0, |deviation| (x - self.mean) / deviation)
    }

    fn all(self, means: &[Vec<f64>]) -> Vec<Vec<f64>> {
        means.iter().map(|task| task.iter().map(|x| self.z(*x)).collect()).collect()
    }
}

/// One layer's sums a token, `[task][i]`.
fn per_token(scan: &NeuronScan, layer: usize, sums: fn(&NeuronSums) -> &Vec<f64>) -> Vec<Vec<f64>> {
    let of_task = |task: usize| {
        let tokens = scan.tokens[task].max(1) as f64;
        sums(&scan.sums[layer][task]).iter().map(|sum| sum / tokens).collect()
    };
    (0..scan.tasks.len()).map(of_task).collect()
}

/// z(activation) and z(surprise) by the moments of one layer of a scan.
pub(super) fn standards(scan: &NeuronScan, layer: usize) -> [Standard; 2] {
    let moments = |sums, squares| Standard::of(&per_token(scan, layer, sums), &per_token(scan, layer, squares));
    [moments(|s| &s.activation, |s| &s.activation_squared), moments(|s| &s.surprise, |s| &s.surprise_squared)]
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
    #[must_use]
    pub fn new(scan: &NeuronScan, score: Score) -> Self {
        let (tasks, layers) = (scan.tasks.len(), scan.sums.len());
        let mut neurons = vec![Vec::with_capacity(layers); tasks];
        for layer in 0..layers {
            let values = match score.signs() {
                None => per_token(scan, layer, |s| &s.taylor),
                Some((of_activation, of_surprise)) => {
                    let [za, zs] = standards(scan, layer);
                    let a = za.all(&per_token(scan, layer, |s| &s.activation));
                    let s = zs.all(&per_token(scan, layer, |s| &s.surprise));
                    let sum = |(a, s): (&f64, &f64)| of_activation * a + of_surprise * s;
                    a.iter().zip(&s).map(|(a, s)| a.iter().zip(s).map(sum).collect()).collect()
                }
            };
            for (task, values) in values.into_iter().enumerate() {
                neurons[task].push(values);
            }
        }
        Self { neurons }
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
