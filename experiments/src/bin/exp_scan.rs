//! ∫SPS of a model's experts, and its pictures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use experiments::model_flags::found;
use experiments::rank_flags::given;
use experiments::runs::{image, merge_scans};
use experiments::settings::{over_file, required, word};
use experiments::{
    OutFlags, Rank, RankFlags, RunFlags, RunFolder, Started, arguments, main_with, overwrite, printed, run_folder, say,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tinyonn::imaging::{Form, Partition, Shard, StoredScan};
use tinyonn::phases::image::{TextConfig, dump_tokens};
use tinyonn::phases::{DeviceName, ImageConfig, Imaging, MergeConfig};
use tinyonn::train::Precision;
use tinyonn::{Error, Result, files};

/// Image a model: what each expert does, and how much it would learn, on each task.
///
/// One forward and one backward to activations over the text gives every neuron's activation and surprise; SPS is the one minus
/// the other, each standardised. The run's folder gets report.html (layers × experts, a picture a task), integral.safetensors and
/// scan.safetensors, the sums themselves. Text may be of any size: it is read a document at a time, and the tokens that are scanned wait
/// in the run's folder, 8 bytes each, until it is whole. With --scan-file a scan survives being killed: the same command goes on with it. With
/// --shard parts of it are read by several machines, and --merge makes one of them; with --gpus, or under torchrun, srun or mpirun, GPUs read a part each, and
/// the first of them goes on with the sum. With --tokens and --dump, every token's raw
/// values are written instead.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    mut_arg("out", |out| out.help("The run's folder; one that exists and is not empty is refused without --overwrite [default: the first free of runs/scan, runs/scan-2, …]")),
    after_help = "Examples:
  exp_scan --model Qwen3-0.6B --variant TinyOnn --data code=src --data prose=docs
  exp_scan --model runs/phase2/tiny-onn --data code=src --data prose=docs
  exp_scan --model Qwen3-0.6B --data code=src --shard 0/2 --scan-file half.safetensors --out runs/half
  exp_scan --merge half.safetensors --merge other-half.safetensors --norm global --expert norm
  exp_scan --model Qwen3-0.6B --data code=src --device cuda --gpus 2
  exp_scan --model Qwen3-0.6B --tokens ids.safetensors --dump image.safetensors

A dump holds, by layer i, layers.{i}.activation and layers.{i}.surprise, both [B·T, experts] F32, and loss_sum; the targets are
the next tokens, rows are row-major over (B, T), last positions included."
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    ranks: RankFlags,
}

/// One of several ranks, and how it meets the others.
type Among<'a> = (&'a RankFlags, &'a Rank);

#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// A dense decoder (a folder, a GGUF file or a name on the hub) or a Tiny-ONN checkpoint; the second brings its own variant and partition
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The declared variant whose experts a dense model is seen as [default: TinyOnn]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// How a dense model's neurons are given to experts: contiguous, random, kmeans, coactivation, coactivation_binary, rate, activation, sps, taylor [default: as the variant declares, or else contiguous]
    #[arg(long, value_name = "STRATEGY")]
    partition: Option<Partition>,
    /// A task: any folder or file of text, or JSONL with a `text` or `messages` field (repeatable) [default: the default text]
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
    /// What passes compute in: f32 or bf16; sums are f64 either way [default: f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Precision>,
    /// Keep the scan in this file as it goes, at least every minute, and continue it if it is there; of several ranks each has its own, FILE.rank-I
    #[arg(long, value_name = "FILE")]
    scan_file: Option<PathBuf>,
    /// Read only shard I of N of the batches, I from 0; --merge adds shards up [default: 0/1]
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    // Its earlier name; who gives it is told the other.
    #[arg(long, hide = true, value_name = "I/N")]
    share: Option<String>,
    /// Read stored scans instead of a model and text, and add them up (repeatable)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    merge: Option<Vec<PathBuf>>,
    /// Add up scans of several kinds of device, or computed in several types
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", requires = "merge")]
    mixed: Option<bool>,
    /// Over what activation and surprise are standardised: layer, global, log1p [default: layer]
    #[arg(long, value_name = "NORM")]
    norm: Option<String>,
    /// Which gradient's norm surprise is: weight, input, output (the degenerate control) [default: weight]
    #[arg(long, value_name = "SITE")]
    grad_site: Option<String>,
    /// What an expert's value is: mean over its neurons, norm of its own [default: mean]
    #[arg(long, value_name = "FORM")]
    expert: Option<String>,
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
        let rank = match cli.ranks.started()? {
            Started::Ended(code) => return Ok(code),
            Started::Alone => None,
            Started::Rank(rank) => Some(rank),
        };
        let Settings { run: RunFlags { config, .. }, output: OutFlags { overwrite, .. }, .. } = &cli.settings;
        let among = rank.as_ref().map(|rank| (&cli.ranks, rank));
        run(over_file(&cli.settings, config.as_deref())?, config.as_deref(), *overwrite, among)
    })
}

fn run(settings: Settings, file: Option<&Path>, overwrite: bool, among: Option<Among<'_>>) -> Result<ExitCode> {
    if let Some(share) = &settings.share {
        return Err(Error::setting("--share", "is no longer called so", format!("give --shard {share}")));
    }
    let form =
        Form { norm: word("norm", settings.norm.as_deref())?, expert: word("expert", settings.expert.as_deref())? };
    if let Some((_, rank)) = among {
        check_rank(&settings, rank)?;
    }
    if settings.merge.is_some() {
        return merge(settings, form, file, overwrite);
    }
    if settings.tokens.is_some() || settings.dump.is_some() {
        return dump(&settings, overwrite);
    }
    let mut config = image_config(&settings)?;
    let mut text = TextConfig {
        data: settings.data.unwrap_or_default(),
        length: positive(settings.length.unwrap_or(128), "length")?,
        batch: positive(settings.batch.unwrap_or(8), "batch")?,
        tokens: positive(settings.max_tokens.unwrap_or(65_536), "max-tokens")?,
        shard: settings.shard.as_deref().map_or(Ok(Shard::WHOLE), str::parse)?,
        grad_site: word("grad-site", settings.grad_site.as_deref())?,
        form,
        scan_file: settings.scan_file,
        out: PathBuf::new(),
    };
    if let Some((_, rank)) = among {
        config.device = rank.device(config.device)?;
        text.scan_file = text.scan_file.map(|file| rank.file(&file));
    }
    text.scan_file.iter().try_for_each(files::try_write)?;
    if let Some((_, rank)) = among
        && !rank.is_first()
    {
        let folder = rank.folder()?;
        text.out = folder.path().to_path_buf();
        return scan(&Imaging::begin(&config, &text)?, among).map(|_| ExitCode::SUCCESS);
    }
    text.out = out(settings.output.out)?;
    let data = text.data.iter().filter_map(|source| source.split_once('=')).map(|(_, path)| Path::new(path));
    let read = data.chain([config.model.as_path()]).chain(text.scan_file.as_deref()).chain(file);
    let replace = overwrite::replaces(&text.out, overwrite, &read.collect::<Vec<_>>())?;
    let folder = RunFolder::create(&text.out, &(&config, &text), config.seed, config.device, replace)?;
    let text = TextConfig { out: folder.dir().to_path_buf(), ..text };
    let imaging = Imaging::begin(&config, &text)?;
    if let Some(stored) = scan(&imaging, among)? {
        let stored = image(imaging, stored)?;
        print(&stored, &folder.finish()?);
    }
    Ok(ExitCode::SUCCESS)
}

/// What this process scans; of several ranks all of it, at the first.
fn scan(imaging: &Imaging<'_>, among: Option<Among<'_>>) -> Result<Option<StoredScan>> {
    let Some((flags, rank)) = among else { return imaging.scan(imaging.text.shard).map(Some) };
    // Which of its cards a rank takes, and where it keeps what, is its own.
    let image = ImageConfig { device: DeviceName::Cpu, ..imaging.config.clone() };
    let text = TextConfig { scan_file: None, out: PathBuf::new(), ..imaging.text.clone() };
    let given = given(&json!({ "image": image, "text": text }), imaging.alike()?)?;
    flags.share(rank, &given, imaging.device(), |ranks| {
        imaging.scan(Shard::of_rank(ranks))?.over_ranks(ranks, imaging.device())
    })
}

/// Refuses what several ranks do not share.
fn check_rank(settings: &Settings, rank: &Rank) -> Result<()> {
    rank.refuse_shard(settings.shard.is_some())?;
    let alone = [
        ("--merge", settings.merge.is_some(), "adds up what was scanned before"),
        ("--dump", settings.tokens.is_some() || settings.dump.is_some(), "writes the raw values of tokens"),
    ];
    match alone.into_iter().find(|(_, is_given, _)| *is_given) {
        None => Ok(()),
        Some((flag, _, does)) => {
            let problem = format!("{does}, which one process does, and {} ranks were started", rank.launched.ranks);
            Err(Error::setting(flag, problem, "start one process, without --gpus and without a launcher"))
        }
    }
}

fn image_config(settings: &Settings) -> Result<ImageConfig> {
    Ok(ImageConfig {
        model: required(found(settings.model.as_deref())?, "model")?,
        variant: settings.variant.clone().unwrap_or_else(|| "TinyOnn".into()),
        partition: settings.partition,
        seed: settings.run.seed.unwrap_or(0),
        device: settings.run.device.unwrap_or_default(),
        dtype: settings.dtype.unwrap_or_default(),
    })
}

/// The folder that was named, or the first that is free.
fn out(named: Option<PathBuf>) -> Result<PathBuf> {
    named.map_or_else(|| run_folder::first_free("runs/scan".as_ref()), Ok)
}

fn dump(settings: &Settings, overwrite: bool) -> Result<ExitCode> {
    settings.refuse_flags_beside("--dump", "writes the raw values of tokens, and", |flag| {
        !matches!(flag, "model" | "variant" | "partition" | "dtype" | "tokens" | "dump")
    })?;
    let (Some(tokens), Some(dump)) = (&settings.tokens, &settings.dump) else {
        return Err(Error::setting("--dump", "goes with --tokens", "give both or neither"));
    };
    overwrite::refuse_file(dump, overwrite)?;
    files::try_write(dump)?;
    dump_tokens(&image_config(settings)?, tokens, dump)?;
    say!("wrote     {}", dump.display());
    Ok(ExitCode::SUCCESS)
}

fn merge(settings: Settings, form: Form, file: Option<&Path>, overwrite: bool) -> Result<ExitCode> {
    settings.refuse_flags_beside("--merge", "reads stored scans, and", |flag| {
        !matches!(flag, "merge" | "mixed" | "variant" | "partition" | "norm" | "expert")
    })?;
    let config = MergeConfig {
        files: settings.merge.unwrap_or_default(),
        variant: settings.variant.unwrap_or_else(|| "TinyOnn".into()),
        partition: settings.partition,
        seed: settings.run.seed.unwrap_or(0),
        form,
        mixed: settings.mixed.unwrap_or(false),
        out: out(settings.output.out)?,
    };
    let read: Vec<&Path> = config.files.iter().map(PathBuf::as_path).chain(file).collect();
    let replace = overwrite::replaces(&config.out, overwrite, &read)?;
    let device = settings.run.device.unwrap_or_default();
    let folder = RunFolder::create(&config.out, &config, config.seed, device, replace)?;
    let stored = merge_scans(&MergeConfig { out: folder.dir().to_path_buf(), ..config })?;
    print(&stored, &folder.finish()?);
    Ok(ExitCode::SUCCESS)
}

impl Settings {
    /// Refuses the first flag that is given though it would be ignored; those of every program may be.
    fn refuse_flags_beside(&self, flag: &str, does: &str, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let given = [
            ("model", self.model.is_some()),
            ("variant", self.variant.is_some()),
            ("partition", self.partition.is_some()),
            ("data", self.data.is_some()),
            ("tokens", self.tokens.is_some()),
            ("dump", self.dump.is_some()),
            ("length", self.length.is_some()),
            ("batch", self.batch.is_some()),
            ("max-tokens", self.max_tokens.is_some()),
            ("dtype", self.dtype.is_some()),
            ("scan-file", self.scan_file.is_some()),
            ("shard", self.shard.is_some()),
            ("merge", self.merge.is_some()),
            ("mixed", self.mixed.is_some()),
            ("norm", self.norm.is_some()),
            ("grad-site", self.grad_site.is_some()),
            ("expert", self.expert.is_some()),
        ];
        match given.iter().find(|(name, given)| *given && ignored(name)) {
            None => Ok(()),
            Some((name, _)) => {
                Err(Error::setting(flag, format!("{does} --{name} does not go with it"), "leave one of them out"))
            }
        }
    }
}

fn print(stored: &StoredScan, out: &Path) {
    let scan = &stored.scan;
    for ((task, tokens), loss) in scan.tasks.iter().zip(&scan.tokens).zip(&scan.loss) {
        say!("{task:<16} {tokens:>9} tokens  {:.4} nats a token", loss / (*tokens).max(1) as f64);
    }
    say!("surprises above zero  {:.4}", scan.gradient_nonzero_share());
    let missing: Vec<String> = stored.missing().iter().map(Shard::to_string).collect();
    if !missing.is_empty() {
        say!("missing   shards {}: these are the sums of a part", missing.join(", "));
    }
    printed::page(out);
}

fn positive(value: usize, flag: &str) -> Result<usize> {
    if value == 0 {
        return Err(Error::setting(format!("--{flag}"), "is 0", "use 1 or more"));
    }
    Ok(value)
}
