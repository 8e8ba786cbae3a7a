//! The frontier: held-out loss against the share of neurons that routing leaves active, the routers as they were fitted.
//!
//! Every fixed (k₁, k₂, …), and each adaptive form (PFAG, DESIGN §4) at several strengths, is a point; so are 25, 50, 75 and 90 % of the
//! experts, for which layers take different numbers where no single one will do. Beside the loss stands the *recovery*,
//! (L_noMLP − L)/(L_noMLP − L_dense): 1 is the dense model, 0 the model whose MLPs give nothing (DESIGN §3). Intervals are paired: drawn
//! over documents, of which each is read by all three models.

use serde::{Deserialize, Serialize};

use crate::causal::without_mlps;
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::decoder::Pass;
use tinyonn::imaging::Labels;
use tinyonn::metrics::{Interval, Progress, interval};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{ExpertsAre, LoadFigures, Pfag, RoutePer};
use tinyonn::phases::{Run, active_share};
use tinyonn::train::Losses;

/// Fixed numbers of choices that are measured, at most; of more, those whose active shares are spread most evenly.
const MOST: usize = 128;
/// Shares of the experts, in percent, that are met exactly or as nearly as layers can.
pub const SHARES: [usize; 4] = [25, 50, 75, 90];
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

/// What decides how many are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HowMany {
    /// One number in all layers.
    Fixed,
    /// A number for each layer.
    FixedByLayer,
    /// The entropy of the router's choice ([`Pfag::Entropy`]).
    Entropy,
    /// A share of its probability ([`Pfag::Nucleus`]).
    Nucleus,
    /// How surprising the token is ([`Pfag::Surprisal`]).
    Surprisal,
}

impl HowMany {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::FixedByLayer => "fixed by layer",
            Self::Entropy => "entropy",
            Self::Nucleus => "nucleus",
            Self::Surprisal => "surprisal",
        }
    }
}

/// One way to choose how many.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FrontierPoint {
    /// What decides.
    pub form: HowMany,
    /// Choices of a router, by level: taken, or for adaptive forms at most; where layers differ, the most of any.
    pub top_k: Vec<usize>,
    /// The same `[layer][level]`, where layers differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_layer: Vec<Vec<usize>>,
    /// The mass of a nucleus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mass: Option<f64>,
    /// Experts that a routed token takes.
    pub expert_share: f64,
    /// Neurons (of replicas: experts) that a routed token uses.
    pub active_share: f64,
    /// The same over all passes: `surprisal` reads a whole sequence twice, first with all active. A step of generation has the
    /// surprisal of its token from the step before, for nothing.
    pub cost_share: f64,
    /// What each expert was given to do.
    pub load: LoadFigures,
    /// Nats a token.
    pub loss: Interval,
    /// Of what the MLPs are worth; none where they are worth nothing, as in a model that has not learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Interval>,
}

impl FrontierPoint {
    /// Whether its numbers of choices depend on no input.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        matches!(self.form, HowMany::Fixed | HowMany::FixedByLayer)
    }
}

impl Frontier {
    /// The best fixed choice at a share of the experts: of those that come nearest to it, all equally near, the one of the lowest loss.
    #[must_use]
    pub fn best_fixed_at(&self, share: f64) -> Option<&FrontierPoint> {
        self.nearest(share, FrontierPoint::is_fixed)
    }

    /// The adaptive form that takes nearest to a share of the experts.
    #[must_use]
    pub fn adaptive_near(&self, share: f64) -> Option<&FrontierPoint> {
        self.nearest(share, |point| !point.is_fixed())
    }

    fn nearest(&self, share: f64, which: impl Fn(&FrontierPoint) -> bool) -> Option<&FrontierPoint> {
        let apart = |point: &&FrontierPoint| (point.expert_share - share).abs();
        let of = || self.points.iter().filter(|point| which(point));
        let least = of().map(|point| apart(&point)).min_by(f64::total_cmp)?;
        of().filter(|point| apart(point) <= least + SAME).min_by(|a, b| a.loss.mean.total_cmp(&b.loss.mean))
    }
}

/// Shares that differ by no more are the same: they are counted in f32.
pub(crate) const SAME: f64 = 1e-6;

/// How many to take.
struct Choice {
    form: HowMany,
    /// By layer; of a single entry, in all.
    top_k: Vec<Vec<usize>>,
    pfag: Pfag,
}

impl Choice {
    fn fixed(mut top_k: Vec<Vec<usize>>) -> Self {
        if top_k.windows(2).all(|pair| pair[0] == pair[1]) {
            top_k.truncate(1);
        }
        Self { form: if top_k.len() > 1 { HowMany::FixedByLayer } else { HowMany::Fixed }, top_k, pfag: Pfag::Off }
    }

    fn of_layer(&self, layer: usize) -> &[usize] {
        self.top_k.get(layer).or(self.top_k.last()).map_or(&[], Vec::as_slice)
    }

    /// Passes over a whole sequence before the one that is routed.
    fn passes_before(&self) -> f64 {
        if self.pfag == Pfag::Surprisal { 1.0 } else { 0.0 }
    }

    /// The most that any layer takes, by level.
    fn most(&self) -> Vec<usize> {
        let level = |level: usize| self.top_k.iter().filter_map(|k| k.get(level)).copied().max().unwrap_or(0);
        (0..self.of_layer(0).len()).map(level).collect()
    }
}

/// Measures the routers in `store`; a variant that takes its task's path follows `labels`, whose width is fixed: it has no frontier.
///
/// # Errors
/// Whatever the device reports.
pub fn frontier(run: &Run<'_>, store: &ParamStore, labels: &Labels) -> Result<Frontier> {
    let spec = &run.variant.spec;
    let mut set = run.tokens.test.clone();
    let tokens = run.config.study_tokens.max(run.config.length + 1);
    set.beginnings(tokens);
    let dense = run.evaluate_on(&run.dense_model()?, &set, &Pass::all())?;
    let without = run.evaluate_on(&without_mlps(run)?, &set, &Pass::all())?;
    let documents = |losses: &Losses| {
        let of = losses.by_document.iter().zip(&dense.by_document).zip(&without.by_document);
        of.map(|((own, dense), without)| [own.sum, dense.sum, without.sum]).collect::<Vec<_>>().into_iter()
    };
    let choices = if spec.route_per == RoutePer::Task { Vec::new() } else { choices(run) };
    let progress = Progress::new(choices.len() as u64, "frontier");
    let units = run.model(store)?.neuron_experts()?;
    let mut points = Vec::with_capacity(choices.len());
    for choice in choices {
        let (cfg, vb) = (&run.dense.cfg, store.frozen());
        let model = TinyOnnForCausalLm::taking(cfg, run.variant, &vb, |at| choice.of_layer(at), choice.pfag)?;
        let (losses, load) = run.evaluate_load(&model, &set, &Run::routed(labels))?;
        let active_share = active_share(&load, units.as_deref());
        points.push(FrontierPoint {
            form: choice.form,
            top_k: choice.most(),
            mass: if let Pfag::Nucleus { mass } = choice.pfag { Some(mass) } else { None },
            expert_share: load.expert_share(),
            active_share,
            cost_share: active_share + choice.passes_before(),
            load: load.figures(spec),
            by_layer: if choice.top_k.len() > 1 { choice.top_k } else { Vec::new() },
            loss: loss(&losses, run.config.seed),
            recovery: recovery(documents(&losses), run.config.seed),
        });
        progress.set(points.len() as u64);
    }
    progress.finish();
    points.sort_by(|a, b| a.active_share.total_cmp(&b.active_share));
    Ok(Frontier { tokens, dense: dense.mean, without: without.mean, points })
}

fn choices(run: &Run<'_>) -> Vec<Choice> {
    let spec = &run.variant.spec;
    let fixed = fixed_choices(run);
    if spec.experts_are == ExpertsAre::Replicate {
        // Their gates weigh, they do not choose: an adaptive number changes nothing that is active.
        return fixed;
    }
    let adaptive = |form, pfag| Choice { form, top_k: vec![spec.choices()], pfag };
    let nuclei = MASSES.map(|mass| adaptive(HowMany::Nucleus, Pfag::Nucleus { mass }));
    let others = [adaptive(HowMany::Entropy, Pfag::Entropy), adaptive(HowMany::Surprisal, Pfag::Surprisal)];
    fixed.into_iter().chain(others).chain(nuclei).collect()
}

/// The numbers that all layers share, of many some; and those that meet [`SHARES`], where they are others.
fn fixed_choices(run: &Run<'_>) -> Vec<Choice> {
    let spec = &run.variant.spec;
    let mut all = spec.every_top_k();
    all.sort_by_key(|top_k| spec.taking(top_k, Pfag::Off).active_experts());
    let count = all.len();
    let kept = |at: &usize| count <= MOST || at * MOST / count != (at + 1) * MOST / count;
    let even = all.into_iter().enumerate().filter(|(at, _)| kept(at)).map(|(_, top_k)| vec![top_k]);
    let mut fixed: Vec<Choice> = even.map(Choice::fixed).collect();
    for percent in SHARES {
        let asked = Choice::fixed(spec.top_k_at(percent, run.dense.cfg.num_hidden_layers));
        if fixed.iter().all(|known| known.top_k != asked.top_k) {
            fixed.push(asked);
        }
    }
    fixed
}

/// The mean loss a token and how sure it is.
fn loss(losses: &Losses, seed: u64) -> Interval {
    let clusters: Vec<(f64, f64)> = losses.by_document.iter().map(|document| (document.sum, document.tokens)).collect();
    interval(&clusters, seed)
}

/// (L_noMLP − L)/(L_noMLP − L_dense), from each document's sums of L, L_dense and L_noMLP; none where the MLPs are worth nothing.
pub(crate) fn recovery(documents: impl Iterator<Item = [f64; 3]>, seed: u64) -> Option<Interval> {
    let clusters: Vec<(f64, f64)> = documents.map(|[own, dense, without]| (without - own, without - dense)).collect();
    let found = (clusters.iter().map(|(_, worth)| worth).sum::<f64>() > 0.0).then(|| interval(&clusters, seed))?;
    [found.mean, found.low, found.high].iter().all(|x| x.is_finite()).then_some(found)
}

/// `7 × 10`.
pub(crate) fn times(top_k: &[usize]) -> String {
    top_k.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ")
}
