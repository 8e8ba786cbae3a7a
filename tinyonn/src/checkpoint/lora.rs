//! The parameters of low-rank differences (LoRA): `model.layers.{i}.mlp.{gate,up,down}_proj.{lora_a,lora_b}`, which no checkpoint holds.

use candle_core::{DType, Tensor};

use super::params::{Param, Role, mixture_prefix};
use super::store::ParamStore;
use crate::Result;
use crate::decoder::Arch;
use crate::moe::expert::PROJECTIONS;
use crate::random;

/// A `[r, d]` and B `[I, r]` of every matrix of every MLP of `cfg`: r (I + d) weights each.
#[must_use]
pub fn lora_params(cfg: &Arch, rank: usize) -> Vec<Param> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let of_layer = |layer: usize| {
        PROJECTIONS.into_iter().flat_map(move |projection| {
            [("lora_a", [rank, d]), ("lora_b", [i, rank])].map(|(name, shape)| Param {
                name: format!("{}.{projection}.{name}", mixture_prefix(layer)),
                // A difference from a base that stays.
                role: Role::Delta,
                layer: Some(layer),
                stored: shape.to_vec(),
            })
        })
    };
    (0..cfg.num_hidden_layers).flat_map(of_layer).collect()
}

/// Adds them to a dense store: A of normal values with variance 1/d, drawn from `seed` and its name; B zero, so that the function stays what it was.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{ParamStore, grow_lora, lora_params};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let mut store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let before = store.len();
/// grow_lora(&mut store, &cfg, 4, 0)?;
/// let added = lora_params(&cfg, 4);
/// assert_eq!((added.len(), store.len()), (4 * 3 * 2, before + added.len())); // layers × matrices × (A, B)
/// assert!(grow_lora(&mut store, &cfg, 4, 0).is_err()); // it has them
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A store that has them already; what the device reports.
pub fn grow_lora(store: &mut ParamStore, cfg: &Arch, rank: usize, seed: u64) -> Result<()> {
    let stdev = (cfg.hidden_size.max(1) as f64).sqrt().recip();
    for param in lora_params(cfg, rank) {
        let count = param.stored.iter().product();
        let value = if param.name.ends_with("lora_a") {
            let values = random::normal(count, 0.0, stdev, &mut random::stream(seed, &param.name));
            Tensor::from_vec(values, param.stored, store.device())?
        } else {
            Tensor::zeros(param.stored, DType::F32, store.device())?
        };
        store.insert(param.name, value)?;
    }
    Ok(())
}
