//! How much work routing gives to each expert.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};

use crate::Result;
use crate::qwen3::Observer;

/// Counts the tokens routed to each expert of each layer while a model runs; tokens that no decision is for count nowhere.
#[derive(Debug)]
pub struct LoadMeter {
    /// By layer: tokens seen, and tokens by expert.
    layers: Mutex<Vec<(f64, Vec<f64>)>>,
}

impl LoadMeter {
    /// For `layers` layers of `experts` experts.
    #[must_use]
    pub fn new(layers: usize, experts: usize) -> Self {
        Self { layers: Mutex::new(vec![(0.0, vec![0.0; experts]); layers]) }
    }

    /// The share of tokens that each expert of each layer took, `[layer][expert]`.
    #[must_use]
    pub fn load(&self) -> Vec<Vec<f64>> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let share = |(seen, tokens): &(f64, Vec<f64>)| tokens.iter().map(|count| count / seen.max(1.0)).collect();
        layers.iter().map(share).collect()
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
        let taken = taken(gate_tn, routed)?;
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, tokens) = &mut layers[layer];
        *seen += routed.iter().filter(|routed| **routed).count() as f64;
        tokens.iter_mut().zip(&taken).for_each(|(sum, taken)| *sum += taken);
        Ok(())
    }
}

/// The tokens among those `counted` whose gate is open, by column of `gate_tn`.
pub(crate) fn taken(gate_tn: &Tensor, counted: &[bool]) -> candle_core::Result<Vec<f64>> {
    let marks: Vec<f32> = counted.iter().map(|counted| f32::from(u8::from(*counted))).collect();
    let marks_1t = Tensor::from_vec(marks, (1, counted.len()), gate_tn.device())?;
    let open_tn = gate_tn.detach().ne(0f64)?.to_dtype(DType::F32)?;
    marks_1t.matmul(&open_tn)?.squeeze(0)?.to_dtype(DType::F64)?.to_vec1()
}
