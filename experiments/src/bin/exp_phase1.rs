//! Image a dense model, decompose it, fit routers to the image, and ask what the image knew.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use experiments::model_flags::{found, found_on_paper};
use experiments::passes::{Dealt, Left};
use experiments::rank_flags::given;
use experiments::runs::phase1;
use experiments::settings::layered;
use experiments::studies::RunSummary;
use experiments::{
    PhaseFlags, Rank, RankFlags, RunFolder, Started, arguments, main_with, overwrite, passes, printed, run_folder, say,
};
use serde_json::{Value, json};
use tinyonn::checkpoint::{ModelFolder, is_on_paper};
use tinyonn::imaging::Shard;
use tinyonn::metrics::Stopwatch;
use tinyonn::phases::{DeviceName, Passed, Prepared, RowPass, Run, RunConfig, Stages, Text, check_room, plan};
use tinyonn::train::Checkpoints;
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
  exp_phase1 --passed runs/scan/scan.safetensors            the rest of it
  exp_phase1 --model Qwen3-0.6B --pass scan --device cuda --gpus 2 --out runs/whole    the scan, on two GPUs; or under torchrun, srun, mpirun

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
    /// Make one pass over the text alone: the only part that several ranks share; --merge adds its shards up
    #[arg(long, value_name = "NAME", conflicts_with = "merge")]
    pass: Option<TextPass>,
    /// Of --pass only shard I of N of the batches, I from 0 [default: 0/1]
    #[arg(long, value_name = "I/N", requires = "pass")]
    shard: Option<Shard>,
    /// Keep what `--pass scan` sums up in this file as it goes, at least every minute, and continue it if it is there; of several ranks each has its own, FILE.rank-I
    #[arg(long, value_name = "FILE", requires = "pass")]
    scan_file: Option<PathBuf>,
    /// Add up the files that --pass left (repeatable)
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["passed", "dry_run"])]
    merge: Vec<PathBuf>,
    /// Of --merge: add up what several kinds of device, or several types, have computed
    #[arg(long, requires = "merge")]
    mixed: bool,
    /// Take what passes have made from these files, which --merge left, and do the rest (repeatable)
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "dry_run")]
    passed: Vec<PathBuf>,
    // The earlier name, of a scan alone; who gives it is told the other.
    #[arg(long, hide = true, value_name = "FILE")]
    scanned: Option<PathBuf>,
    #[command(flatten)]
    ranks: RankFlags,
}

/// What reads the text by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TextPass {
    /// The image of the dense model's neurons, on the training text.
    Scan,
    /// What routers see of every split.
    Inputs,
    /// Tokens' own labels, of a run that has them; takes the scan by --passed.
    Labels,
    /// What routers see once they route, of a run that refits them: the next round; takes what all passes before have left by --passed.
    Refit,
    /// The losses of the test text; takes what all passes before have left by --passed.
    Losses,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let rank = match cli.ranks.started()? {
        Started::Ended(code) => return Ok(code),
        Started::Alone => None,
        Started::Rank(rank) => Some(rank),
    };
    let base = if cli.quick { RunConfig::quick() } else { RunConfig::default() };
    if let Some(file) = &cli.scanned {
        let problem = "is no longer called so: other passes leave files as well";
        return Err(Error::setting("--scanned", problem, format!("give --passed {}", file.display())));
    }
    let out = match (cli.pass.is_some() || !cli.merge.is_empty(), cli.quick) {
        (true, _) => "runs/phase1-pass",
        (false, true) => "runs/quick1",
        (false, false) => "runs/phase1",
    };
    let base = RunConfig { out: out.into(), ..base };
    let file = cli.flags.run.config.as_deref();
    let mut config: RunConfig = layered(&base, file, &cli.flags)?;
    let find = if cli.flags.dry_run { found_on_paper } else { found };
    config.model = find(config.model.as_deref())?;
    if let Some(rank) = &rank {
        check_rank(cli, &config, rank)?;
    }
    if cli.flags.dry_run {
        return dry_run(cli, &config, rank.as_ref());
    }
    if let Some(rank) = &rank {
        config.device = rank.device(config.device)?;
    }
    let (scan, rows) = passes::passed(&cli.passed)?;
    let passed = Passed { scan, rows: &rows };
    let kept =
        cli.scan_file.as_deref().map(|file| rank.as_ref().map_or_else(|| file.to_owned(), |rank| rank.file(file)));
    if let (Some(pass), Some(rank)) = (cli.pass, rank.as_ref().filter(|rank| !rank.is_first())) {
        let folder = rank.folder()?;
        let config = RunConfig { out: folder.path().to_path_buf(), ..config };
        return make(cli, &config, passed, (pass, kept.as_deref()), (None, Some(rank))).map(|_| ExitCode::SUCCESS);
    }
    if cli.flags.output.out.is_none() && config.out == base.out {
        config.out = run_folder::first_free(&base.out)?;
    }
    if !cli.merge.is_empty() {
        let read: Vec<&Path> = cli.merge.iter().map(PathBuf::as_path).collect();
        let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
        let settings = (&cli.merge, cli.mixed);
        passes::merge(&cli.merge, cli.mixed, || {
            RunFolder::create(&config.out, &settings, config.seed, config.device, replace)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let own = kept.as_deref().into_iter().chain(cli.passed.iter().map(PathBuf::as_path));
    let read: Vec<&Path> = config.reads().chain(file).chain(own).collect();
    let replace = overwrite::replaces(&config.out, cli.flags.output.overwrite, &read)?;
    let folder = RunFolder::create(&config.out, &config, config.seed, config.device, replace)?;
    let checkpoints = Some(folder.checkpoints(cli.flags.save_every)?);
    let config = RunConfig { out: folder.dir().to_path_buf(), ..config };
    if let Some(pass) = cli.pass {
        let left = make(cli, &config, passed, (pass, kept.as_deref()), (checkpoints.as_ref(), rank.as_ref()))?;
        let out = folder.finish()?;
        left.iter().for_each(|left| left.say(&out));
        return Ok(ExitCode::SUCCESS);
    }
    let summary = phase1(&config, checkpoints.as_ref(), passed)?;
    let out = folder.finish()?;
    print(&summary);
    printed::page(&out);
    Ok(if summary.phase1.lossless.bit_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes a pass into the run's folder, what is scanned kept in `file`: one shard of it, or with the other ranks all of it.
fn make(
    cli: &Cli,
    config: &RunConfig,
    passed: Passed<'_>,
    (pass, file): (TextPass, Option<&Path>),
    (checkpoints, rank): (Option<&Checkpoints>, Option<&Rank>),
) -> Result<Option<Left>> {
    if pass == TextPass::Scan {
        file.into_iter().try_for_each(files::try_write)?;
    }
    check_room(config, Stages::Phase1)?;
    let prepared = Prepared::new(config, &mut Stopwatch::new(), checkpoints)?;
    let run = Run { passed, ..prepared.run(config) };
    let make = |dealt: Dealt<'_>| match pass {
        TextPass::Scan => passes::scan(&run, dealt, &config.out, file),
        TextPass::Inputs => passes::rows(&run, dealt, &config.out, RowPass::Inputs),
        TextPass::Labels => passes::rows(&run, dealt, &config.out, RowPass::Labels),
        TextPass::Refit => passes::refit(&run, dealt, &config.out),
        TextPass::Losses => passes::rows(&run, dealt, &config.out, RowPass::Losses),
    };
    let Some(rank) = rank else { return make(Dealt::Shard(cli.shard.unwrap_or(Shard::WHOLE))) };
    cli.ranks.share(rank, &all_given(config, pass, run.alike()?)?, &run.device, |ranks| make(Dealt::Ranks(ranks)))
}

/// What all ranks must have been given.
fn all_given(config: &RunConfig, pass: TextPass, mut alike: Value) -> Result<Value> {
    // Which of its cards a rank takes, and where it writes, is its own.
    let settings = RunConfig { device: DeviceName::Cpu, out: PathBuf::new(), ..config.clone() };
    alike["pass"] = format!("{pass:?}").into();
    given(&settings, alike)
}

/// Says what phase 1 would do. Several ranks meet for it, compare what they were given, and leave.
fn dry_run(cli: &Cli, config: &RunConfig, rank: Option<&Rank>) -> Result<ExitCode> {
    if rank.is_none() && cli.pass.is_some() {
        let problem = "is a part of phase 1, and a plan is of all of it";
        return Err(Error::setting("--pass", problem, "leave out --pass or --dry-run, or start several ranks"));
    }
    let plan = plan(config, Stages::Phase1)?;
    if let (Some(rank), Some(pass), Some(model)) = (rank, cli.pass, &config.model) {
        let model = (!is_on_paper(model)).then(|| ModelFolder::open(model)?.sha256()).transpose()?;
        let text = Text::new(&config.data, config.seed)?.sha256;
        cli.ranks.meet(rank, &all_given(config, pass, json!({ "text": text, "model": model }))?, None)?.leave();
        if !rank.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        printed::ranks(&rank.launched);
    }
    printed::plan(&plan);
    Ok(ExitCode::SUCCESS)
}

/// Refuses what several ranks do not share.
fn check_rank(cli: &Cli, config: &RunConfig, rank: &Rank) -> Result<()> {
    let ranks = rank.launched.ranks;
    if cli.pass.is_none() {
        let problem = format!("is not given, and of phase 1 {ranks} ranks share its passes over text alone");
        let remedy = "name a pass; what goes on from them is one process, without --gpus and without a launcher";
        return Err(Error::setting("--pass", problem, remedy));
    }
    if config.model.is_none() {
        let problem = format!("is not given, and each of {ranks} ranks would pretrain a model");
        return Err(Error::setting("--model", problem, "name one"));
    }
    rank.refuse_shard(cli.shard.is_some())
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
