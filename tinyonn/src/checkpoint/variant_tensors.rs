//! The tensors that a checkpoint of a variant must hold: found by running its constructor, so that a router of any type is
//! counted without a list of names to keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use serde::Serialize;

use super::layout::turned_shape;
use super::params::{Param, Role, dense_params, expected_tensors, mixture_prefix, neuron_expert_name};
use super::replicas::{deltas_of, repairs_of};
use super::store::unknown;
use crate::Result;
use crate::decoder::Arch;
use crate::moe::{NEURON_RULE, Variant};

/// Name and shape in a file of every tensor of `variant` on the dense shape `config`: the dense model's, each layer's `neuron_expert`
/// `[I]`, and the routers' parameters.
///
/// ```
/// use tinyonn::checkpoint::{Role, expected_variant_tensors, variant_params};
/// use tinyonn::moe::variant;
/// use tinyonn::phases::RunConfig;
///
/// let (cfg, mixtral) = (RunConfig::default().dense.arch(64, "silu"), variant("Mixtral")?);
/// let expected = expected_variant_tensors(&cfg, mixtral)?;
/// assert_eq!(expected["model.layers.0.mlp.neuron_expert"], [cfg.intermediate_size]);
/// let routers = variant_params(&cfg, mixtral)?.into_iter().filter(|param| param.role == Role::Router);
/// assert!(routers.into_iter().all(|param| expected[&param.name] == param.stored));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A variant that does not fit the model.
pub fn expected_variant_tensors(config: &Arch, variant: &Variant) -> Result<BTreeMap<String, Vec<usize>>> {
    let shapes = Arc::new(Mutex::new(expected_tensors(config)));
    let recorder = Recorder { experts: variant.spec.experts(), shapes: Arc::clone(&shapes) };
    let vb = VarBuilder::from_backend(Box::new(recorder), DType::F32, Device::Cpu);
    for layer in 0..config.num_hidden_layers {
        (variant.build)(config, layer, vb.pp(mixture_prefix(layer)))?;
    }
    let shapes = shapes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(shapes)
}

/// The parameters of a model of `variant`: the dense ones, those that its mixtures add, and those that it may have: deltas of replicas, and repairs.
///
/// # Errors
/// A variant that does not fit the model.
pub fn variant_params(config: &Arch, variant: &Variant) -> Result<Vec<Param>> {
    let mut params = dense_params(config);
    let expected = expected_variant_tensors(config, variant)?;
    let dense: BTreeSet<String> = params.iter().map(|param| param.name.clone()).collect();
    for layer in 0..config.num_hidden_layers {
        let prefix = mixture_prefix(layer);
        let own = [(neuron_expert_name(layer), Role::Partition), (format!("{prefix}.balance_bias"), Role::Balance)];
        // All names that begin with the prefix and a point: `/` is the character after the point.
        let of_layer = expected.range(format!("{prefix}.")..format!("{prefix}/"));
        for (name, shape) in of_layer.filter(|(name, _)| !dense.contains(*name)) {
            let other = if name.starts_with(&format!("{prefix}.{NEURON_RULE}.")) { Role::Choice } else { Role::Router };
            let role = own.iter().find(|(own, _)| own == name).map_or(other, |(_, role)| *role);
            params.push(Param { name: name.clone(), role, layer: Some(layer), stored: shape.clone() });
        }
        let of = |role: Role| move |(name, stored)| Param { name, role, layer: Some(layer), stored };
        params.extend(deltas_of(config, &variant.spec, layer).map(of(Role::Delta)));
        params.extend(repairs_of(config, &variant.spec, layer).map(of(Role::Repair)));
    }
    params.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(params)
}

/// The weights of a model of a variant.
///
/// ```
/// use tinyonn::checkpoint::{VariantParameters, variant_parameters};
/// use tinyonn::moe::variant;
/// use tinyonn::phases::RunConfig;
///
/// let VariantParameters { routers, total, .. } = variant_parameters(&RunConfig::default().dense.arch(64, "silu"), variant("TinyOnn")?)?;
/// assert!(routers < total);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VariantParameters {
    /// What the mixtures of all layers add to the dense model: routers, and the biases of their load.
    pub routers: usize,
    /// All weights of the model.
    pub total: usize,
}

/// Counts the weights of `variant` on the dense shape `config`; a partition is no weight, nor is a choice of neurons.
///
/// # Errors
/// A variant that does not fit the model.
///
/// ```
/// use tinyonn::checkpoint::variant_parameters;
/// use tinyonn::moe;
/// use tinyonn::decoder::Arch;
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 3,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
/// }), "config.json")?;
/// let counted = variant_parameters(&cfg, moe::variant("Mixtral")?)?;
/// assert_eq!(counted.routers, 3 * (8 * 8 + 8)); // layers × (W, b)
/// assert_eq!(counted.total, cfg.parameters() + counted.routers);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn variant_parameters(config: &Arch, variant: &Variant) -> Result<VariantParameters> {
    let partitions: Vec<String> = (0..config.num_hidden_layers).map(neuron_expert_name).collect();
    let tensors = expected_variant_tensors(config, variant)?;
    let is_choice = |name: &str| name.contains(&format!(".mlp.{NEURON_RULE}."));
    let weights = tensors.iter().filter(|(name, _)| !partitions.contains(name) && !is_choice(name));
    let total: usize = weights.map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let dense: usize = expected_tensors(config).values().map(|shape| shape.iter().product::<usize>()).sum();
    Ok(VariantParameters { routers: total - dense, total })
}

/// Notes what is asked for and gives stand-ins without memory: the constants that new weights begin with, zeros for others, and a partition that leaves
/// no expert empty.
struct Recorder {
    experts: usize,
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let stored = turned_shape(name, shape.dims().to_vec());
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), stored);
        if dtype.is_int() {
            let owners: Vec<u32> = (0..shape.elem_count()).map(|i| (i % self.experts) as u32).collect();
            return Tensor::from_vec(owners, shape, device)?.to_dtype(dtype);
        }
        let value = if let Init::Const(value) = init { value } else { 0.0 };
        Tensor::full(value, (), device)?.to_dtype(dtype)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(unknown(name).into())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}
