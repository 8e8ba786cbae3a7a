//! What is each way to take part of a pretrained model's MLPs worth? A grid of methods over shares of their operations.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use experiments::evidence::{
    Cell, EvidenceConfig, EvidenceStore, Found, KindLosses, Lacking, Speed, run_cells, time_cells,
};
use experiments::settings::layered;
use experiments::study_flags::{CellFlags, StudyFlags};
use experiments::study_folder::named;
use experiments::{arguments, interrupt, main_with, model_flags, say};
#[cfg(feature = "pictures")]
use experiments::{fragments::provenance, git_commit};
use tinyonn::Result;
use tinyonn::checkpoint::read_arch;
use tinyonn::train::Checkpoints;

/// Take part of a pretrained decoder's MLPs in many ways, at several shares of their operations, and measure what each keeps of text and benchmarks; write RESULTS.md.
///
/// A cell is a file in OUT/cells, a finalist's answers to benchmarks one in OUT/answers, and neither is made again: a study that was stopped, however it was, goes on where it was. Any number of processes may run the same
/// command with one --out: each makes the next cell that nobody makes. The text is what scripts/fetch_material.sh writes. At the end RESULTS.md is written from the cells.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The study's folder; one that was begun with the same settings is gone on with [default: runs/evidence]")),
    after_help = "Examples:
  bash scripts/fetch_material.sh material
  exp_evidence --model SmolLM2.gguf --material material --dry-run           the cells, their tokens, operations and hours
  exp_evidence --model SmolLM2.gguf --material material --device cuda --minutes 9
  exp_evidence --model SmolLM2.gguf --material material --cell own_gate-50-seed1      one of them
  exp_evidence --time --model SmolLM2.gguf --material material              tokens a second of the finalists, on this machine's processor
  exp_evidence --report                                                     the results of what was made

A TOML file for --config has the keys that OUT/evidence.json shows, for example:
  items = 1000        # the first of each benchmark, in place of all
  [distil]
  steps = 1000"
)]
struct Cli {
    #[command(flatten)]
    flags: StudyFlags,
    #[command(flatten)]
    cells: CellFlags,
    /// Makes no cells: times how fast the finalists of the study in --out read and write on this machine's processor, each made anew from little text
    #[arg(long, conflicts_with_all = ["config", "cell", "dry_run", "no_report", "report"])]
    time: bool,
}

/// Steps of distillation between two states.
const SAVE_EVERY: u64 = 250;

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut config: EvidenceConfig = layered(&EvidenceConfig::default(), cli.cells.config.as_deref(), &cli.flags)?;
    if cli.cells.report {
        let begun = EvidenceStore::new(&config.out).begun()?;
        let results = config.results.or_else(|| begun.results.clone());
        return report(&EvidenceConfig { results, out: config.out, ..begun });
    }
    let until = cli.cells.minutes.map(|minutes| Instant::now() + minutes);
    if cli.time {
        let begun = EvidenceStore::new(&config.out).begun()?;
        let model = model_flags::found(cli.flags.model.as_deref())?.unwrap_or_else(|| begun.model.clone());
        let material = cli.flags.material.clone().unwrap_or_else(|| begun.material.clone());
        let left = time_cells(&EvidenceConfig { model, material, out: config.out, ..begun }, until, timed)?;
        say!(
            "left      {left} finalists; {}",
            if left > 0 { "the same command goes on" } else { "--report writes the results" }
        );
        return Ok(ExitCode::SUCCESS);
    }
    config.check()?;
    config.model = model_flags::found(Some(&config.model))?.unwrap_or(config.model);
    let cells = named(config.cells(), &cli.cells.cell, Cell::id)?;
    if cli.cells.dry_run {
        return dry_run(&config, &cells);
    }
    EvidenceStore::new(&config.out).begin(&config)?;
    let checkpoints = Checkpoints { dir: config.out.clone(), every: SAVE_EVERY, keep: 1, interrupt: interrupt() };
    let left = run_cells(&config, &cells, until, &checkpoints, told)?;
    if left > 0 {
        say!("left      {left} cells; the same command goes on");
    }
    if left > 0 || cli.cells.no_report || !cli.cells.cell.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    report(&config)
}

fn told(found: &Found) {
    let of = |what: &str, kinds: &[KindLosses]| {
        if kinds.is_empty() { String::new() } else { format!(", {what} {:.4}", KindLosses::mean_of(kinds)) }
    };
    match found {
        Found::Record(record) => say!(
            "cell      {}: {:.1} % of the operations, nats a token{}{}{} in {:.0} s",
            record.cell.id(),
            100.0 * record.operations,
            of("validation", &record.validation).trim_start_matches(','),
            of("test", &record.test),
            of("never calibrated on", &record.unseen),
            record.seconds.values().sum::<f64>()
        ),
        Found::Answers(own) => {
            let right: Vec<String> = own
                .tasks
                .iter()
                .map(|task| {
                    format!("{} {:.3} of {}", task.figures.task, task.figures.accuracy.mean, task.figures.items)
                })
                .collect();
            let seconds = own.seconds.values().sum::<f64>();
            say!("answers   {}: {} in {seconds:.0} s", own.cell.id(), right.join(", "));
        }
    }
}

fn timed(speed: &Speed) {
    say!(
        "timed     {}: {:.1} tokens/s read (dense {:.1}), {:.1} written (dense {:.1}); MLPs' time for a token {:.2} of dense, at {:.1} % of the operations",
        speed.cell.id(),
        speed.prefill.own,
        speed.prefill.dense,
        speed.decode.own,
        speed.decode.dense,
        speed.mlp.mean,
        100.0 * speed.operations
    );
}

fn dry_run(config: &EvidenceConfig, cells: &[Cell]) -> Result<ExitCode> {
    let parameters = read_arch(&config.model)?.parameters();
    let (mut seconds, mut tokens) = (0.0, 0.0);
    for planned in config.plan(cells, parameters)? {
        let what = match planned.lacking {
            Lacking { record: false, answers: false, .. } => "done".into(),
            lacking => format!(
                "{}{:.1e} tokens, {:.1e} multiply-adds, {:.1} min",
                if lacking.record { "" } else { "answers alone, " },
                planned.tokens,
                planned.multiply_adds,
                planned.seconds / 60.0
            ),
        };
        say!("cell      {}: {what}", planned.lacking.cell.id());
        (seconds, tokens) = (seconds + planned.seconds, tokens + planned.tokens);
    }
    say!("all       {} cells; left: {tokens:.1e} tokens, {:.2} hours of one H200", cells.len(), seconds / 3600.0);
    say!("nothing was done (--dry-run)");
    Ok(ExitCode::SUCCESS)
}

/// The results.
#[cfg(feature = "pictures")]
fn report(config: &EvidenceConfig) -> Result<ExitCode> {
    use experiments::evidence::{EvidenceOutcome, write_results};

    let outcome = EvidenceOutcome::read(config)?;
    let left = outcome.left();
    if let Some(first) = left.first() {
        say!("missing   {} cells, `{first}` first", left.len());
    }
    let provenance = provenance(outcome.sources(), &format!("{}, {}", config.device, config.dtype), git_commit());
    let said = write_results(&outcome, config, &provenance)?;
    said.iter().for_each(|line| say!("{line}"));
    say!("results   {}", config.results_file().display());
    Ok(ExitCode::SUCCESS)
}

/// A build without pictures leaves them to one with them.
#[cfg(not(feature = "pictures"))]
fn report(config: &EvidenceConfig) -> Result<ExitCode> {
    let out = config.out.display();
    say!(
        "results   none: this build writes no tables; `exp_evidence --report --out {out}` of one that does writes them"
    );
    Ok(ExitCode::SUCCESS)
}
