//! The variants that are linked in.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use experiments::model_flags::found;
use experiments::{arguments, main_with, say};
use serde_json::{Value, json};
use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder, VariantParameters, is_tinyonn, variant_parameters};
use tinyonn::decoder::Arch;
use tinyonn::decoder::attention::check_attention;
use tinyonn::moe::expert::check_width;
use tinyonn::moe::{MoeSpec, Neurons, Pfag, Variant, variants};
use tinyonn::{Result, moe};

/// List the variants that --variant knows, and what each would be on a model.
///
/// A variant is a hierarchy of experts with its routers, declared with #[moe(..)]. PDD is the number of decisions between the root
/// and an expert. `active` is how many experts a decision takes at most, of all.
#[derive(Parser)]
#[command(
    name = env!("CARGO_BIN_NAME"),
    version,
    after_help = "Examples:
  exp_variants                           what there is
  exp_variants --model Qwen3-1.7B        what each costs there, and which do not fit
  exp_variants --json                    one JSON list, with the whole declarations

Groups of a hierarchy in `a × b` are equal; in `[a, b, c]` too, at more levels; named ones are listed with their experts.
Routers are given by level where levels differ (`;`), and by group where groups do (`,`).
Then comes what shares a decision, how the chosen are combined, and the weight of each; what is not declared is not listed.
Variants of your own: declare them with #[moe(..)] in a crate and link it into this program (`use my_variants as _;`)."
)]
struct Cli {
    /// Count parameters on this model: a folder with config.json and safetensors, dense or Tiny-ONN, a GGUF file, or a name on the hub
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print one JSON list
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    main_with(|| run(&arguments::parse()?))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let path = found(cli.model.as_deref())?;
    let model = path.as_ref().map(ModelFolder::open).transpose()?;
    let cfg = model.as_ref().map(ModelFolder::arch).transpose()?;
    let own = match (&path, &model) {
        // Opened as what it is, so that one of a changed declaration is refused here as everywhere.
        (Some(dir), Some(folder)) if is_tinyonn(folder.config()) => Some(TinyOnnFolder::open(dir)?.variant()),
        _ => None,
    };
    let rows: Vec<Row> = variants().into_iter().map(|variant| Row::new(variant, cfg.as_ref())).collect();
    if cli.json {
        say!("{:#}", Value::Array(rows.iter().map(Row::json).collect()));
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines: Vec<Vec<String>> = vec![head(cfg.is_some())];
    lines.extend(rows.iter().map(Row::cells));
    say!("{}", aligned(&lines).join("\n"));
    if let (Some(dir), Some(own)) = (&path, own) {
        say!("\n{} is a {}.", dir.display(), own.spec.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// One variant, and what it is on the model, if one was given: its parameters, or why it does not fit.
struct Row {
    variant: &'static Variant,
    cfg: Option<Arch>,
    fit: Option<std::result::Result<(VariantParameters, usize), String>>,
}

fn head(model: bool) -> Vec<String> {
    let always = ["variant", "hierarchy", "PDD", "routers", "decides, combines, weighs", "active"];
    let of_model = ["in routers", "parameters", "active share of the MLPs", "attention"];
    always.into_iter().chain(of_model.into_iter().filter(|_| model)).map(str::to_owned).collect()
}

/// What is said before a number that tokens take at most: of adaptive forms, and where only some neurons take part.
fn at_most(spec: &MoeSpec) -> &'static str {
    if spec.pfag == Pfag::Off && spec.neurons == Neurons::All { "" } else { "≤ " }
}

impl Row {
    fn new(variant: &'static Variant, cfg: Option<&Arch>) -> Self {
        let count = |cfg: &Arch| -> Result<(VariantParameters, usize)> {
            // Of two of one name neither can be asked for.
            moe::variant(&variant.spec.name)?;
            check_width(&variant.spec, cfg.intermediate_size, 0)?;
            check_attention(&variant.spec.attention, cfg)?;
            Ok((variant_parameters(cfg, variant)?, cfg.parameters()))
        };
        Self { variant, cfg: cfg.cloned(), fit: cfg.map(|cfg| count(cfg).map_err(|e| e.to_string())) }
    }

    fn active(&self) -> String {
        let spec = &self.variant.spec;
        format!("{}{} of {}", at_most(spec), spec.active_experts(), spec.experts())
    }

    /// What attention costs of a text as long as the model reads, and what the last position reads of its cache.
    fn attention(&self) -> String {
        let (Some(pairs), Some(cfg)) = (self.variant.spec.attention.pairs(), &self.cfg) else {
            return "all".to_owned();
        };
        let (positions, percent) = (cfg.max_position_embeddings, |share: f64| format!("{:.1} %", 100.0 * share));
        let [least, most] = pairs.bytes(cfg.head_dim, cfg.kv_groups(), positions);
        let read = if least < most { format!("{} to {}", percent(least), percent(most)) } else { percent(least) };
        let operations = percent(pairs.operations(cfg.head_dim, positions));
        format!("{operations} of its products, {read} of a cache's bytes read at {positions} positions")
    }

    fn cells(&self) -> Vec<String> {
        let spec = &self.variant.spec;
        let mut cells = vec![
            spec.name.to_string(),
            spec.hierarchy(),
            spec.levels.len().to_string(),
            spec.router_words(),
            spec.behaviour_words(),
            self.active(),
        ];
        match &self.fit {
            None => {}
            Some(Ok((counted, dense))) => {
                let most = at_most(spec);
                let percent = 100.0 * counted.routers as f64 / *dense as f64;
                cells.push(format!("{} ({percent:.2} %)", counted.routers));
                cells.push(counted.total.to_string());
                cells.push(format!("{most}{:.1} %", 100.0 * spec.active_share()));
                cells.push(self.attention());
            }
            Some(Err(why)) => cells.push(why.clone()),
        }
        cells
    }

    fn json(&self) -> Value {
        let spec = &self.variant.spec;
        let mut row = json!({
            "name": spec.name,
            "module": self.variant.module_path,
            "hierarchy": spec.hierarchy(),
            "pdd": spec.levels.len(),
            "experts": spec.experts(),
            "active_experts": spec.active_experts(),
            "active_share": spec.active_share(),
            "spec": spec,
        });
        match &self.fit {
            None => {}
            Some(Ok((counted, dense))) => {
                if let (Some(pairs), Some(cfg)) = (spec.attention.pairs(), &self.cfg) {
                    let positions = cfg.max_position_embeddings;
                    row["attention"] = json!({
                        "positions": positions,
                        "operations": pairs.operations(cfg.head_dim, positions),
                        "bytes": pairs.bytes(cfg.head_dim, cfg.kv_groups(), positions),
                    });
                }
                row["parameters"] = json!({ "dense": dense, "routers": counted.routers, "total": counted.total });
            }
            Some(Err(why)) => row["does_not_fit"] = json!(why),
        }
        row
    }
}

/// Cells in columns as wide as their widest; what is last in its line takes no part, however long.
fn aligned(lines: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = lines.iter().filter(|line| column + 1 < line.len()).map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
    let line = |line: &Vec<String>| {
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()))));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}
