//! The flags of a run of phases: what it is of (the model, the variant, the text), and what all programs that write have.

use std::path::PathBuf;

use serde::Serialize;
use tinyonn::train::Precision;

use crate::{OutFlags, RunFlags};

/// Of the programs that run a phase.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct PhaseFlags {
    /// A dense decoder (Qwen3, Qwen2, Llama, Mistral, SmolLM3): a Hugging Face folder with its tokenizer.json, a GGUF file, or a name on the hub (OWNER/NAME)
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The declared variant, by the name of its type [default: TinyOnn]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// A task: any folder or file of text, or JSONL with a `text` or `messages` field (repeatable); `toolchain` alone: text that comes with Rust
    #[arg(long, value_name = "NAME=PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// What passes compute in: f32 or bf16; what learns, routers and sums stay f32 or more [default: f32]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<Precision>,
    /// Steps of a training between two states that a run goes on from when it was stopped
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    #[serde(skip)]
    pub save_every: u64,
    /// Print what would be done, with its steps, tokens and memory, and do nothing
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
    /// Seed, device, settings.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunFlags,
    /// Where it writes.
    #[command(flatten)]
    #[serde(flatten)]
    pub output: OutFlags,
}
