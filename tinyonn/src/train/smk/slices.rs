//! Surprise Min-K over slices: learners are picked from inside the backward pass, before any weight gradient exists.

use std::sync::{Mutex, PoisonError};

use super::Choice;
use crate::moe::load::taken;
use crate::ops::{self, MlpBackward, MlpProbe, WeightGrads};
use crate::train::optimizer::Lines;
use crate::{Error, Result};

/// The remedy for units of another model.
const UNITS: &str = "take them from this model (`neuron_experts`)";

/// Which tokens of a pass were routed.
#[derive(Clone, Copy)]
struct Rows {
    length: usize,
    open: usize,
}

/// Picks the learners of every layer, from inside the backward pass.
pub struct Smk {
    min_k: usize,
    experts: usize,
    /// `units[layer][i]`: the expert of neuron i.
    units: Vec<Vec<u32>>,
    /// Sequences of so many tokens, of which the first so many are nobody's decision.
    rows: Rows,
    choices: Mutex<Vec<Choice>>,
}

impl Smk {
    /// For experts given by `units[layer][i]`, of `experts` a layer.
    ///
    /// # Errors
    /// `min_k` of zero: nothing would ever learn; a unit that is none of `experts`.
    pub fn new(min_k: usize, experts: usize, units: Vec<Vec<u32>>) -> Result<Self> {
        if min_k == 0 {
            return Err(Error::setting("min_k", "no expert would learn", "use 1 or more"));
        }
        if let Some(unit) = units.iter().flatten().find(|unit| **unit as usize >= experts) {
            let problem = format!("a neuron belongs to expert {unit}, and there are {experts}");
            return Err(Error::setting("units", problem, UNITS));
        }
        let choices = Mutex::new(vec![Choice::default(); units.len()]);
        Ok(Self { min_k, experts, units, rows: Rows { length: 1, open: 0 }, choices })
    }

    /// For sequences of `length` tokens of which the first `open` run all active: no expert was routed those, and their surprise
    /// counts for nobody. (They teach the winners with the rest: later losses depend on them.)
    #[must_use]
    pub fn behind(self, open: usize, length: usize) -> Self {
        Self { rows: Rows { length: length.max(1), open: open.min(length.max(1) - 1) }, ..self }
    }

    /// What each layer's last backward decided.
    #[must_use]
    pub fn choices(&self) -> Vec<Choice> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which lines of the parameter `name` learn, by the last backward; `None` for parameters that are no expert's.
    #[must_use]
    pub fn lines(&self, name: &str) -> Option<Lines> {
        let (layer, matrix) = name.strip_prefix("model.layers.")?.split_once(".mlp.")?;
        let axis = match matrix {
            "gate_proj.weight" | "up_proj.weight" => 0,
            "down_proj.weight" => 1,
            _ => return None,
        };
        let layer: usize = layer.parse().ok()?;
        let choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let learners = &choices.get(layer)?.learners;
        let learn = self.units[layer].iter().map(|expert| learners.binary_search(expert).is_ok()).collect();
        Some(Lines { axis, learn })
    }
}

/// S_n of each expert, `None` if no token was routed to it.
fn surprises(
    pass: &MlpBackward<'_>,
    units: &[u32],
    experts: usize,
    rows: Rows,
) -> candle_core::Result<Vec<Option<f64>>> {
    let tokens = pass.x_td.dim(0)?;
    let counted: Vec<bool> = (0..tokens).map(|t| t % rows.length >= rows.open).collect();
    let sums = ops::neuron_moments(pass, &counted)?;
    let (mut squares, mut widths) = (vec![0f64; experts], vec![0f64; experts]);
    for (unit, square) in units.iter().zip(&sums.surprise_squared) {
        squares[*unit as usize] += square;
        widths[*unit as usize] += 1.0;
    }
    // Every neuron of an expert carries its gate, so one neuron tells the expert's tokens.
    let routed: Vec<f64> = match pass.gate_ti {
        None => vec![counted.iter().filter(|counted| **counted).count() as f64; units.len()],
        Some(gate_ti) => taken(gate_ti, &counted)?,
    };
    let mut tokens = vec![0f64; experts];
    units.iter().zip(&routed).for_each(|(unit, routed)| tokens[*unit as usize] = *routed);
    let rms = |n: usize| (tokens[n] > 0.0).then(|| (squares[n] / (tokens[n] * widths[n])).sqrt());
    Ok((0..experts).map(rms).collect())
}

impl MlpProbe for Smk {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let width = pass.h_ti.dim(1)?;
        let Some(units) = self.units.get(layer).filter(|units| units.len() == width) else {
            let problem = format!("they give no expert to each of the {width} neurons of layer {layer}");
            return Err(Error::setting("units", problem, UNITS).into());
        };
        if !pass.x_td.dim(0)?.is_multiple_of(self.rows.length) {
            let problem = format!("{} tokens are no sequences of {}", pass.x_td.dim(0)?, self.rows.length);
            return Err(
                Error::setting("length", problem, "train on whole sequences of the length that was given").into()
            );
        }
        let surprises = surprises(pass, units, self.experts, self.rows)?;
        let active = surprises.iter().enumerate().filter_map(|(n, s)| s.map(|s| (s, n as u32)));
        let choice = Choice::least(active.collect(), self.min_k);
        let learners = &choice.learners;
        let neurons = (0..units.len() as u32).filter(|i| learners.binary_search(&units[*i as usize]).is_ok()).collect();
        let all = learners.len() == self.experts;
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)[layer] = choice;
        Ok(if all { WeightGrads::All } else { WeightGrads::Neurons(neurons) })
    }
}
