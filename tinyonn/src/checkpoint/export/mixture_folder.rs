//! A folder of one of transformers' mixtures of experts read back, as far as this library writes it: so that an export is held against what it was made from.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::mixture_format::MixtureFormat;
use crate::checkpoint::folder::ModelFolder;
use crate::checkpoint::loaded::LoadedModel;
use crate::checkpoint::params::{EMBEDDING, HEAD, mixture_prefix, neuron_expert_name};
use crate::checkpoint::store::ParamStore;
use crate::decoder::Arch;
use crate::model::{ActiveMode, TinyOnnForCausalLm};
use crate::moe::{Gate, LevelSpec, MoeSpec, RouterKind, RouterSpec};
use crate::{Error, Result};

/// The name of the only level.
const LEVEL: &str = "expert";

/// Reads the folder `dir` to compute in f32: slices of one MLP behind a linear router whose choices are weighted by their softmax.
///
/// # Errors
/// A folder that is neither a Qwen3MoE nor a Mixtral with experts in every layer; tensors that are missing or misshapen.
pub fn load_mixture(dir: impl AsRef<Path>, device: &Device) -> Result<LoadedModel> {
    let folder = ModelFolder::open(dir)?;
    let path = folder.config_path();
    let config = folder.config();
    let unfit = |problem: String| Error::file(&path, problem, "give a folder that exp_export wrote");
    let format = config.get("model_type").and_then(Value::as_str).and_then(MixtureFormat::of_model_type);
    let format = format.ok_or_else(|| unfit("`model_type` is neither qwen3_moe nor mixtral".into()))?;
    let size = |key: &str| {
        let size = config.get(key).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        size.filter(|size| (1..1 << 24).contains(size)).ok_or_else(|| unfit(format!("`{key}` is no number above 0")))
    };
    let (experts, width, top_k) = (size(format.experts_key)?, size(format.width_key)?, size("num_experts_per_tok")?);
    let mut dense = config.clone();
    dense["model_type"] = json!(format.dense.model_type());
    dense["intermediate_size"] = json!(experts * width);
    let cfg = Arch::from_json(&dense, &path)?;
    let store = read((&folder, format), &cfg, (experts, width, top_k), device)?;
    let router = RouterSpec::new(LEVEL, 1, experts, top_k, RouterKind::Linear);
    let spec = MoeSpec {
        name: format.name.into(),
        levels: vec![LevelSpec { name: LEVEL.into(), routers: vec![router].into() }].into(),
        gate: Gate::Scaled,
        ..MoeSpec::PLAIN
    };
    let model = TinyOnnForCausalLm::of_spec(&cfg, &spec, &store.builder(DType::F32, |_| false))?;
    Ok(LoadedModel::TinyOnn(model, ActiveMode::Routed))
}

fn read(
    (folder, format): (&ModelFolder, MixtureFormat),
    cfg: &Arch,
    (experts, width, top_k): (usize, usize, usize),
    device: &Device,
) -> Result<ParamStore> {
    let weights = folder.source();
    let load = |name: &str| weights.load(name, device, Some(DType::F32));
    let mut store = ParamStore::new(device);
    for (name, _) in folder.tensors().filter(|(name, _)| !name.contains(".experts.") && !name.ends_with(".gate.weight"))
    {
        if !(cfg.tie_word_embeddings && name == HEAD && weights.info(EMBEDDING).is_some()) {
            store.insert_stored(name, load(name)?)?;
        }
    }
    let owners: Vec<u32> = (0..experts as u32).flat_map(|expert| std::iter::repeat_n(expert, width)).collect();
    let owners = Tensor::new(owners.as_slice(), device)?;
    for layer in 0..cfg.num_hidden_layers {
        let (prefix, mixture) = (mixture_prefix(layer), format.prefix(layer));
        let projections = [("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)];
        for ((projection, dim), theirs) in projections.into_iter().zip(format.projections) {
            let of_expert = |expert: usize| load(&format!("{mixture}.experts.{expert}.{theirs}.weight"));
            let parts = (0..experts).map(of_expert).collect::<Result<Vec<_>>>()?;
            let whole = Tensor::cat(&parts, dim)?;
            // Weights that sum to 1 there sum to K here.
            let whole = if projection == "down_proj" { (whole / top_k as f64)? } else { whole };
            store.insert_stored(&format!("{prefix}.{projection}.weight"), whole)?;
        }
        store.insert(neuron_expert_name(layer), owners.clone())?;
        store.insert(format!("{prefix}.{LEVEL}_router.weight"), load(&format!("{mixture}.gate.weight"))?)?;
        store.insert(format!("{prefix}.{LEVEL}_router.bias"), Tensor::zeros(experts, DType::F32, device)?)?;
    }
    Ok(store)
}
