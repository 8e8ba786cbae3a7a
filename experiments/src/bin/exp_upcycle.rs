//! A dense checkpoint in, a Tiny-ONN checkpoint out, and the proof that nothing was lost.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::Device;
use clap::Parser;
use experiments::model_flags::found;
use experiments::settings::{over_file, required};
use experiments::{OutFlags, RunFlags, arguments, main_with, overwrite, say};
use serde::{Deserialize, Serialize};
use tinyonn::checkpoint::{
    ModelFolder, NotFinite, Upcycled, compare, expected_tensors, load_model, refuse_not_finite, refuse_tinyonn, tokens,
    upcycle_folder,
};
use tinyonn::files::StagedFolder;
use tinyonn::imaging::partition::{self, stored_gate_rows};
use tinyonn::imaging::{Partition, PartitionSources};
use tinyonn::metrics::peak_bytes;
use tinyonn::model::ActiveMode;
use tinyonn::moe::ExpertsAre;
use tinyonn::{Error, Result, moe};

/// Turn a dense decoder (Qwen3, Qwen2, Llama, Mistral, SmolLM3) into a mixture of experts without losing a bit.
///
/// Every neuron of every MLP is given to one expert; routers are added, initialised at random. The weights stay as they are.
/// Weights go from file to file, tensor by tensor. What was written is read back and compared with the input before the folder gets
/// its name (which alone loads both models): all experts active, the logits must be equal bit for bit and the weights byte for byte.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_upcycle --model Qwen3-1.7B --variant TinyOnn --out Qwen3-1.7B-TinyOnn
  exp_upcycle --model Qwen3-1.7B --variant TinyOnn --partition random --seed 7 --out shuffled

The way back, and to other programs: exp_export.
Variants of your own: declare them with #[moe(..)] in a crate and link it into this program (`use my_variants as _;`).
Partitions that read text first (coactivation, coactivation_binary, rate, activation, sps, taylor) are made by exp_phase2."
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The checkpoint to read: a folder with config.json and safetensors, a GGUF file, or a name on the hub (OWNER/NAME)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The declared variant, by the name of its type, such as TinyOnn (10 groups of 10 experts)
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// How neurons are given to experts: contiguous, random or kmeans [default: as the variant declares, or else contiguous]
    #[arg(long, value_name = "STRATEGY")]
    partition: Option<Partition>,
    // What it did `exp_export` does; who gives it is told so.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    to_dense: Option<bool>,
    /// Take weights that are NaN or infinite as they are; without it they are refused by name
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    allow_not_finite: Option<bool>,
    /// Do not read back what was written: it is said to be not verified, and takes little memory whatever the model's size
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_verify: Option<bool>,
    #[command(flatten)]
    #[serde(flatten)]
    run: RunFlags,
    #[command(flatten)]
    #[serde(flatten)]
    output: OutFlags,
}

fn main() -> ExitCode {
    main_with(|| {
        let cli: Cli = arguments::parse()?;
        let Settings { run: RunFlags { config, .. }, output: OutFlags { overwrite, .. }, .. } = &cli.settings;
        run(over_file(&cli.settings, config.as_deref())?, config.as_deref(), *overwrite)
    })
}

fn run(settings: Settings, file: Option<&Path>, overwrite: bool) -> Result<ExitCode> {
    if settings.to_dense.is_some() {
        let remedy = "exp_export --format dense --model DIR --out DIR";
        return Err(Error::setting("--to-dense", "is no longer here", format!("another program does it: {remedy}")));
    }
    let from = required(found(settings.model.as_deref())?, "model")?;
    let out = required(settings.output.out, "out")?;
    let seed = settings.run.seed.unwrap_or(0);
    let device = settings.run.device.unwrap_or_default().open()?;
    let read: Vec<&Path> = [from.as_path()].into_iter().chain(file).collect();
    let replace = overwrite::replaces(&out, overwrite, &read)?;
    let staged = if replace { StagedFolder::replacing(&out)? } else { StagedFolder::new(&out)? };
    let started = Instant::now();
    let name = required(settings.variant, "variant")?;
    let (mut lines, not_finite) = write_upcycled((&from, &out), &staged, &name, settings.partition, seed)?;
    if !settings.allow_not_finite.unwrap_or(false) {
        let remedy = "train or download it again, or take it as it is with --allow-not-finite";
        refuse_not_finite(&from, &not_finite, remedy)?;
    }
    lines.push(format!("written     {}", taken(started)));
    lines.push(if settings.no_verify.unwrap_or(false) {
        "not verified: --no-verify was given; compare the two with exp_verify".to_owned()
    } else {
        let started = Instant::now();
        let verified = check_lossless(&from, staged.path(), seed, &device)?;
        format!("verified    {verified}; {}", taken(started))
    });
    staged.publish()?;
    say!("{}", lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// The time since `started`, and the most memory that this process has held.
fn taken(started: Instant) -> String {
    let peak = peak_bytes().map_or(String::new(), |bytes| format!(", at most {:.2} GB of memory", bytes as f64 / 1e9));
    format!("{:.1} s{peak}", started.elapsed().as_secs_f64())
}

fn write_upcycled(
    (from, out): (&Path, &Path),
    staged: &StagedFolder,
    name: &str,
    partition: Option<Partition>,
    seed: u64,
) -> Result<(Vec<String>, NotFinite)> {
    let variant = moe::variant(name)?;
    let partition = partition::choose(partition, &variant.spec, Partition::Contiguous)?;
    let folder = ModelFolder::open(from)?;
    let cfg = folder.arch()?;
    refuse_tinyonn(&folder)?;
    folder.check_names(&expected_tensors(&cfg))?;
    if partition::reads_text(partition, &variant.spec) {
        let by = variant.spec.always_by.map_or(String::new(), |by| format!(", under `always_by = {}`,", by.word()));
        let problem = format!("`{partition}`{by} is made from a pass over text, and upcycling reads none");
        let remedy = "use contiguous, random or kmeans, or give `partition` to exp_phase2";
        return Err(Error::setting("partition", problem, remedy));
    }
    let gate_rows = |layer| stored_gate_rows(&folder, layer);
    let sources = PartitionSources { gate_rows: Some(&gate_rows), ..PartitionSources::default() };
    let neuron_expert =
        partition::assign(partition, &variant.spec, (cfg.num_hidden_layers, cfg.intermediate_size), sources, seed)?;
    let Upcycled { dense, added, not_finite } =
        upcycle_folder(&folder, staged, variant, (partition, &neuron_expert), seed)?;

    let (width, experts) = (cfg.intermediate_size, variant.spec.experts());
    let (of, widths) = match (variant.spec.experts_are, width / experts, width % experts) {
        (ExpertsAre::Replicate, ..) => ("replicas".to_owned(), "the dense MLP each, until it learns".to_owned()),
        (ExpertsAre::Slice, each, 0) => (format!("{partition} partition"), format!("{each} neurons each")),
        (ExpertsAre::Slice, each, more) => {
            let wide = format!("{} of {each} neurons, {more} of {}", experts - more, each + 1);
            (format!("{partition} partition"), wide)
        }
    };
    let share = percent(added, dense);
    let lines = vec![
        format!("{} → {} ({name}, {of}, all experts active)", from.display(), out.display()),
        format!("experts     {experts} a layer: {widths}"),
        format!("parameters  {dense} dense + {added} in routers ({share:.2} %)"),
    ];
    Ok((lines, not_finite))
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole as f64
}

/// Sequences that the check compares, and tokens of each, at most.
const TOKENS: (usize, usize) = (2, 32);

/// Reads both folders again: equal bytes of every dense weight, equal bits of every logit.
fn check_lossless(from: &Path, written: &Path, seed: u64, device: &Device) -> Result<String> {
    let remedy = "nothing was kept: report this as a defect";
    let (a, b) = (ModelFolder::open(from)?, ModelFolder::open(written)?);
    let dense = expected_tensors(&a.arch()?);
    for name in dense.keys() {
        if !a.same_bytes(name, (&b, name))? {
            return Err(Error::tensor(name, format!("was not written as it is in {}", from.display()), remedy));
        }
    }
    let [a, b] = [load_model(from, device, None)?, load_model(written, device, None)?];
    let shape = (TOKENS.0, TOKENS.1.min(a.config().max_position_embeddings));
    let ids = tokens::random_tokens(a.config().vocab_size, shape, seed, device)?;
    let comparison = compare(&a, &b, &ids, Some(ActiveMode::All), 1)?;
    if !comparison.bit_equal {
        let problem = format!("logits of what was written differ by up to {:e}", comparison.max_abs_difference);
        return Err(Error::file(from, problem, remedy));
    }
    Ok(format!("{} weights byte-equal; {} tokens' logits bit-equal", dense.len(), comparison.tokens))
}
