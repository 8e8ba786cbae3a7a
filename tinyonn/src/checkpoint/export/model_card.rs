//! The page that goes with an export: `README.md`, with the metadata that the hub reads at its head.

use std::fmt::Write as _;

use serde_json::Value;

use super::{ExportFormat, ExportLoss, Exported};
use crate::checkpoint::tinyonn_folder::TinyOnnFolder;
use crate::model::ActiveMode;

/// The text of a `README.md` for what was `exported` of `source`; `loss` was measured on `text`, in words.
#[must_use]
pub fn model_card(source: &TinyOnnFolder, exported: &Exported, loss: Option<(&ExportLoss, &str)>) -> String {
    let (spec, arch, config) = (&source.variant().spec, source.arch(), source.config());
    let mut card = String::from("---\nlibrary_name: transformers\npipeline_tag: text-generation\n");
    let base = source.folder().config().get("_name_or_path").and_then(Value::as_str);
    if let Some(base) = base.filter(|name| is_hub_id(name)) {
        let _ = writeln!(card, "base_model: {base}");
    }
    card.push_str("tags:\n- tinyonn\n");
    if exported.format != ExportFormat::Dense {
        card.push_str("- mixture-of-experts\n");
    }
    let mode = match exported.active {
        ActiveMode::All => "all experts active",
        ActiveMode::Routed => "routed",
    };
    let _ = write!(
        card,
        "---\n\n# {} of a {} model\n\nA Tiny-ONN checkpoint ({mode}), exported as `{}`.\n\n| | |\n|---|---|\n",
        spec.name,
        arch.family.model_type(),
        exported.format.word()
    );
    let mut row = |name: &str, value: String| {
        let _ = writeln!(card, "| {name} | {value} |");
    };
    row(
        "layers, width, neurons of an MLP",
        format!("{}, {}, {}", arch.num_hidden_layers, arch.hidden_size, arch.intermediate_size),
    );
    row("hierarchy", spec.hierarchy());
    if !spec.levels.is_empty() {
        row("routers", spec.router_words());
        row("experts taken", format!("{} of {}", spec.active_experts(), spec.experts()));
    }
    row("declared", spec.behaviour_words());
    if source.attention() != spec.attention {
        row("attention in place of it", source.attention().to_string());
    }
    row("neurons", spec.neurons.word().to_owned());
    if let Some(partition) = &config.partition {
        row("partition", format!("{}, seed {}", partition.strategy, partition.seed));
    }
    for line in &exported.left_out {
        row("left out", line.clone());
    }
    match loss {
        Some((loss, text)) => {
            let tokens = format!("{} tokens of {text}", loss.tokens);
            row("KL from the checkpoint", format!("{:.3e} nats a token, on {tokens}", loss.kl_divergence));
            row("same most probable token", format!("{:.2} %", 100.0 * loss.top1_agreement));
            row("largest difference of a logit", format!("{:.3e}", loss.max_abs_difference));
            if let Some(agreement) = loss.routing_agreement {
                row("same experts", format!("{:.2} %", 100.0 * agreement));
            }
        }
        None => row("loss against the checkpoint", "not measured".to_owned()),
    }
    card.push_str(match exported.format {
        ExportFormat::TinyOnn => {
            "\n```python\nfrom transformers import AutoModelForCausalLM\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"FOLDER\", trust_remote_code=True)\n\
             model.force_all_active(True)  # the dense model; False: what each token takes\n```\n"
        }
        ExportFormat::Dense | ExportFormat::Qwen3Moe | ExportFormat::Mixtral => {
            "\n```python\nfrom transformers import AutoModelForCausalLM\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"FOLDER\")\n```\n"
        }
    });
    card
}

/// `OWNER/NAME`, and no path.
fn is_hub_id(name: &str) -> bool {
    let fit = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(owner, name)| fit(owner) && fit(name))
}
