//! The targets: each gives an input to one parser.

pub mod benchmark;
pub mod chat_template;
pub mod checkpoint;
pub mod config_json;
pub mod gguf;
pub mod metrics_jsonl;
pub mod pass_file;
pub mod run_files;
pub mod safetensors;
pub mod safetensors_index;
pub mod scan_file;
pub mod settings_toml;
pub mod text_jsonl;
pub mod token_ids;
pub mod tokenizer;
pub mod train_state;

/// A target.
pub type Target = fn(&[u8]);

/// All of them by their names.
pub const TARGETS: [(&str, Target); 16] = [
    ("benchmark", benchmark::run),
    ("chat_template", chat_template::run),
    ("checkpoint", checkpoint::run),
    ("config_json", config_json::run),
    ("gguf", gguf::run),
    ("metrics_jsonl", metrics_jsonl::run),
    ("pass_file", pass_file::run),
    ("run_files", run_files::run),
    ("safetensors", safetensors::run),
    ("safetensors_index", safetensors_index::run),
    ("scan_file", scan_file::run),
    ("settings_toml", settings_toml::run),
    ("text_jsonl", text_jsonl::run),
    ("token_ids", token_ids::run),
    ("tokenizer", tokenizer::run),
    ("train_state", train_state::run),
];
