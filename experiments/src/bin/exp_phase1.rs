//! Image a dense model, decompose it, fit routers to the image, and ask what the image knew.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use experiments::model_flags::{found, found_on_paper};
use experiments::runs::{phase1, scan_shard};
use experiments::settings::layered;
use experiments::studies::RunSummary;
use experiments::{PhaseFlags, RunFolder, arguments, main_with, overwrite, printed, run_folder, say};
use tinyonn::imaging::{Shard, StoredScan};
use tinyonn::phases::{RunConfig, Stages, plan};
use tinyonn::{Error, Result, files};

/// Image a dense decoder, decompose it into experts without loss, label each task's path, fit routers, all else frozen.
///
/// Then measure: the loss along every source of labels; loss against active share for every fixed number of choices and the adaptive
/// forms; what ablating and amplifying the experts and neurons of a task does to it and to others. Without --model a small Qwen3 is
/// pretrained on the text first (some two minutes on two cores, then cached in runs/cache). The run's folder gets report.html, the
/// page to open, with figures/ as SVG, PNG and CSV; summary.json; config.json; and tiny-onn/, the routed checkpoint that exp_phase2
/// --from continues.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/phase1, runs/phase1-2, …]")),
    after_help = "Examples:
  exp_phase1                                                on the default text
  exp_phase1 --quick                                        the same in a minute or two
  exp_phase1 --data toolchain                               real text: the sources, guides and manuals that come with Rust
  exp_phase1 --data code=src --data prose=docs              tasks of your own: folders, files, or JSONL with a `text` or `messages` field
  exp_phase2 --from runs/phase1                             what follows
  exp_phase1 --pass scan --shard 0/2 --out runs/part-0      the first half of its scan, on a machine of its own
  exp_phase1 --merge runs/part-0/scan.safetensors runs/part-1/scan.safetensors --out runs/scan
  exp_phase1 --scanned runs/scan/scan.safetensors           the rest of it

A TOML file for --config has the keys that a run's config.json shows under `settings`; one file serves both phases:
  partition = \"activation\"
  labels = \"activation_plus_surprise\"
  [router]
  projection = \"pca\""
)]
struct Cli {
    #[command(flatten)]
    flags: PhaseFlags,
    /// The same in a minute or two: fewer steps, less text
    #[arg(long)]
    quick: bool,
    /// Make one pass over the training text alone; --merge adds its shards up
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dry_run", "merge", "scanned"])]
    pass: Option<TextPass>,
    /// Of --pass only shard I of N of the batches, I from 0 [default: 0/1]
    #[arg(long, value_name = "I/N", requires = "pass")]
    shard: Option<Shard>,
    /// Keep what --pass sums up in this file as it goes, at least every minute, and continue it if it is there
    #[arg(long, value_name = "FILE", requires = "pass")]
    scan_file: Option<PathBuf>,
    /// Add up the files that --pass left (repeatable)
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["scanned", "dry_run"])]
    merge: Vec<PathBuf>,
    /// Of --merge: add up scans of several kinds of device, or computed in several types
    #[arg(long, requires = "merge")]
    mixed: bool,
    /// Take the scan from this file, which --merge left, and do the rest
    #[arg(long, value_name = "FILE")]
    scanned: Option<PathBuf>,
}

/// What reads the training text by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TextPass {
    /// The image of the dense model's neurons.
    Scan,
}

/// The scan in the folder of a pass.
const SCAN: &str = "scan.safetensors";

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let base = if cli.quick { RunConfig::quick() } else { RunConfig::default() };
    let out = match (cli.pass.is_some() || !cli.merge.is_empty(), cli.quick) {
        (true, _) => "runs/phase1-scan",
        (false, true) => "runs/quick1",
        (false, false) => "runs/phase1",
    };
    let base = RunConfig { out: out.into(), ..base };
    let file = cli.flags.run.config.as_deref();
    let mut config: RunConfig = layered(&base, file, &cli.flags)?;
    let find = if cli.flags.dry_run { found_on_paper } else { found };
    config.model = find(config.model.as_deref())?;
    if cli.flags.dry_run {
        printed::plan(&plan(&config, Stages::Phase1)?);
        return Ok(ExitCode::SUCCESS);
    }
    if cli.flags.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    if !cli.merge.is_empty() {
        return merge(cli, &config);
    }
    let read: Vec<&Path> =
        config.reads().chain(file).chain(cli.scan_file.as_deref()).chain(cli.scanned.as_deref()).collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let checkpoints = Some(folder.checkpoints(cli.flags.save_every)?);
    let config = RunConfig { out: folder.dir().to_path_buf(), ..config };
    if cli.pass == Some(TextPass::Scan) {
        let (shard, result) = (cli.shard.unwrap_or(Shard::WHOLE), folder.dir().join(SCAN));
        let path = cli.scan_file.as_deref().unwrap_or(&result);
        files::try_write(path)?;
        let stored = scan_shard(&config, checkpoints.as_ref(), shard, path)?;
        if cli.scan_file.is_some() {
            stored.save(&result)?;
        }
        say!("scanned   shard {shard}: {} tokens", stored.scan.tokens.iter().sum::<u64>());
        say!("next      exp_phase1 --merge {} and those of the other shards", folder.finish()?.join(SCAN).display());
        return Ok(ExitCode::SUCCESS);
    }
    let summary = phase1(&config, checkpoints.as_ref(), cli.scanned.as_deref())?;
    let out = folder.finish()?;
    print(&summary);
    printed::page(&out);
    Ok(if summary.phase1.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds up what shards of a pass have left.
fn merge(cli: &Cli, config: &RunConfig) -> Result<ExitCode> {
    let read: Vec<&Path> = cli.merge.iter().map(PathBuf::as_path).collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let scans = cli.merge.iter().map(|path| Ok((path.clone(), StoredScan::load(path)?)));
    let sum = StoredScan::sum(scans.collect::<Result<_>>()?, cli.mixed)?;
    if let Some(shard) = sum.missing().first() {
        let problem = format!("shard {shard} is not among the {} files", cli.merge.len());
        return Err(Error::setting("--merge", problem, "name the files of all shards"));
    }
    let folder = RunFolder::create(&config.out, &(&cli.merge, cli.mixed), config.seed, config.device, replace)?;
    sum.save(folder.dir().join(SCAN))?;
    let whole = folder.finish()?.join(SCAN);
    say!("added up  {} tokens of {} files", sum.scan.tokens.iter().sum::<u64>(), cli.merge.len());
    say!("next      exp_phase1 --scanned {}, with the settings that the shards had", whole.display());
    Ok(ExitCode::SUCCESS)
}

fn print(summary: &RunSummary) {
    let RunSummary { phase1, studies, .. } = summary;
    printed::lossless_and_routers(phase1);
    let loss = &phase1.loss;
    say!(
        "loss      dense {:.3}, routed {:.3}, {:.0} % active, labels' own paths {:.3} (nats a token, test split)",
        loss.dense,
        loss.routed_before,
        100.0 * phase1.active_share,
        loss.label_paths
    );
    printed::controls(phase1);
    for found in studies.causal.iter().filter(|found| found.factor == 0.0 && found.source == "sps") {
        let at = &found.specificity;
        say!(
            "causal    without its {} highest {}s by ∫SPS a task loses {:+.3} nats more than others do [{:+.3}, {:+.3}]",
            found.count,
            found.unit,
            at.mean,
            at.low,
            at.high
        );
    }
}
