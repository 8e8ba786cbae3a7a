//! SPS = z(activation) − z(surprise), and its integral over a task.
//!
//! z standardises over a layer's tokens and neurons, tasks weighted equally; z = 0 where the deviation is at most 1e-9, or no
//! more than the rounding of the sums. The moments are known only at the end of a scan, but ∫SPS is linear in them: from ā and S̄, a task's means a token,
//! ∫SPS[task, layer, i] / token = (ā_i − m_a)/s_a − (S̄_i − m_S)/s_S (DESIGN §3). Everything here is *per token*, so that tasks of
//! uneven size do not decide by size. An expert's value is the mean over its neurons, a group's over its experts' neurons.

use serde::{Deserialize, Serialize};

use super::NeuronScan;

/// What is integrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// z(activation) − z(surprise).
    Sps,
    /// z(activation).
    Activation,
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

/// One quantity of one layer: its means a token by (task, neuron), standardised.
fn standardised(means: &[Vec<f64>], mean_squares: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let average = |values: &[Vec<f64>]| {
        let by_task = values.iter().map(|task| task.iter().sum::<f64>() / task.len() as f64);
        by_task.sum::<f64>() / values.len() as f64
    };
    let mean = average(means);
    let mean_square = average(mean_squares);
    let variance = (mean_square - mean * mean).max(0.0);
    let deviation = variance.sqrt();
    let flat = deviation <= FLAT || variance <= ROUNDING * mean_square;
    let z = |x: &f64| if flat { 0.0 } else { (x - mean) / deviation };
    means.iter().map(|task| task.iter().map(z).collect()).collect()
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
        for layer in &scan.sums {
            let per_token = |sums: fn(&crate::ops::NeuronSums) -> &Vec<f64>| -> Vec<Vec<f64>> {
                let of_task = |task: usize| {
                    let tokens = scan.tokens[task].max(1) as f64;
                    sums(&layer[task]).iter().map(|sum| sum / tokens).collect()
                };
                (0..tasks).map(of_task).collect()
            };
            let mut score_of = standardised(&per_token(|s| &s.activation), &per_token(|s| &s.activation_squared));
            if score == Score::Sps {
                let surprise = standardised(&per_token(|s| &s.surprise), &per_token(|s| &s.surprise_squared));
                for (task, surprise) in score_of.iter_mut().zip(&surprise) {
                    task.iter_mut().zip(surprise).for_each(|(score, surprise)| *score -= surprise);
                }
            }
            for (task, values) in score_of.into_iter().enumerate() {
                neurons[task].push(values);
            }
        }
        Self { neurons }
    }

    /// What sets tasks apart: each value minus its mean over tasks.
    #[must_use]
    pub fn contrasted(&self) -> Self {
        let tasks = self.neurons.len() as f64;
        let mut neurons = self.neurons.clone();
        for layer in 0..neurons.first().map_or(0, Vec::len) {
            for i in 0..neurons[0][layer].len() {
                let mean = self.neurons.iter().map(|task| task[layer][i]).sum::<f64>() / tasks;
                for task in &mut neurons {
                    task[layer][i] -= mean;
                }
            }
        }
        Self { neurons }
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
