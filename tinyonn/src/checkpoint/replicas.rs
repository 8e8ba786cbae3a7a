//! The deltas of replicas: every expert is the dense MLP plus its delta, which exists once the expert has learnt (DESIGN §1).
//!
//! `model.layers.{i}.mlp.delta.{n}.{gate,up,down}_proj.weight`, in the shapes of the dense weights; f32 while they learn.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::params::mixture_prefix;
use super::store::ParamStore;
use crate::Result;
use crate::decoder::Arch;
use crate::moe::expert::{PROJECTIONS, delta_name};
use crate::moe::{
    CHOICES_LEAST_SCORE, CHOICES_MOST, ExpertsAre, KEPT, LEAST_HIDDEN, LEAST_INPUT, MoeSpec, Neurons, REPAIR,
    REPAIR_BIAS, WORTH,
};

/// Whether a parameter belongs to a delta.
pub fn is_delta(name: &str) -> bool {
    name.contains(".mlp.delta.")
}

/// The dense weight that a delta is added to; any other name is its own.
pub fn base_name(name: &str) -> String {
    match name.split_once(".delta.").map(|(mlp, delta)| (mlp, delta.split_once('.'))) {
        Some((mlp, Some((_, projection)))) if is_delta(name) => format!("{mlp}.{projection}"),
        _ => name.to_owned(),
    }
}

/// Name and shape of everything that a checkpoint of `spec` may hold and may lack: deltas, bounds of choices, candidates and repairs of neurons.
pub(super) fn optional_tensors(cfg: &Arch, spec: &MoeSpec) -> BTreeMap<String, Vec<usize>> {
    let mut optional = possible_deltas(cfg, spec);
    for layer in 0..cfg.num_hidden_layers {
        optional.extend(repairs_of(cfg, spec, layer));
        if spec.can_be_calibrated() && !spec.levels.is_empty() {
            let names = [CHOICES_MOST, CHOICES_LEAST_SCORE].map(|name| format!("{}.{name}", mixture_prefix(layer)));
            optional.extend(names.map(|name| (name, vec![spec.levels.len()])));
        }
        if spec.neurons != Neurons::All {
            let names = [KEPT, WORTH].map(|name| format!("{}.{name}", mixture_prefix(layer)));
            optional.extend(names.map(|name| (name, vec![cfg.intermediate_size])));
        }
        if spec.neurons == Neurons::Gate {
            let names = [LEAST_HIDDEN, LEAST_INPUT].map(|name| format!("{}.{name}", mixture_prefix(layer)));
            optional.extend(names.map(|name| (name, vec![1])));
        }
    }
    optional
}

/// Name and shape of what may lie beside the weights of a layer whose tokens choose neurons, or slices of weight 1.
pub(super) fn repairs_of(cfg: &Arch, spec: &MoeSpec, layer: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let shapes = REPAIR.map(|name| (name, vec![i, d])).into_iter().chain([(REPAIR_BIAS, vec![d])]);
    let of_layer = shapes.map(move |(name, shape)| (format!("{}.{name}", mixture_prefix(layer)), shape));
    of_layer.filter(|_| spec.can_be_calibrated())
}

/// Name and shape of every delta that a checkpoint of `spec` may hold.
fn possible_deltas(cfg: &Arch, spec: &MoeSpec) -> BTreeMap<String, Vec<usize>> {
    let layers = 0..cfg.num_hidden_layers;
    layers.flat_map(|layer| deltas_of(cfg, spec, layer)).collect()
}

/// The same of one layer.
pub(super) fn deltas_of(cfg: &Arch, spec: &MoeSpec, layer: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let experts = if spec.experts_are == ExpertsAre::Replicate { spec.experts() } else { 0 };
    let of_expert = move |expert: usize| {
        let name = move |projection: &str| format!("{}.{}", mixture_prefix(layer), delta_name(expert, projection));
        PROJECTIONS.into_iter().zip([[i, d], [i, d], [d, i]]).map(move |(p, shape)| (name(p), shape.to_vec()))
    };
    (0..experts).flat_map(of_expert)
}

/// Adds the deltas that are not there yet, of zeros: what training needs of replicas. Slices are left alone.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{ParamStore, base_name, grow_deltas, is_delta, prune_deltas, upcycle};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::moe::variant;
/// use tinyonn::phases::RunConfig;
///
/// let (cfg, smear) = (RunConfig::default().dense.arch(64, "silu"), variant("Smear")?);
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let mut store = upcycle(dense, &cfg, smear, &[], 0)?;
/// grow_deltas(&mut store, &cfg, &smear.spec)?;
/// let deltas: Vec<String> = store.names().filter(|name| is_delta(name)).map(str::to_owned).collect();
/// assert_eq!(deltas.len(), 4 * 8 * 3); // layers × replicas × matrices
/// assert_eq!(base_name("model.layers.0.mlp.delta.5.up_proj.weight"), "model.layers.0.mlp.up_proj.weight");
/// prune_deltas(&mut store)?; // none has learnt: all are zeros
/// assert!(!store.names().any(is_delta));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What the device reports.
pub fn grow_deltas(store: &mut ParamStore, cfg: &Arch, spec: &MoeSpec) -> Result<()> {
    for (name, shape) in possible_deltas(cfg, spec) {
        if store.get(&name).is_none() {
            let zeros = Tensor::zeros(shape, candle_core::DType::F32, store.device())?;
            store.insert_stored(&name, zeros)?;
        }
    }
    Ok(())
}

/// Takes out the deltas of experts that never learnt: all zeros.
///
/// # Errors
/// What the device reports.
pub fn prune_deltas(store: &mut ParamStore) -> Result<()> {
    let mut by_expert: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in store.names().filter(|name| is_delta(name)) {
        let expert = name.trim_end_matches(".weight").rsplit_once('.').map_or(name, |(expert, _)| expert);
        by_expert.entry(expert.to_owned()).or_default().push(name.to_owned());
    }
    for names in by_expert.into_values() {
        let mut learnt = false;
        for var in names.iter().filter_map(|name| store.get(name)) {
            let largest = var.as_detached_tensor().abs()?.max_all()?.to_dtype(candle_core::DType::F32)?;
            let largest = largest.to_scalar::<f32>()?;
            learnt |= largest > 0.0 || largest.is_nan();
        }
        if !learnt {
            for name in &names {
                store.remove(name);
            }
        }
    }
    Ok(())
}
