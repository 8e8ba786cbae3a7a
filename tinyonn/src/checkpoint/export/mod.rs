//! A Tiny-ONN checkpoint for other programs, and what is lost on the way.
//!
//! - `dense`: the dense model, all experts active: the weights byte for byte. Replicas that have learnt and are merged become their even mean, W + Σ ΔW_n / N, which
//!   is what they compute all active; a fixed set of neurons (`neurons = pruned`) and its repair go into W_d if the routed pass is asked for.
//! - `qwen3-moe`: Qwen3 models as transformers' Qwen3MoE: every expert by itself, padded by zeros to one width that is a multiple of 8. All active the gate
//!   is zero, all experts are taken, each with weight 1/N, and W_d is N times its own. Routed, the format's gate is one linear map without a bias behind which K experts
//!   are weighted by their softmax: exact for a flat declaration of `gate = scaled` behind a linear router without a bias, or a Gaussian one of shared variances whose constants agree. Of
//!   other routers the linear part is written (`linear_gate`), and what that loses is measured ([`measure`]).
//! - `mixtral`: the same of models of Llama and Mistral, whose attention transformers' Mixtral has.
//! - `tinyonn`: the folder as it is, and beside it the two Python files that transformers computes it by (`trust_remote_code = True`).
//!
//! What a format has no place for is refused by name. Nothing that a checkpoint holds is executed here.
//!
//! ```
//! use candle_core::Device;
//! use tinyonn::checkpoint::export::{ExportFormat, Exported, export_into, load_mixture, measure, model_card};
//! use tinyonn::checkpoint::{ParamStore, TinyOnnConfig, TinyOnnFolder, tokens, upcycle};
//! use tinyonn::decoder::{Arch, CausalLm};
//! use tinyonn::files::StagedFolder;
//! use tinyonn::imaging::{Partition, PartitionSources, partition};
//! use tinyonn::moe;
//!
//! # let parent = tempfile::tempdir().unwrap();
//! # let [dir, out] = ["tiny-onn", "moe"].map(|name| parent.path().join(name));
//! let cfg = Arch::from_json(&serde_json::json!({
//!     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 21, "num_hidden_layers": 1,
//!     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
//! }), "config.json")?;
//! let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
//! let variant = moe::variant("Mixtral")?;
//! let experts = partition::assign(Partition::Random, &variant.spec, (1, 21), PartitionSources::default(), 0)?;
//! let store = upcycle(dense, &cfg, variant, &experts, 0)?;
//! TinyOnnFolder::save(&dir, &cfg.to_json(), &TinyOnnConfig::new(variant, "random", 0), &store, None)?;
//!
//! let (source, staged) = (TinyOnnFolder::open(&dir)?, StagedFolder::new(&out)?);
//! let exported: Exported = export_into(&source, &staged, ExportFormat::Qwen3Moe, None)?;
//! let ids = tokens::random_tokens(32, (2, 9), 0, &Device::Cpu)?;
//! let loss = measure(&source, &exported, staged.path(), &ids, &Device::Cpu)?;
//! assert!(loss.max_abs_difference < 1e-5 && loss.top1_agreement == 1.0);
//! assert_eq!(load_mixture(staged.path(), &Device::Cpu)?.experts(), 8);
//! let card = model_card(&source, &exported, Some((&loss, "random tokens")));
//! assert!(card.starts_with("---\n") && card.contains(ExportFormat::Qwen3Moe.word()));
//! staged.publish()?;
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod contents;
mod dense;
mod linear_gate;
mod loss;
mod mixture;
mod mixture_folder;
mod mixture_format;
mod model_card;
mod transformers_code;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::entry::Entry;
use super::folder::{ModelFolder, is_buffer};
use super::layout::Order;
use super::mmap::TensorInfo;
use super::not_finite::NotFinite;
use super::params::EMBEDDING;
use super::save::{MAX_SHARD_BYTES, write_all};
use super::tinyonn_folder::TinyOnnFolder;
use crate::Result;
use crate::files::StagedFolder;
use crate::model::ActiveMode;
use contents::Contents;
use mixture_format::{MIXTRAL, QWEN3_MOE};

pub use dense::{export_dense, export_dense_into};
pub use loss::{ExportLoss, measure};
pub use mixture_folder::load_mixture;
pub use model_card::model_card;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExportFormat {
    /// The dense model.
    #[serde(rename = "dense")]
    Dense,
    /// transformers' Qwen3MoE.
    #[serde(rename = "qwen3-moe")]
    Qwen3Moe,
    /// A Tiny-ONN folder that transformers loads.
    #[serde(rename = "tinyonn")]
    TinyOnn,
    /// transformers' Mixtral.
    #[serde(rename = "mixtral")]
    Mixtral,
}

impl ExportFormat {
    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Qwen3Moe => QWEN3_MOE.word,
            Self::Mixtral => MIXTRAL.word,
            Self::TinyOnn => "tinyonn",
        }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The format.
    pub format: ExportFormat,
    /// The mode of the checkpoint that it stands for, and is held against.
    pub active: ActiveMode,
    /// What the checkpoint has and the format has no place for, in words.
    pub left_out: Vec<String>,
    /// The tensors that were copied and hold values that are no finite numbers, and how many.
    pub not_finite: NotFinite,
}

/// Writes `source` as `format` into the folder `staged`, as it computes in the mode `active`, or in its own where `None`. Weights of `dense` and `tinyonn` pass in
/// pieces; those of a `qwen3-moe` or `mixtral` are held until they are written.
///
/// # Errors
/// What the format has no place for, by name; a dense model of a checkpoint whose fixed set of neurons was repaired, unless `active` says which of the two it shall
/// be; the system refuses a file.
pub fn export_into(
    source: &TinyOnnFolder,
    staged: &StagedFolder,
    format: ExportFormat,
    active: Option<ActiveMode>,
) -> Result<Exported> {
    let contents = Contents::of(source)?;
    let mode = active.unwrap_or(source.config().active);
    let routed =
        if format == ExportFormat::Dense { active == Some(ActiveMode::Routed) } else { mode == ActiveMode::Routed };
    if routed {
        contents::refuse_pairs(source)?;
    }
    let (left_out, not_finite) = match format {
        ExportFormat::Dense => dense::write(source, &contents, staged, active)?,
        ExportFormat::Qwen3Moe => mixture::write(source, &contents, staged, (QWEN3_MOE, mode))?,
        ExportFormat::Mixtral => mixture::write(source, &contents, staged, (MIXTRAL, mode))?,
        ExportFormat::TinyOnn => (Vec::new(), transformers_code::write(source, &contents, staged, mode)?),
    };
    Ok(Exported { format, active: mode, left_out, not_finite })
}

/// Names the type of the weights where that is not said and not f32: routers beside them are f32, and whoever loads by the first type found would widen all.
fn name_type(source: &TinyOnnFolder, config: &mut Value) {
    let said = ["dtype", "torch_dtype"].iter().any(|key| config.get(*key).is_some_and(|value| !value.is_null()));
    let word = match source.folder().source().info(EMBEDDING).and_then(TensorInfo::computed) {
        Some(DType::BF16) => "bfloat16",
        Some(DType::F16) => "float16",
        _ => return,
    };
    if !said {
        config["torch_dtype"] = word.into();
    }
}

/// Writes `config`, the tokenizer's files, `made` in the order that files have, and of `from` those tensors besides that `copied` picks.
fn write_folder(
    from: &ModelFolder,
    staged: &StagedFolder,
    config: &Value,
    copied: impl Fn(&str) -> bool,
    made: &[(String, Tensor)],
) -> Result<NotFinite> {
    let of_file = |name: &&str| !is_buffer(name) && copied(name) && !made.iter().any(|(other, _)| other == name);
    let names = from.tensors().map(|(name, _)| name).filter(of_file);
    let mut entries = names.map(|name| Entry::of_file(name, from.source())).collect::<Result<Vec<_>>>()?;
    for (name, tensor) in made {
        entries.push(Entry::of_tensor(name, tensor, Order::Memory)?);
    }
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    write_all(staged.path(), config, &entries, Some(from.dir()), MAX_SHARD_BYTES)
}
