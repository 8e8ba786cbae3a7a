//! What the `exp_*` binaries share: one concept a file.
//!
//! A binary is a clap struct of settings and a page of calls. [`arguments`] are read, [`run_flags`] are in each of them, [`settings`] puts flags over a
//! TOML file, [`model_flags`] how a checkpoint is named and read, [`overwrite`] says what may be replaced, [`run_folder`] makes `--out` and records the run, [`say`](mod@say) prints, [`interrupts`] hears signals, [`rank_flags`] and [`local_ranks`] are of runs on several GPUs, and
//! [`main_error`] turns an error into one line and an exit code.
//!
//! [`listener`] hears a model write ([`token_paths`]: along which paths), [`text_cost`] says what text costs it.
//!
//! [`runs`] are phases of the library with their studies ([`label_sources`], [`frontier`], [`causal`](mod@causal)) and what they leave, [`passes`] what several machines make of the first of them; `pages` draws it with the
//! figures and tables of `report` (feature `pictures`). [`attention`], [`compare`], [`evidence`], [`forgetting`] and [`growth`] are studies over many runs.

pub mod arguments;
pub mod attention;
pub mod causal;
pub mod children;
pub mod compare;
pub mod densities;
pub mod evidence;
pub mod forgetting;
pub mod fragments;
pub mod frontier;
pub mod growth;
#[cfg(feature = "hub")]
pub mod hub;
pub mod interrupts;
pub mod label_sources;
pub mod listener;
pub mod local_ranks;
pub mod main_error;
pub mod model_flags;
mod names;
pub mod overwrite;
#[cfg(feature = "pictures")]
pub mod pages;
pub mod passes;
pub mod phase_flags;
mod places;
pub mod printed;
pub mod rank_flags;
#[cfg(feature = "pictures")]
pub mod report;
#[cfg(feature = "pictures")]
pub mod results;
pub mod results_file;
pub mod run_flags;
pub mod run_folder;
pub mod runs;
pub mod say;
pub mod scored_text;
pub mod settings;
pub mod shown;
pub mod specific_experts;
pub mod studies;
pub mod study_flags;
pub mod study_folder;
pub mod text_cost;
pub mod token_paths;

/// A step takes and frees megabytes of tensors. The system's allocator gives each back and has its pages filled with zeros anew, a
/// fifth of a step's time; this one keeps them. Fuzz targets have one of their own, which bounds what is held.
#[cfg(not(fuzzing))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use interrupts::interrupt;
pub use main_error::main_with;
pub use phase_flags::PhaseFlags;
pub use rank_flags::{Rank, RankFlags, Started};
pub use run_flags::{OutFlags, RunFlags};
pub use run_folder::{RunFolder, git_commit};
pub use tinyonn::phases::DeviceName;
