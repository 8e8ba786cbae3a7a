//! The raw image of a few tokens: every token's activation and surprise of every expert, for checking against other code.

use std::sync::Arc;

use candle_core::Tensor;

use crate::checkpoint::tokens;
use crate::decoder::{CausalLm, FeedForward, ImageAsk, Learn, Pass};
use crate::metrics::check_loss;
use crate::ops::{ExpertNeurons, Grads, host};
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
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::imaging::{Dump, dump};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// // Three experts, given neurons in turn.
/// let units = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 3).collect(); cfg.num_hidden_layers];
/// let found: Dump = dump(&model, &Tensor::new(&[[1u32, 2, 3, 4]], &Device::Cpu)?, &units, 3)?;
/// assert_eq!((found.activation[0].dims(), found.surprise[3].dims()), (&[4, 3][..], &[4, 3][..]));
/// assert!(found.loss_sum > 0.0);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// Sequences of fewer than two tokens; ids beyond the vocabulary; `units` of another model; a loss that is no finite number.
pub fn dump<F: FeedForward>(model: &CausalLm<F>, ids: &Tensor, units: &[Vec<u32>], count: usize) -> Result<Dump> {
    let (b, t) = ids.dims2()?;
    if t < 2 {
        return Err(Error::setting("tokens", "sequences of one token have no next token", "give two or more"));
    }
    tokens::check(ids, model.config().vocab_size, model.config().max_position_embeddings)?;
    let none = Tensor::full(u32::MAX, (b, 1), ids.device())?;
    let targets = Tensor::cat(&[&ids.narrow(1, 1, t - 1)?, &none], 1)?;
    let (layers, width) = (model.config().num_hidden_layers, model.config().intermediate_size);
    let fits = |layer: &Vec<u32>| layer.len() == width && layer.iter().all(|unit| (*unit as usize) < count);
    if units.len() != layers || !units.iter().all(fits) {
        let problem = format!("they do not give each of {width} neurons in {layers} layers one of {count} units");
        return Err(Error::setting("units", problem, "take them from this model (`neuron_experts`)"));
    }
    let experts =
        units.iter().map(|layer| ExpertNeurons::new(layer, count)).collect::<candle_core::Result<Vec<_>>>()?;
    let learn = Learn { image: Some(Arc::new(ImageAsk::Dump(experts.into()))), ..Learn::default() };
    let forward = model.forward(ids, &targets, &Pass::all().kept())?;
    let losses = host::values(&forward.losses)?;
    let answers = model.backward(forward.saved, &forward.losses.ones_like()?, &learn, &mut Grads::none())?;
    let loss_sum = losses.iter().map(|loss| f64::from(*loss)).sum();
    check_loss("scan", "tokens", loss_sum)?;
    let (activation, surprise) = answers.into_iter().filter_map(|answer| answer.dump.map(|[a, s]| (a, s))).unzip();
    Ok(Dump { activation, surprise, loss_sum })
}
