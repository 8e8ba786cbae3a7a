//! Checkpoints: Hugging Face model folders in and out, and the parameters they hold.
//!
//! A [`ModelFolder`] reads `config.json` and safetensors, or a GGUF file ([`gguf`]), and checks every name and shape; [`ParamStore`] owns the
//! parameters by name, hands them to models, trainable or frozen, and [`ModelFolder::save`] writes them back, whole or
//! not at all. Loading and saving without a conversion keeps each tensor's bytes.
//!
//! [`upcycle`] turns a dense model's parameters into a variant's without touching a weight; a [`TinyOnnFolder`] is the
//! result on disk, [`export`] the way to other programs, and [`compare`] the proof.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::checkpoint::{ModelFolder, ParamStore};
//!
//! # let parent = tempfile::tempdir().unwrap();
//! # let dir = parent.path().join("model");
//! let mut store = ParamStore::new(&Device::Cpu);
//! store.insert("norm.weight", Tensor::ones(4, DType::BF16, &Device::Cpu)?)?;
//! ModelFolder::save(&dir, &serde_json::json!({ "model_type": "qwen3" }), &store, None)?;
//!
//! let store = ModelFolder::open(&dir)?.load(&Device::Cpu, Some(DType::F32))?;
//! let vb = store.builder(DType::F32, |name| name.ends_with("weight"));
//! assert_eq!(vb.pp("norm").get(4, "weight")?.to_vec1::<f32>()?, [1.0; 4]);
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod builder;
mod entry;
mod expansion;
pub mod export;
pub mod folder;
pub mod gguf;
mod initialise;
mod instead;
mod key_directions;
mod layout;
mod lineage;
mod loaded;
mod lora;
pub mod mmap;
mod names;
mod not_finite;
mod params;
mod quantised;
mod read_var;
pub(crate) mod recorded;
mod replicas;
mod save;
mod source;
pub mod store;
pub mod tinyonn_folder;
pub mod tokens;
mod upcycle;
mod variant_tensors;
pub mod verify;
mod work;

pub(crate) use entry::{Entry, raw_bytes};
pub(crate) use expansion::Held;
pub use expansion::{Expansion, expand_folder};
pub use export::{export_dense, export_dense_into};
pub use folder::{ModelFolder, is_on_paper, read_arch};
pub use gguf::GgufFile;
pub use key_directions::KeyDirections;
pub(crate) use layout::Order;
pub(crate) use loaded::stored_type;
pub use loaded::{LoadedModel, load_model, load_model_at_share, takes_shares};
pub use lora::{grow_lora, lora_params};
pub use mmap::MappedSafetensors;
pub use not_finite::{NotFinite, refuse_not_finite};
pub(crate) use params::mixture_prefix;
pub use params::{Param, Role, Roles, dense_params, expected_tensors};
pub use replicas::{base_name, grow_deltas, is_delta, prune_deltas};
pub use save::{MAX_SHARD_BYTES, TOKENIZER_FILES};
pub(crate) use save::{begin_entries, places, write_entries};
pub use source::WeightSource;
pub use store::ParamStore;
pub use tinyonn_folder::{TaskPath, TinyOnnConfig, TinyOnnFolder, is_tinyonn};
pub use upcycle::{Upcycled, refuse_tinyonn, upcycle, upcycle_folder};
pub use variant_tensors::{VariantParameters, expected_variant_tensors, variant_parameters, variant_params};
pub use verify::{Comparison, compare, compare_with_reference};
pub use work::WorkWeights;
pub(crate) use work::refresh;
