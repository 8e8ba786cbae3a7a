//! A checkpoint in, one of more experts out that computes the same.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::{DType, Device};
use clap::Parser;
use experiments::model_flags::found;
use experiments::settings::{over_file, required};
use experiments::{OutFlags, RunFlags, arguments, main_with, overwrite, say};
use serde::{Deserialize, Serialize};
use tinyonn::checkpoint::{
    Comparison, Expansion, TinyOnnFolder, compare, expand_folder, load_model, takes_shares, tokens,
};
use tinyonn::data::TokenSet;
use tinyonn::decoder::Pass;
use tinyonn::files::StagedFolder;
use tinyonn::model::ActiveMode;
use tinyonn::moe::{ExpertsAre, LoadFigures};
use tinyonn::phases::text;
use tinyonn::train::evaluate::{EvaluateOptions, evaluate_load};
use tinyonn::{Error, Result, moe};

/// Grow a Tiny-ONN checkpoint (slices or replicas) into a variant of the same hierarchy with more experts, computing what it computed.
///
/// The two variants may differ in the choices and top_k of the last level. Every expert becomes a family of children behind the router that it stood
/// behind: slices share its neurons, so that no weight changes, or bring new ones (--new-neurons) whose W_d is zero; replicas share its delta. A child's router is its
/// parent's, until the next fit. What was written is read back and compared with the input, all active and routed, before the folder gets its name.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_expand --model runs/phase2/tiny-onn --variant TinyOnnDoubled --out grown
  exp_expand --model runs/phase2/tiny-onn --variant TinyOnnDoubled --new-neurons 4 --out wider
  exp_phase1 --model grown --variant TinyOnnDoubled --out runs/grown     fits the routers anew; then exp_phase2 --from runs/grown

Variants of your own: declare them with #[moe(..)] in a crate and link it into this program (`use my_variants as _;`)."
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The Tiny-ONN checkpoint to grow
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The declared variant to grow into, by the name of its type
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Neurons that each new expert of slices brings; 0: the children of an expert share its own [default: 0]
    #[arg(long, value_name = "N")]
    new_neurons: Option<usize>,
    /// Text to measure the load of the experts on (repeatable): where not all have as many children, the busiest have more [default: all are as busy]
    #[arg(long, value_name = "NAME=PATH")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<String>,
    /// Tokens of each text that are read for it, at most [default: 16384]
    #[arg(long, value_name = "N")]
    load_tokens: Option<usize>,
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
    let from = required(found(settings.model.as_deref())?, "model")?;
    let out = required(settings.output.out, "out")?;
    let to = moe::variant(&required(settings.variant, "variant")?)?;
    let seed = settings.run.seed.unwrap_or(0);
    let device = settings.run.device.unwrap_or_default().open()?;
    let folder = TinyOnnFolder::open(&from)?;
    let (cfg, variant) = (folder.arch(), folder.variant());
    let new_neurons = settings.new_neurons.unwrap_or(0);
    let grow = |load: Option<&[Vec<f64>]>| Expansion::new(cfg, [variant, to], load, new_neurons, seed);
    // What cannot grow is said before text is read.
    grow(None)?;
    let read: Vec<&Path> = [from.as_path()].into_iter().chain(file).collect();
    let replace = overwrite::replaces(&out, overwrite, &read)?;
    let staged = if replace { StagedFolder::replacing(&out)? } else { StagedFolder::new(&out)? };
    let load = match settings.data.as_slice() {
        [] => None,
        data => Some(load(&folder, (data, seed), settings.load_tokens.unwrap_or(LOAD_TOKENS), &device)?),
    };
    let expansion = grow(load.as_deref())?;
    expand_folder(&folder, &expansion, &staged)?;
    let (young, grown) = (variant.spec.experts(), to.spec.experts());
    let wide = expansion.arch().intermediate_size;
    say!("{} → {} ({} → {})", from.display(), out.display(), variant.spec.name, to.spec.name);
    say!("experts     {young} → {grown} a layer: {}", what(variant.spec.experts_are, new_neurons));
    say!("neurons     {} → {wide} a layer", cfg.intermediate_size);
    if let Some(load) = &load {
        say!(
            "load        the busiest expert had {:.1} × the mean",
            LoadFigures::new(&variant.spec, load).max_over_mean()
        );
    }
    let (all, routed) = checked(&from, staged.path(), &expansion, seed, &device)?;
    say!("all active  {}", said(&all));
    match routed {
        Some(routed) if expansion.keeps_routing() => say!("routed      {}", said(&routed)),
        Some(routed) => say!("routed      other experts are taken until routers are fitted: {}", said(&routed)),
        None => say!("routed      by the task, along the children of each path"),
    }
    staged.publish()?;
    Ok(ExitCode::SUCCESS)
}

/// What each new expert has.
fn what(experts_are: ExpertsAre, new_neurons: usize) -> String {
    match (experts_are, new_neurons) {
        (ExpertsAre::Replicate, _) => "children share the delta of their parent".to_owned(),
        (ExpertsAre::Slice, 0) => "children share the neurons of their parent".to_owned(),
        (ExpertsAre::Slice, new) => format!("each new one brings {new} neurons"),
    }
}

/// Tokens of each text that loads are measured on.
const LOAD_TOKENS: usize = 16_384;
/// Tokens of a sequence, and sequences of a batch, at most.
const BATCH: (usize, usize) = (256, 8);

/// The tokens that each expert of each layer takes of some text, routed.
fn load(folder: &TinyOnnFolder, (data, seed): (&[String], u64), most: usize, device: &Device) -> Result<Vec<Vec<f64>>> {
    let spec = &folder.variant().spec;
    if !takes_shares(spec) {
        let problem =
            format!("`{}` has no routers that choose by what they read, and so no load to measure", spec.name);
        return Err(Error::setting("--data", problem, "leave it out"));
    }
    let mut set = TokenSet::encode(&text::corpus(data, seed)?, &text::tokenizer(folder.folder())?)?;
    set.beginnings(most);
    let model = folder.model(&folder.load(device, Some(DType::F32))?, DType::F32)?;
    let length = BATCH.0.min(folder.arch().max_position_embeddings);
    let options = EvaluateOptions { length, batch: BATCH.1, skip: spec.open_positions() };
    Ok(evaluate_load(model.lm(), &set, options, &Pass::routed(), device, spec.experts())?.1.taken())
}

/// Sequences that are compared, and tokens of each beyond those that a decision reads first, at most.
const COMPARED: (usize, usize) = (2, 32);
/// The largest difference of two logits in f32 that is roundings: sums of another order, of numbers of order ten.
const ROUNDINGS: f64 = 1e-3;

/// Reads both folders again and compares their logits in f32: all active and, where routers choose by what they read, routed.
fn checked(
    from: &Path,
    written: &Path,
    expansion: &Expansion<'_>,
    seed: u64,
    device: &Device,
) -> Result<(Comparison, Option<Comparison>)> {
    let [a, b] = [load_model(from, device, Some(DType::F32))?, load_model(written, device, Some(DType::F32))?];
    let [spec, _] = expansion.variants().map(|variant| &variant.spec);
    let length = (spec.open_positions() + COMPARED.1).min(a.config().max_position_embeddings);
    let ids = tokens::random_tokens(a.config().vocab_size, (COMPARED.0, length), seed, device)?;
    let compared = |mode| compare(&a, &b, &ids, Some(mode), 1);
    let all = compared(ActiveMode::All)?;
    let routed = takes_shares(spec).then(|| compared(ActiveMode::Routed)).transpose()?;
    let kept = routed.iter().filter(|_| expansion.keeps_routing());
    let shares = spec.experts_are == ExpertsAre::Slice && expansion.arch() == *expansion.arch_before();
    let off = |found: &Comparison| found.max_abs_difference.is_nan() || found.max_abs_difference > ROUNDINGS;
    if [&all].into_iter().chain(kept).any(off) || (shares && !all.bit_equal) {
        let problem = format!("logits of what was written differ: {}", said(&all));
        return Err(Error::file(from, problem, "nothing was kept: report this as a defect"));
    }
    Ok((all, routed))
}

fn said(found: &Comparison) -> String {
    if found.bit_equal {
        return format!("{} tokens' logits bit-equal", found.tokens);
    }
    format!("{} tokens' logits differ by at most {:.1e}", found.tokens, found.max_abs_difference)
}
