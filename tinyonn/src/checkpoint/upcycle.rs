//! From a dense model to one of routed experts, without touching a weight (DESIGN §1).
//!
//! The dense tensors stay as they are, under their names; each layer gains the partition of its neurons and routers that know
//! nothing yet. All active, the result computes what the dense model computes, bit for bit. In memory nothing is copied ([`upcycle`]); from
//! file to file ([`upcycle_folder`]) weights pass in pieces, of a GGUF file a tensor at a time; routers and partition are held whole.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use serde_json::Value;

use super::entry::Entry;
use super::folder::{ModelFolder, is_buffer};
use super::layout::{Order, turned_shape};
use super::not_finite::NotFinite;
use super::params::{expected_tensors, mixture_prefix, neuron_expert_name};
use super::save::{MAX_SHARD_BYTES, write_all};
use super::store::{ParamStore, misshapen, unknown};
use super::tinyonn_folder::{TinyOnnConfig, is_tinyonn};
use crate::decoder::Arch;
use crate::files::StagedFolder;
use crate::moe::{ExpertsAre, MoeSpec, PartitionStrategy as Partition, RouterKind, Variant, check, expert};
use crate::{Error, Result};

/// The parameters of `variant` over the dense model `dense` of shape `cfg`: its tensors, none of them copied, the
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
/// let sparse = upcycle(dense.share(), &cfg, variant, &partition, 0)?; // `dense` lives on, in the same memory
///
/// let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?;
/// let dense = CausalLm::dense(&cfg, &dense.builder(DType::F32, |_| false))?;
/// let sparse = TinyOnnForCausalLm::new(&cfg, variant, &sparse.builder(DType::F32, |_| false))?;
/// let [before, after] = [dense.logits(&ids, &Pass::all(), None)?, sparse.logits(&ids, &Pass::all(), None)?];
/// assert_eq!(before.to_vec3::<f32>()?, after.to_vec3::<f32>()?);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn upcycle(
    dense: ParamStore,
    cfg: &Arch,
    variant: &'static Variant,
    neuron_expert: &[Vec<u32>],
    seed: u64,
) -> Result<ParamStore> {
    let shapes = dense.iter().map(|(name, var)| (name.to_owned(), var.dims().to_vec())).collect();
    let added = Additions { cfg, variant, neuron_expert, seed }.store(shapes, dense.device())?;
    let mut sparse = dense;
    for (name, parameter) in added.iter() {
        sparse.insert(name, parameter.as_detached_tensor())?;
    }
    Ok(sparse)
}

/// What [`upcycle_folder`] has written.
#[derive(Clone, Debug)]
pub struct Upcycled {
    /// Weights of the dense model.
    pub dense: usize,
    /// Weights added to it.
    pub added: usize,
    /// The tensors that hold values that are no finite numbers, and how many.
    pub not_finite: NotFinite,
}

/// As [`upcycle`], from the model `from` into the folder `staged`: the dense weights byte for byte, tensor by tensor, and of a GGUF file their
/// values; beside them the tokenizer's files and the configuration. What was written is not verified: compare it ([`super::compare`]).
///
/// ```
/// use tinyonn::checkpoint::{ModelFolder, Upcycled, upcycle_folder};
/// use tinyonn::files::StagedFolder;
/// use tinyonn::imaging::Partition;
/// use tinyonn::moe::variant;
///
/// # let parent = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let dir = parent.path().join("sparse");
/// # let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let (dense, staged) = (ModelFolder::open(dense)?, StagedFolder::new(&dir)?);
/// let arch = dense.arch()?;
/// let owners = vec![(0..arch.intermediate_size).map(|i| i as u32 % 8).collect(); arch.num_hidden_layers];
/// let written: Upcycled = upcycle_folder(&dense, &staged, variant("Mixtral")?, (Partition::Random, &owners), 0)?;
/// staged.publish()?;
/// // Of each layer a linear router of eight choices: W and b.
/// assert_eq!(written.added, arch.num_hidden_layers * (8 * arch.hidden_size + 8));
/// assert_eq!((written.dense, written.not_finite), (arch.parameters(), vec![]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As of [`upcycle`]; a folder whose tensors are not those of its configuration, or that is a Tiny-ONN checkpoint already; the
/// system refuses a file.
pub fn upcycle_folder(
    from: &ModelFolder,
    staged: &StagedFolder,
    variant: &'static Variant,
    partition: (Partition, &[Vec<u32>]),
    seed: u64,
) -> Result<Upcycled> {
    refuse_tinyonn(from)?;
    let (cfg, (strategy, neuron_expert)) = (from.arch()?, partition);
    let shapes = expected_tensors(&cfg);
    from.check_names(&shapes)?;
    let in_memory = shapes.iter().map(|(name, shape)| (name.clone(), turned_shape(name, shape.clone()))).collect();
    let additions = Additions { cfg: &cfg, variant, neuron_expert, seed };
    let added = additions.store(in_memory, &Device::Cpu)?;
    let config = TinyOnnConfig::new(variant, strategy, seed).write_to(from.config());
    let not_finite = copy_entries(from, staged, &config, |_| true, Some(&added))?;
    let dense = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
    Ok(Upcycled { dense, added: added.parameters(), not_finite })
}

/// Refuses what has experts already.
///
/// ```
/// use tinyonn::checkpoint::{ModelFolder, refuse_tinyonn};
///
/// # let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// refuse_tinyonn(&ModelFolder::open(dense)?)?; // dense: nothing to refuse
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// `from` is a Tiny-ONN checkpoint.
pub fn refuse_tinyonn(from: &ModelFolder) -> Result<()> {
    if is_tinyonn(from.config()) {
        let remedy = "give the dense model, or take the experts away with exp_export --format dense first";
        return Err(Error::file(from.dir(), "is a Tiny-ONN checkpoint already", remedy));
    }
    Ok(())
}

/// Writes `config`, the tokenizer's files, those tensors of `from` whose names `copied` picks, and the entries of `added`.
pub(super) fn copy_entries(
    from: &ModelFolder,
    staged: &StagedFolder,
    config: &Value,
    copied: impl Fn(&str) -> bool,
    added: Option<&ParamStore>,
) -> Result<NotFinite> {
    let names = from.tensors().map(|(name, _)| name).filter(|name| !is_buffer(name) && copied(name));
    let mut entries = names.map(|name| Entry::of_file(name, from.source())).collect::<Result<Vec<_>>>()?;
    for (name, var) in added.iter().flat_map(|added| added.iter()) {
        entries.push(Entry::of_tensor(name, var.as_tensor(), Order::Stored)?);
    }
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    write_all(staged.path(), config, &entries, Some(from.dir()), MAX_SHARD_BYTES)
}

/// What a variant has beside the dense weights.
struct Additions<'a> {
    cfg: &'a Arch,
    variant: &'static Variant,
    neuron_expert: &'a [Vec<u32>],
    seed: u64,
}

impl Additions<'_> {
    /// Partition and routers, for a dense model whose tensors have `shapes` in memory.
    fn store(&self, shapes: BTreeMap<String, Vec<usize>>, device: &Device) -> Result<ParamStore> {
        let spec = &self.variant.spec;
        check(spec)?;
        let (layers, width) = (self.cfg.num_hidden_layers, self.cfg.intermediate_size);
        expert::check_width(spec, width, 0)?;
        let partitioned = if spec.experts_are == ExpertsAre::Slice { layers } else { 0 };
        if self.neuron_expert.len() != partitioned || self.neuron_expert.iter().any(|layer| layer.len() != width) {
            let found: Vec<usize> = self.neuron_expert.iter().map(Vec::len).collect();
            let problem =
                format!("the partition has layers of {found:?} neurons, the model {partitioned} layers of {width}");
            return Err(Error::setting("neuron_expert", problem, "partition this model"));
        }
        let mut added = ParamStore::new(device);
        for (layer, owners) in self.neuron_expert.iter().enumerate() {
            let name = neuron_expert_name(layer);
            if shapes.contains_key(&name) {
                return Err(Error::tensor(name, "is there already", "upcycle a dense model"));
            }
            added.insert(name, Tensor::new(owners.as_slice(), device)?)?;
        }
        let routers = self.routers(shapes, &added)?;
        for (name, parameter) in routers.iter() {
            added.insert(name, parameter.as_detached_tensor())?;
        }
        for layer in 0..layers {
            set_priors(&added, spec, layer)?;
        }
        Ok(added)
    }

    /// What the variant's constructor asks for beyond the dense weights and the partition: its routers, initialised.
    fn routers(&self, shapes: BTreeMap<String, Vec<usize>>, partition: &ParamStore) -> Result<ParamStore> {
        let device = partition.device().clone();
        ParamStore::initialise(&device, self.seed, |fresh| {
            let backend = Completing { shapes, partition: partition.share(), fresh };
            let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, device.clone());
            for layer in 0..self.cfg.num_hidden_layers {
                (self.variant.build)(self.cfg, layer, vb.pp(mixture_prefix(layer)))?;
            }
            Ok(())
        })
    }
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

/// The names of a dense MLP: what is never made anew.
const PROJECTIONS: [&str; 3] = [".mlp.gate_proj.weight", ".mlp.up_proj.weight", ".mlp.down_proj.weight"];

/// Lends the partition, stands in for the dense weights by zeros that take no memory (nothing is computed here), and has the rest made.
struct Completing {
    shapes: BTreeMap<String, Vec<usize>>,
    partition: ParamStore,
    fresh: VarBuilder<'static>,
}

impl SimpleBackend for Completing {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        if let Some(owners) = self.partition.get(name) {
            return Ok(owners.as_detached_tensor());
        }
        match self.shapes.get(name) {
            Some(known) if known == shape.dims() => Tensor::zeros((), dtype, device)?.broadcast_as(shape),
            Some(known) => Err(misshapen(name, known, shape.dims()).into()),
            // A missing dense weight must not be drawn at random.
            None if PROJECTIONS.iter().any(|dense| name.ends_with(dense)) => Err(unknown(name).into()),
            None => self.fresh.get_with_hints_dtype(shape, name, init, dtype),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.partition.get(name).map(Var::as_detached_tensor).ok_or_else(|| unknown(name).into())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.shapes.contains_key(name) || self.partition.get(name).is_some() || self.fresh.contains_tensor(name)
    }
}
