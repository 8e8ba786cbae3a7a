//! What a run is of: the model, the variant, the text.

use std::path::PathBuf;

use serde::Serialize;

/// Of the programs that run a phase.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct DataFlags {
    /// A dense Qwen3 as a Hugging Face folder, with its tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The declared variant, by the name of its type [default: TinyOnn]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// A task: any folder or file of text, or JSONL with a `text` field (repeatable); `toolchain` alone: text that comes with Rust
    #[arg(long, value_name = "NAME=PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
}
