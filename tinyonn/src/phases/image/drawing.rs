//! What a scan is turned into: the integral by expert, and its page.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::write_tensors;
use crate::Result;
use crate::imaging::{ExpertForm, Form, Integral, Norm, Score, Share, StoredScan};
use crate::moe::MoeSpec;
use crate::ops::GradSite;
use crate::phases::page;
use crate::report::{Page, Section};

/// How a scan is shown.
pub(super) struct Drawing<'a> {
    pub(super) title: String,
    pub(super) spec: &'a MoeSpec,
    /// How neurons were given to experts.
    pub(super) strategy: String,
    pub(super) form: Form,
    pub(super) out: &'a Path,
}

impl Drawing<'_> {
    /// Writes the integral and the page.
    pub(super) fn draw(&self, stored: &StoredScan, units: &[Vec<u32>]) -> Result<()> {
        let (scan, spec) = (&stored.scan, self.spec);
        let integral = Integral::of(scan, Score::Sps, self.form)?;
        let experts = integral.by_unit(units, spec.experts());
        write_integral(&experts, units, &self.out.join("integral.safetensors"))?;
        let tokens: u64 = scan.tokens.iter().sum();
        let page = Page {
            title: self.title.clone(),
            lead: vec![format!(
                "{} tokens of {} tasks through {} layers of {} experts, all active. {:.2} % of all (layer, token, neuron) surprises are above zero.",
                tokens,
                scan.tasks.len(),
                scan.sums.len(),
                spec.experts(),
                100.0 * scan.gradient_nonzero_share(),
            )],
            facts: self.facts(stored, tokens),
            sections: vec![Section {
                prose: vec![self.prose(scan.grad_site)],
                ..page::brain(spec, &scan.tasks, &experts)?
            }],
        };
        page.write(self.out)
    }

    fn facts(&self, stored: &StoredScan, tokens: u64) -> Vec<(String, String)> {
        let mut corpora: Vec<&str> = stored.parts.iter().map(|part| part.corpus.as_str()).collect();
        corpora.sort_unstable();
        corpora.dedup();
        let shares: Vec<String> = stored.parts.iter().map(|part| part.share.to_string()).collect();
        let mut facts = vec![
            ("corpus SHA-256".into(), corpora.join(", ")),
            ("model SHA-256".into(), stored.model.clone()),
            ("shares read".into(), shares.join(", ")),
            ("variant".into(), self.spec.name.to_string()),
            ("partition".into(), self.strategy.clone()),
            ("nats a token".into(), format!("{:.4}", stored.scan.loss.iter().sum::<f64>() / tokens.max(1) as f64)),
        ];
        let missing: Vec<String> = stored.missing().iter().map(Share::to_string).collect();
        if !missing.is_empty() {
            facts.push(("shares missing".into(), missing.join(", ")));
        }
        facts
    }

    fn prose(&self, site: GradSite) -> String {
        let units = match self.form.expert {
            ExpertForm::Mean => "neurons",
            ExpertForm::Norm => "experts",
        };
        let over = match self.form.norm {
            Norm::Layer => format!("over a layer's tokens and {units}"),
            Norm::Global => format!("over all layers' tokens and {units}"),
            Norm::Log1p => {
                format!("as the logarithm of one plus its share of a scale, over a layer's tokens and {units}")
            }
        };
        let surprise = match site {
            GradSite::Weight => "the token's gradient of the weights",
            GradSite::Input => "its part of the gradient of the input",
            GradSite::Output => "the gradient of the output, the same for all (the degenerate control)",
        };
        format!(
            "∫SPS is activation minus surprise, each standardised {over}, summed over the task's text and divided by its tokens: above \
             zero, an expert is more active than it is surprised. Surprise is the norm of {surprise}."
        )
    }
}

fn write_integral(experts: &[Vec<Vec<f64>>], units: &[Vec<u32>], path: &Path) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (layer, units) in units.iter().enumerate() {
        let sps: Vec<Vec<f64>> = experts.iter().map(|task| task[layer].clone()).collect();
        tensors.insert(format!("layers.{layer}.sps"), Tensor::new(sps, &Device::Cpu)?);
        tensors.insert(format!("layers.{layer}.neuron_expert"), Tensor::new(units.as_slice(), &Device::Cpu)?);
    }
    write_tensors(&tensors, path)
}
