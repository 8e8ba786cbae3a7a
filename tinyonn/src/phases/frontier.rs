//! The frontier: held-out loss against the share of neurons that routing leaves active, the routers as they were fitted.
//!
//! Every fixed (k₁, k₂, …), and each adaptive form (PFAG, DESIGN §4) at several strengths, is a point. Beside the loss stands the *recovery*,
//! (L_noMLP − L)/(L_noMLP − L_dense): 1 is the dense model, 0 the model whose MLPs give nothing (DESIGN §3). Intervals are paired: drawn
//! over documents, of which each is read by all three models.

use std::sync::Arc;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::run::{Run, active_share};
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::imaging::Labels;
use crate::metrics::{Interval, Progress, interval};
use crate::model::TinyOnnForCausalLm;
use crate::moe::{ExpertsAre, LoadMeter, Pfag, RoutePer};
use crate::qwen3::{Qwen3ForCausalLm, RouteCtx};
use crate::train::Losses;

/// Fixed numbers of choices that are measured, at most; of more, those whose active shares are spread most evenly.
const MOST: usize = 128;
/// Shares of the probability that the nuclei of the adaptive form gather.
const MASSES: [f64; 6] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.97];

/// Loss against active share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frontier {
    /// Test tokens of each task that it was measured on, at most.
    pub tokens: usize,
    /// All active.
    pub dense: f64,
    /// No MLP at all.
    pub without: f64,
    /// By active share, ascending.
    pub points: Vec<FrontierPoint>,
}

/// One way to choose how many.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FrontierPoint {
    /// `fixed`, `entropy`, `nucleus` or `surprisal`.
    pub form: String,
    /// Choices of a router, by level: taken, or for adaptive forms at most.
    pub top_k: Vec<usize>,
    /// The mass of a nucleus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mass: Option<f64>,
    /// Neurons (of replicas: experts) that a routed token uses.
    pub active_share: f64,
    /// Nats a token.
    pub loss: Interval,
    /// Of what the MLPs are worth; none where they are worth nothing, as in a model that has not learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Interval>,
}

/// How many to take.
struct Choice {
    form: &'static str,
    top_k: Vec<usize>,
    pfag: Pfag,
}

impl Run<'_> {
    /// Measures the routers in `store`; a variant that takes its task's path follows `labels`, whose width is fixed: it has no frontier.
    pub(super) fn frontier(&self, store: &ParamStore, labels: &Labels) -> Result<Frontier> {
        let spec = &self.variant.spec;
        let mut set = self.tokens.test.clone();
        let tokens = self.config.study_tokens.max(self.config.length + 1);
        set.beginnings(tokens);
        let dense = self.evaluate_on(&self.dense_model()?, &set, &RouteCtx::all())?;
        let without = self.evaluate_on(&self.without_mlps()?, &set, &RouteCtx::all())?;
        let documents = |losses: &Losses| {
            let of = losses.by_document.iter().zip(&dense.by_document).zip(&without.by_document);
            of.map(|((own, dense), without)| [own.sum, dense.sum, without.sum]).collect::<Vec<_>>().into_iter()
        };
        let choices = if spec.route_per == RoutePer::Task { Vec::new() } else { self.choices() };
        let progress = Progress::new(choices.len() as u64, "frontier");
        let units = self.model(store)?.neuron_experts()?;
        let mut points = Vec::with_capacity(choices.len());
        for choice in choices {
            let (cfg, vb) = (&self.dense.cfg, store.builder(DType::F32, |_| false));
            let model = TinyOnnForCausalLm::taking(cfg, self.variant, &vb, &choice.top_k, choice.pfag)?;
            let load = Arc::new(LoadMeter::new(cfg.num_hidden_layers, spec.experts()));
            let ctx = RouteCtx { observer: Some(load.clone()), ..Self::routed(labels) };
            let losses = self.evaluate_on(model.lm(), &set, &ctx)?;
            points.push(FrontierPoint {
                form: choice.form.into(),
                top_k: choice.top_k,
                mass: if let Pfag::Nucleus { mass } = choice.pfag { Some(mass) } else { None },
                active_share: active_share(&load, units.as_deref()),
                loss: loss(&losses, self.config.seed),
                recovery: recovery(documents(&losses), self.config.seed),
            });
            progress.set(points.len() as u64);
        }
        progress.finish();
        points.sort_by(|a, b| a.active_share.total_cmp(&b.active_share));
        Ok(Frontier { tokens, dense: dense.mean, without: without.mean, points })
    }

    /// The dense model whose MLPs give nothing: W_d = 0.
    pub(super) fn without_mlps(&self) -> Result<Qwen3ForCausalLm<crate::qwen3::Mlp>> {
        let cfg = &self.dense.cfg;
        self.with_neurons_scaled(&vec![vec![0.0; cfg.intermediate_size]; cfg.num_hidden_layers])
    }

    fn choices(&self) -> Vec<Choice> {
        let spec = &self.variant.spec;
        let most = spec.choices();
        let mut fixed: Vec<Vec<usize>> = vec![Vec::new()];
        for choices in &most {
            fixed = fixed.iter().flat_map(|k| (1..=*choices).map(move |next| [&k[..], &[next]].concat())).collect();
        }
        fixed.sort_by_key(|top_k| spec.taking(top_k, Pfag::Off).active_experts());
        let count = fixed.len();
        let kept = |at: &usize| count <= MOST || at * MOST / count != (at + 1) * MOST / count;
        let fixed = fixed.into_iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, top_k)| top_k);
        let fixed = fixed.map(|top_k| Choice { form: "fixed", top_k, pfag: Pfag::Off });
        if spec.experts_are == ExpertsAre::Replicate {
            // Their gates weigh, they do not choose: an adaptive number changes nothing that is active.
            return fixed.collect();
        }
        let adaptive = |form, pfag| Choice { form, top_k: most.clone(), pfag };
        let nuclei = MASSES.map(|mass| adaptive("nucleus", Pfag::Nucleus { mass }));
        fixed
            .chain([adaptive("entropy", Pfag::Entropy), adaptive("surprisal", Pfag::Surprisal)])
            .chain(nuclei)
            .collect()
    }
}

/// The mean loss a token and how sure it is.
pub(super) fn loss(losses: &Losses, seed: u64) -> Interval {
    let clusters: Vec<(f64, f64)> = losses.by_document.iter().map(|document| (document.sum, document.tokens)).collect();
    interval(&clusters, seed)
}

/// (L_noMLP − L)/(L_noMLP − L_dense), from each document's sums of L, L_dense and L_noMLP; none where the MLPs are worth nothing.
pub(super) fn recovery(documents: impl Iterator<Item = [f64; 3]>, seed: u64) -> Option<Interval> {
    let clusters: Vec<(f64, f64)> = documents.map(|[own, dense, without]| (without - own, without - dense)).collect();
    let found = (clusters.iter().map(|(_, worth)| worth).sum::<f64>() > 0.0).then(|| interval(&clusters, seed))?;
    [found.mean, found.low, found.high].iter().all(|x| x.is_finite()).then_some(found)
}
