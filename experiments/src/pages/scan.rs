//! The page of a scan.

use tinyonn::Result;
use tinyonn::imaging::Norm;
use tinyonn::ops::GradSite;

use super::run;
use crate::report::{Page, Section};
use crate::shown::ScanShown;

/// The page.
pub(super) fn page(shown: &ScanShown) -> Result<Page> {
    let spec = &shown.spec;
    Ok(Page {
        title: shown.title.clone(),
        lead: vec![format!(
            "{} tokens of {} tasks through {} layers of {} experts, all active. {:.2} % of all (layer, token, neuron) surprises are above zero.",
            shown.tokens,
            shown.tasks.len(),
            shown.experts.first().map_or(0, Vec::len),
            spec.experts(),
            100.0 * shown.gradient_nonzero_share,
        )],
        facts: facts(shown),
        sections: vec![Section { prose: vec![prose(shown)], ..run::brain(spec, &shown.tasks, &shown.experts)? }],
    })
}

fn facts(shown: &ScanShown) -> Vec<(String, String)> {
    let mut facts = vec![
        ("corpus SHA-256".into(), shown.corpora.join(", ")),
        ("model SHA-256".into(), shown.model.clone()),
        ("shards read".into(), shown.shards.join(", ")),
        ("variant".into(), shown.spec.name.to_string()),
        ("partition".into(), shown.partition.clone()),
        ("nats a token".into(), format!("{:.4}", shown.loss)),
    ];
    if !shown.missing.is_empty() {
        facts.push(("shards missing".into(), shown.missing.join(", ")));
    }
    facts
}

fn prose(shown: &ScanShown) -> String {
    let units = shown.units();
    let over = match shown.form.norm {
        Norm::Layer => format!("over a layer's tokens and {units}"),
        Norm::Global => format!("over all layers' tokens and {units}"),
        Norm::Log1p => {
            format!("as the logarithm of one plus its share of a scale, over a layer's tokens and {units}")
        }
    };
    let surprise = match shown.grad_site {
        GradSite::Weight => "the token's gradient of the weights",
        GradSite::Input => "its part of the gradient of the input",
        GradSite::Output => "the gradient of the output, the same for all (the degenerate control)",
    };
    format!(
        "∫SPS is activation minus surprise, each standardised {over}, summed over the task's text and divided by its tokens: above \
         zero, an expert is more active than it is surprised. Surprise is the norm of {surprise}."
    )
}
