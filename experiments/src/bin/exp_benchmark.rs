//! A model on multiple choice and LAMBADA: its answers, and what they are worth.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::DType;
use clap::Parser;
use experiments::model_flags::{Active, Dtype, found};
use experiments::settings::{over_file, required};
use experiments::{OutFlags, RunFlags, RunFolder, arguments, main_with, overwrite, run_folder, say};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tinyonn::benchmark::{BenchmarkTask, TASKS, TaskFigures, answers, write_answers};
use tinyonn::checkpoint::{LoadedModel, ModelFolder, load_model};
use tinyonn::data::TextTokenizer;
use tinyonn::model::ActiveMode;
use tinyonn::phases::text;
use tinyonn::{Error, Result, files};

/// Answer benchmarks with a checkpoint (dense or Tiny-ONN) by likelihood.
///
/// Writes summary.json (by task: items, accuracy with its interval, its floor, bits a byte, seconds) and answers/TASK.jsonl (by item: the log-likelihoods of its
/// choices, their lengths, the answer). An accuracy whose interval does not lie above its floor, the greater of chance and the best constant answer, is not printed:
/// it says nothing of the model. Choose nothing by these items.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  bash scripts/fetch_material.sh material
  exp_benchmark SmolLM2.gguf --material material
  exp_benchmark SmolLM2-TinyOnn --material material --active routed --tasks arc_easy,piqa,sciq
  exp_benchmark Qwen3-1.7B --material material --limit 1000 --device cuda --dtype bf16"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Clone, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The checkpoint: a folder with config.json and safetensors, a GGUF file, or a name on the hub (OWNER/NAME)
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// What scripts/fetch_material.sh has written
    #[arg(long, value_name = "DIR")]
    material: Option<PathBuf>,
    /// Some tasks in place of all: arc_easy, arc_challenge, hellaswag, piqa, winogrande, boolq, openbookqa, sciq, lambada
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    tasks: Option<Vec<String>>,
    /// The first N items of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The experts that run [default: as the checkpoint says]
    #[arg(long, value_enum)]
    active: Option<Active>,
    /// What it computes in [default: as it is stored]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
    #[command(flatten)]
    #[serde(flatten)]
    output: OutFlags,
}

/// A task's part of the summary.
#[derive(Serialize)]
struct Answered {
    #[serde(flatten)]
    figures: TaskFigures,
    seconds: f64,
}

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        let Settings { run: RunFlags { config, .. }, output: OutFlags { overwrite, .. }, .. } = &cli.settings;
        run(&over_file(&cli.settings, config.as_deref())?, config.as_deref(), *overwrite)
    })
}

fn run(settings: &Settings, file: Option<&Path>, overwrite: bool) -> Result<ExitCode> {
    let path = found(settings.model.as_deref())?.ok_or_else(|| {
        Error::setting("MODEL", "no checkpoint was named", "name a folder, a GGUF file or OWNER/NAME; see --help")
    })?;
    let material = required(settings.material.clone(), "material")?;
    let tasks = tasks(settings, &material)?;
    let (seed, name) = (settings.run.seed.unwrap_or(0), settings.run.device.unwrap_or_default());
    let out = settings.output.out.clone().map_or_else(|| run_folder::first_free("runs/benchmark".as_ref()), Ok)?;
    let read: Vec<&Path> = [path.as_path(), material.as_path()].into_iter().chain(file).collect();
    let replace = overwrite::replaces(&out, overwrite, &read)?;

    let opened = ModelFolder::open(&path)?;
    opened.refuse_not_finite("train or download it again: answers of such weights say nothing")?;
    let tokenizer = text::tokenizer(&opened)?;
    let model = load_model(&path, &name.open()?, settings.dtype.map(DType::from))?;
    let active = settings.active.map_or(model.active(), ActiveMode::from);
    if model.needs_tasks(active) {
        let problem = format!("{} is routed by the task of each sequence, which no item names", path.display());
        return Err(Error::setting("--active", problem, "answer with --active all"));
    }
    let folder = RunFolder::create(&out, settings, seed, name, replace)?;
    let written = folder.dir().join("answers");
    std::fs::create_dir_all(&written).map_err(|e| Error::io(&written, e))?;
    let mut answered = Vec::with_capacity(tasks.len());
    for task in &tasks {
        answered.push(answer(task, (&model, active), &tokenizer, &written, seed)?);
    }
    let summary = json!({ "model": path, "variant": model.variant(), "active": active, "tasks": answered });
    files::write(folder.dir().join("summary.json"), format!("{summary:#}\n"))?;
    answered.iter().for_each(print);
    say!("written   {}", folder.finish()?.display());
    Ok(ExitCode::SUCCESS)
}

/// What is asked for, read before the model is.
fn tasks(settings: &Settings, material: &Path) -> Result<Vec<BenchmarkTask>> {
    let names = settings.tasks.clone().unwrap_or_else(|| TASKS.iter().map(|(name, _)| (*name).to_owned()).collect());
    if settings.limit == Some(0) || names.is_empty() {
        return Err(Error::setting(
            "--tasks",
            "leaves nothing to answer",
            "name one task or more, and --limit of 1 or more",
        ));
    }
    let read = |(at, name): (usize, &String)| {
        let Some((_, folder)) = TASKS.iter().find(|(known, _)| known == name) else {
            let known = TASKS.map(|(known, _)| known).join(", ");
            return Err(Error::setting("--tasks", format!("`{name}` is not known"), format!("choose from {known}")));
        };
        if names[..at].contains(name) {
            return Err(Error::setting("--tasks", format!("`{name}` is named twice"), "name each task once"));
        }
        let mut task = BenchmarkTask::read(material.join("benchmarks").join(folder))?;
        task.items.truncate(settings.limit.unwrap_or(usize::MAX));
        Ok(task)
    };
    names.iter().enumerate().map(read).collect()
}

fn answer(
    task: &BenchmarkTask,
    (model, active): (&LoadedModel, ActiveMode),
    tokenizer: &TextTokenizer,
    written: &Path,
    seed: u64,
) -> Result<Answered> {
    let (started, pass) = (Instant::now(), active.pass());
    let most = model.config().max_position_embeddings;
    let found = answers(task, tokenizer, most, 1, |asked, greedy| model.likelihoods(asked, &pass, greedy))?;
    let seconds = started.elapsed().as_secs_f64();
    write_answers(written.join(format!("{}.jsonl", task.name)), &found)?;
    Ok(Answered { figures: TaskFigures::new(task, &found, seed)?, seconds })
}

fn print(Answered { figures, seconds }: &Answered) {
    let TaskFigures { task, items, accuracy, floor, bits_per_byte, cut, .. } = figures;
    let accuracy = if figures.signal {
        format!("{:.3} [{:.3}, {:.3}] right, floor {floor:.3}", accuracy.mean, accuracy.low, accuracy.high)
    } else {
        format!("no signal above its floor {floor:.3}")
    };
    let cut = if *cut > 0 { format!(", {cut} items without the beginning of their context") } else { String::new() };
    say!("{task:<14} {items:>6} items  {accuracy:<42} {:.3} bits a byte  {seconds:.1} s{cut}", bits_per_byte.mean);
}
