//! GGUF files, as llama.cpp writes them: a whole model, settings, tokenizer and weights, in one file or several.
//!
//! A [`GgufFile`] gives what a Hugging Face folder of the same model would: `config.json` ([`GgufFile::config`]), its tensors by
//! their names there ([`GgufFile::tensors`], [`GgufFile::load`]) and the tokenizer's files. Weights in blocks are dequantised a
//! tensor at a time, from the mapped file: the peak is what the caller keeps, and one tensor.
//!
//! What is checked of a header is ours (`header`), what its blocks mean candle's. Nothing is guessed: an architecture, a type, a
//! pre-tokenizer or a scaling that is not known is refused by its name.
//!
//! ```
//! use candle_core::{DType, Device};
//! use tinyonn::checkpoint::GgufFile;
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/llama_blocks.gguf");
//! let file = GgufFile::open(path)?;
//! assert_eq!(file.config()["model_type"], "llama");
//! let gate = file.load("model.layers.1.mlp.gate_proj.weight", &Device::Cpu, Some(DType::BF16))?;
//! assert_eq!(gate.dims2()?, (160, 96));
//! assert_eq!(file.describe(DType::F32), "llama_blocks.gguf: Q4_0, 0.2 MB, dequantised to f32 (0.9 MB)");
//! let tokens = file.tokenizer()?.encode("the cat", true).unwrap();
//! assert_eq!(tokens.get_tokens().concat(), "<s>▁the▁cat");
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod architecture;
mod byte_level;
mod config;
mod cursor;
mod fault;
mod file;
mod ggml;
mod header;
mod metadata;
mod names;
mod rope;
mod sentence_piece;
mod split;
mod tokenizer_json;
mod tokens;
mod vocabulary;

pub use file::{GgufFile, GgufTensor, is_gguf};
pub use ggml::GgmlType;
pub use tokens::TokenizerFiles;
