//! What the programs of studies of cells ask: which cells, how long, and on what.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tinyonn::train::Precision;

use crate::{DeviceName, arguments};

/// What is done with the cells of a study.
#[derive(clap::Args)]
pub struct CellFlags {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Make these cells alone, by their names (repeatable)
    #[arg(long, value_name = "NAME")]
    pub cell: Vec<String>,
    /// Begin no cell after so many minutes; the same command goes on from there
    #[arg(long, value_name = "N", value_parser = arguments::minutes)]
    pub minutes: Option<Duration>,
    /// Make cells, and write no results
    #[arg(long)]
    pub no_report: bool,
    /// Print the cells, their tokens, operations and hours, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Makes nothing: writes the results anew from the cells in --out
    #[arg(long, conflicts_with_all = ["config", "cell", "dry_run", "minutes", "no_report"])]
    pub report: bool,
}

/// The settings of a study that flags may say.
#[derive(clap::Args, Serialize)]
pub struct StudyFlags {
    /// A dense decoder: a Hugging Face folder with its tokenizer.json, a GGUF file, or a name on the hub
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// What scripts/fetch_material.sh has written [default: material]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub material: Option<PathBuf>,
    /// Where it computes: cpu, cuda, or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceName>,
    /// What passes compute in: f32 or bf16 [default: f32]
    #[arg(long, value_name = "DTYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Precision>,
    /// Decides which text is read, and everything random [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The study's folder; one that was begun with the same settings is gone on with
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Where the results are written [default: RESULTS.md in the study's folder]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<PathBuf>,
}
