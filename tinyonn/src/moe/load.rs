//! Counts how much work routing gives to each expert while a model runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};

use super::{LayerLoad, LoadFigures, MoeSpec};
use crate::Result;
use crate::qwen3::Observer;

/// Counts the tokens routed to each expert of each layer while a model runs, and how many experts a token took; tokens that no decision
/// is for count nowhere.
#[derive(Debug)]
pub struct LoadMeter {
    layers: Mutex<Vec<Seen>>,
}

/// What one layer's routing took.
#[derive(Clone, Debug)]
struct Seen {
    tokens: u64,
    /// Tokens by expert.
    taken: Vec<f64>,
    /// Tokens by how many experts they took.
    counts: BTreeMap<usize, u64>,
}

impl LoadMeter {
    /// For `layers` layers of `experts` experts.
    #[must_use]
    pub fn new(layers: usize, experts: usize) -> Self {
        let nothing = Seen { tokens: 0, taken: vec![0.0; experts], counts: BTreeMap::new() };
        Self { layers: Mutex::new(vec![nothing; layers]) }
    }

    /// The share of tokens that each expert of each layer took, `[layer][expert]`.
    #[must_use]
    pub fn load(&self) -> Vec<Vec<f64>> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let share = |seen: &Seen| seen.taken.iter().map(|count| count / (seen.tokens as f64).max(1.0)).collect();
        layers.iter().map(share).collect()
    }

    /// What the load looks like, by layer.
    #[must_use]
    pub fn figures(&self, spec: &MoeSpec) -> LoadFigures {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let figures =
            |seen: &Seen| LayerLoad { experts_taken: seen.counts.clone(), ..LayerLoad::new(spec, &seen.taken) };
        LoadFigures { layers: layers.iter().map(figures).collect() }
    }

    /// The share of the experts that a token takes, mean over tokens and layers.
    #[must_use]
    pub fn expert_share(&self) -> f64 {
        let load = self.load();
        let of_layer = |layer: &Vec<f64>| layer.iter().sum::<f64>() / layer.len().max(1) as f64;
        load.iter().map(of_layer).sum::<f64>() / load.len().max(1) as f64
    }

    /// The share of a layer's neurons that a token uses, mean over tokens and layers; `units[layer][i]` is the expert of neuron i.
    #[must_use]
    pub fn active_share(&self, units: &[Vec<u32>]) -> f64 {
        let of_layer = |(load, units): (&Vec<f64>, &Vec<u32>)| {
            units.iter().map(|expert| load[*expert as usize]).sum::<f64>() / units.len() as f64
        };
        let load = self.load();
        load.iter().zip(units).map(of_layer).sum::<f64>() / load.len().max(1) as f64
    }
}

impl Observer for LoadMeter {
    fn gates(&self, layer: usize, gate_tn: &Tensor, routed: &[bool]) -> Result<()> {
        let open_tn = open(gate_tn)?;
        let taken = sums(&open_tn, routed)?;
        let counts_t = open_tn.sum(1)?.to_vec1::<f32>()?;
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut layers[layer];
        seen.taken.iter_mut().zip(&taken).for_each(|(sum, taken)| *sum += taken);
        for (count, _) in counts_t.iter().zip(routed).filter(|(_, routed)| **routed) {
            seen.tokens += 1;
            *seen.counts.entry(*count as usize).or_default() += 1;
        }
        Ok(())
    }
}

/// The tokens among those `counted` whose gate is open, by column of `gate_tn`.
pub(crate) fn taken(gate_tn: &Tensor, counted: &[bool]) -> candle_core::Result<Vec<f64>> {
    sums(&open(gate_tn)?, counted)
}

/// Ones where a gate is open, `[t, n]` f32.
fn open(gate_tn: &Tensor) -> candle_core::Result<Tensor> {
    gate_tn.detach().ne(0f64)?.to_dtype(DType::F32)
}

fn sums(open_tn: &Tensor, counted: &[bool]) -> candle_core::Result<Vec<f64>> {
    let marks: Vec<f32> = counted.iter().map(|counted| f32::from(u8::from(*counted))).collect();
    let marks_1t = Tensor::from_vec(marks, (1, counted.len()), open_tn.device())?;
    marks_1t.matmul(open_tn)?.squeeze(0)?.to_dtype(DType::F64)?.to_vec1()
}
