//! The flags that the programs have in common, flattened into each one's settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DeviceName;

/// Of every program.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct RunFlags {
    /// Decides everything random [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where it computes: cpu, cuda, or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceName>,
    /// A TOML file of settings, named like the flags with `_` for `-`; flags override it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// Of the programs that write.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct OutFlags {
    /// The folder to write; one that exists and is not empty is refused without --overwrite
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace what is there, once the new result is whole
    // Said on the command line or not at all: a file must not make every run that reads it delete another, and a run's record holds
    // only what its results depend on.
    #[arg(long)]
    #[serde(skip)]
    pub overwrite: bool,
}
