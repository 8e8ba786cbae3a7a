//! From a dense model to one of routed experts, without touching a weight (DESIGN §1).
//!
//! The dense tensors stay as they are, under their names; each layer gains the partition of its neurons and routers that know
//! nothing yet. All active, the result computes what the dense model computes, bit for bit.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};

use super::params::{mixture_prefix, neuron_expert_name};
use super::store::{ParamStore, misshapen, unknown};
use crate::decoder::Arch;
use crate::moe::{ExpertsAre, MoeSpec, RouterKind, Variant, check, expert};
use crate::{Error, Result};

/// The parameters of `variant` over the dense model `dense` of shape `cfg`: a copy of its tensors in their own types, the
/// partition `neuron_expert[layer][i]` (none for replicas), and new routers in f32, each parameter drawn from `seed` and its name.
///
/// # Errors
/// MLPs narrower than the number of experts; a partition of another shape, or one that leaves an expert empty or names one
/// that does not exist; a store that lacks dense tensors, or has been upcycled already.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::imaging::{Partition, PartitionSources, partition};
/// use tinyonn::model::TinyOnnForCausalLm;
/// use tinyonn::moe;
/// use tinyonn::decoder::{Arch, CausalLm, Pass};
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 123, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
/// }), "config.json")?;
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
///
/// let variant = moe::variant("TinyOnn")?;
/// let partition = partition::assign(Partition::Random, &variant.spec, (1, 123), PartitionSources::default(), 0)?;
/// let sparse = upcycle(&dense, &cfg, variant, &partition, 0)?;
///
/// let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?;
/// let dense = CausalLm::dense(&cfg, &dense.builder(DType::F32, |_| false))?;
/// let sparse = TinyOnnForCausalLm::new(&cfg, variant, &sparse.builder(DType::F32, |_| false))?;
/// let [before, after] = [dense.logits(&ids, &Pass::all(), None)?, sparse.logits(&ids, &Pass::all(), None)?];
/// assert_eq!(before.to_vec3::<f32>()?, after.to_vec3::<f32>()?);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn upcycle(
    dense: &ParamStore,
    cfg: &Arch,
    variant: &'static Variant,
    neuron_expert: &[Vec<u32>],
    seed: u64,
) -> Result<ParamStore> {
    check(&variant.spec)?;
    let (layers, width) = (cfg.num_hidden_layers, cfg.intermediate_size);
    expert::check_width(&variant.spec, width, 0)?;
    let partitioned = if variant.spec.experts_are == ExpertsAre::Slice { layers } else { 0 };
    if neuron_expert.len() != partitioned || neuron_expert.iter().any(|layer| layer.len() != width) {
        let found: Vec<usize> = neuron_expert.iter().map(Vec::len).collect();
        let problem =
            format!("the partition has layers of {found:?} neurons, the model {partitioned} layers of {width}");
        return Err(Error::setting("neuron_expert", problem, "partition this model"));
    }
    let mut sparse = dense.deep_copy()?;
    for (layer, owners) in neuron_expert.iter().enumerate() {
        sparse.insert(neuron_expert_name(layer), Tensor::new(owners.as_slice(), dense.device())?)?;
    }
    let routers = new_routers(&sparse, cfg, variant, seed)?;
    for (name, parameter) in routers.iter() {
        sparse.insert(name, parameter.as_detached_tensor())?;
    }
    for layer in 0..layers {
        set_priors(&sparse, &variant.spec, layer)?;
    }
    Ok(sparse)
}

/// Priors in proportion to the experts under each choice, for routers that have priors and choices of unequal size.
fn set_priors(store: &ParamStore, spec: &MoeSpec, layer: usize) -> Result<()> {
    for (level, declared) in spec.levels.iter().enumerate() {
        let mut under = spec.experts_under(level).into_iter().map(|experts| experts.len());
        for run in declared.routers.iter() {
            let counts: Vec<usize> = under.by_ref().take(run.parents * run.choices).collect();
            let name = format!("{}.{}_router.log_prior", mixture_prefix(layer), run.name);
            let even = counts.windows(2).all(|pair| pair[0] == pair[1]);
            if even || store.get(&name).is_none() || !matches!(run.kind, RouterKind::Gaussian(_)) {
                continue;
            }
            let log_prior: Vec<f32> = counts
                .chunks(run.choices)
                .flat_map(|of_router| {
                    let all: usize = of_router.iter().sum();
                    of_router.iter().map(move |count| (*count as f32 / all as f32).ln()).collect::<Vec<_>>()
                })
                .collect();
            store.set(&name, &Tensor::from_vec(log_prior, (run.parents, run.choices), store.device())?)?;
        }
    }
    Ok(())
}

/// What the variant's constructor asks for beyond `known`: its routers, initialised.
fn new_routers(known: &ParamStore, cfg: &Arch, variant: &Variant, seed: u64) -> Result<ParamStore> {
    let device = known.device().clone();
    ParamStore::initialise(&device, seed, |fresh| {
        let backend = Completing { known: known.handles(), fresh };
        let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, device.clone());
        for layer in 0..cfg.num_hidden_layers {
            (variant.build)(cfg, layer, vb.pp(mixture_prefix(layer)))?;
        }
        Ok(())
    })
}

/// The names of a dense MLP: what is never made anew.
const PROJECTIONS: [&str; 3] = [".mlp.gate_proj.weight", ".mlp.up_proj.weight", ".mlp.down_proj.weight"];

/// Lends what is known and has the rest made.
struct Completing {
    known: BTreeMap<String, Var>,
    fresh: VarBuilder<'static>,
}

impl SimpleBackend for Completing {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        match self.known.get(name) {
            // In its own type: nothing is computed here.
            Some(var) if var.shape() == &shape => Ok(var.as_detached_tensor()),
            Some(var) => Err(misshapen(name, var.dims(), shape.dims()).into()),
            // A missing dense weight must not be drawn at random.
            None if PROJECTIONS.iter().any(|dense| name.ends_with(dense)) => Err(unknown(name).into()),
            None => self.fresh.get_with_hints_dtype(shape, name, init, dtype),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.known.get(name).map(Var::as_detached_tensor).ok_or_else(|| unknown(name).into())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.known.contains_key(name) || self.fresh.contains_tensor(name)
    }
}
