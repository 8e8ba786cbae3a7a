//! ∫SPS of a model's experts, and its pictures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::settings::{over_file, required};
use experiments::{OutFlags, RunFlags, RunFolder, main_with, overwrite, run_folder};
use serde::{Deserialize, Serialize};
use tinyonn::imaging::Partition;
use tinyonn::phases::image::{TextConfig, dump_tokens};
use tinyonn::phases::{ImageConfig, image};
use tinyonn::{Error, Result};

/// Image a model: what each expert does, and how much it would learn, on each task.
///
/// One forward and one backward to activations over the text gives every neuron's activation and surprise; SPS is the one minus
/// the other, each standardised. The run's folder gets report.html (layers × experts, a picture a task) and
/// integral.safetensors. With --tokens and --dump, every token's raw values are written instead.
#[derive(Parser)]
#[command(
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/scan, runs/scan-2, …]")),
    after_help = "Examples:
  exp_scan --model Qwen3-0.6B --variant TinyOnn --data code=src --data prose=docs
  exp_scan --model runs/phase2/tiny-onn --data code=src --data prose=docs
  exp_scan --model Qwen3-0.6B --tokens ids.safetensors --dump image.safetensors

A dump holds, by layer i, layers.{i}.activation and layers.{i}.surprise, both [B·T, experts] F32, and loss_sum; the targets are
the next tokens, rows are row-major over (B, T), last positions included."
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// A dense Qwen3 or a Tiny-ONN checkpoint; the second brings its own variant and partition
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The declared variant whose experts a dense model is seen as [default: TinyOnn]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// How a dense model's neurons are given to experts: contiguous, random, kmeans, coactivation, activation, sps, taylor [default: as the variant declares, or else contiguous]
    #[arg(long, value_name = "STRATEGY")]
    partition: Option<Partition>,
    /// A task: any folder or file of text, or JSONL with a `text` field (repeatable) [default: the default text]
    #[arg(long, value_name = "NAME=PATH", conflicts_with = "tokens")]
    data: Option<Vec<String>>,
    /// Token ids to dump: a safetensors file with input_ids [B, T], or a .json file like [[1, 2], [3, 4]]
    #[arg(long, value_name = "FILE", requires = "dump")]
    tokens: Option<PathBuf>,
    /// Where to write the raw values of --tokens
    #[arg(long, value_name = "FILE", requires = "tokens")]
    dump: Option<PathBuf>,
    /// Tokens a sequence [default: 128]
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// Sequences a batch [default: 8]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// At most this many tokens of each task [default: 65536]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
    #[command(flatten)]
    #[serde(flatten)]
    output: OutFlags,
}

fn main() -> ExitCode {
    main_with(|| {
        let cli = Cli::parse();
        let Settings { run: RunFlags { config, .. }, output: OutFlags { overwrite, .. }, .. } = &cli.settings;
        run(over_file(&cli.settings, config.as_deref())?, config.as_deref(), *overwrite)
    })
}

fn run(settings: Settings, file: Option<&Path>, overwrite: bool) -> Result<ExitCode> {
    let config = ImageConfig {
        model: required(settings.model, "model")?,
        variant: settings.variant.unwrap_or_else(|| "TinyOnn".into()),
        partition: settings.partition,
        seed: settings.run.seed.unwrap_or(0),
        device: settings.run.device.unwrap_or_default(),
    };
    match (settings.tokens, settings.dump) {
        (Some(tokens), Some(dump)) => {
            overwrite::refuse_file(&dump, overwrite)?;
            dump_tokens(&config, &tokens, &dump)?;
            println!("wrote     {}", dump.display());
            return Ok(ExitCode::SUCCESS);
        }
        (None, None) => {}
        _ => return Err(Error::setting("--dump", "goes with --tokens", "give both or neither")),
    }
    let out = settings.output.out.map_or_else(|| run_folder::first_free("runs/scan".as_ref()), Ok)?;
    let text = TextConfig {
        data: settings.data.unwrap_or_default(),
        length: positive(settings.length.unwrap_or(128), "length")?,
        batch: positive(settings.batch.unwrap_or(8), "batch")?,
        tokens: positive(settings.max_tokens.unwrap_or(65_536), "max-tokens")?,
        out,
    };
    let data = text.data.iter().filter_map(|source| source.split_once('=')).map(|(_, path)| Path::new(path));
    let read: Vec<&Path> = data.chain([config.model.as_path()]).chain(file).collect();
    let replace = overwrite::replaces(&text.out, overwrite, &read)?;
    let folder = RunFolder::create(&text.out, &(&config, &text), config.seed, config.device, replace)?;
    let scan = image(&config, &TextConfig { out: folder.dir().to_path_buf(), ..text })?;
    let out = folder.finish()?;
    for ((task, tokens), loss) in scan.tasks.iter().zip(&scan.tokens).zip(&scan.loss) {
        println!("{task:<16} {tokens:>9} tokens  {:.4} nats a token", loss / (*tokens).max(1) as f64);
    }
    println!("surprises above zero  {:.4}", scan.gradient_nonzero_share());
    println!("open      {}", out.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}

fn positive(value: usize, flag: &str) -> Result<usize> {
    if value == 0 {
        return Err(Error::setting(format!("--{flag}"), "is 0", "use 1 or more"));
    }
    Ok(value)
}
