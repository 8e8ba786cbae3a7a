//! The raw image of a few tokens: every token's activation and surprise of every expert, for checking against other code.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::checkpoint::tokens;
use crate::metrics::check_loss;
use crate::ops::{self, MlpBackward, MlpProbe, WeightGrads};
use crate::qwen3::{FeedForward, Qwen3ForCausalLm, RouteCtx};
use crate::{Error, Result};

/// Raw values, unscaled by width.
#[derive(Clone, Debug)]
pub struct Dump {
    /// ‖h restricted to the expert‖₂ by layer, `[B·T, N]` f32.
    pub activation: Vec<Tensor>,
    /// √ Σ over the expert's neurons of S², by layer, `[B·T, N]` f32.
    pub surprise: Vec<Tensor>,
    /// L, the sum of the tokens' cross-entropies.
    pub loss_sum: f64,
}

/// Images `ids` `[B, T]` through `model`, all active, with the next tokens as targets; `units[layer][i]` is the expert of neuron i,
/// of `count`. Rows are row-major over (B, T), last positions included.
///
/// # Errors
/// Sequences of fewer than two tokens; ids beyond the vocabulary; `units` of another model; a loss that is no finite number.
pub fn dump<F: FeedForward>(
    model: &Qwen3ForCausalLm<F>,
    ids: &Tensor,
    units: &[Vec<u32>],
    count: usize,
) -> Result<Dump> {
    let (b, t) = ids.dims2()?;
    if t < 2 {
        return Err(Error::setting("tokens", "sequences of one token have no next token", "give two or more"));
    }
    tokens::check(ids, model.config().vocab_size)?;
    let none = Tensor::full(u32::MAX, (b, 1), ids.device())?;
    let targets = Tensor::cat(&[&ids.narrow(1, 1, t - 1)?, &none], 1)?;
    let (layers, width) = (model.config().num_hidden_layers, model.config().intermediate_size);
    let fits = |layer: &Vec<u32>| layer.len() == width && layer.iter().all(|unit| (*unit as usize) < count);
    if units.len() != layers || !units.iter().all(fits) {
        let problem = format!("they do not give each of {width} neurons in {layers} layers one of {count} units");
        return Err(Error::setting("units", problem, "take them from this model (`neuron_experts`)"));
    }
    let recorder = Arc::new(Recorder { units: units.to_vec(), count, rows: Mutex::new(vec![None; layers]) });
    let ctx = RouteCtx { probe: Some(recorder.clone()), ..RouteCtx::all() };
    let losses = model.token_losses(ids, &targets, &ctx)?;
    ops::backward(&losses.sum_all()?)?;
    let loss_sum = losses.flatten_all()?.to_vec1::<f32>()?.iter().map(|loss| f64::from(*loss)).sum();
    check_loss("scan", "tokens", loss_sum)?;
    let rows = recorder.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (activation, surprise) = rows.into_iter().flatten().unzip();
    Ok(Dump { activation, surprise, loss_sum })
}

struct Recorder {
    units: Vec<Vec<u32>>,
    count: usize,
    rows: Mutex<Vec<Option<(Tensor, Tensor)>>>,
}

impl MlpProbe for Recorder {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let units = Tensor::new(self.units[layer].as_slice(), pass.x_td.device())?;
        let [activation, surprise] = ops::activation_and_surprise(pass)?.map(|values_ti| {
            let squares_ti = values_ti.sqr()?;
            let zeros = Tensor::zeros((squares_ti.dim(0)?, self.count), squares_ti.dtype(), squares_ti.device())?;
            zeros.index_add(&units, &squares_ti, 1)?.sqrt()
        });
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)[layer] = Some((activation?, surprise?));
        Ok(WeightGrads::All)
    }
}
