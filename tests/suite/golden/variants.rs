//! A declared variant for every word that changes what is computed, over a small drawn model: what it says routed, what it takes,
//! how it learns, what it then says.

use std::sync::LazyLock;

use tinyonn::decoder::Arch;
use tinyonn::imaging::Labels;
use tinyonn::moe::{Balance, Gate, MoeSpec, RoutePer, moe};
use tinyonn::train::{OptimizerConfig, RouterFitConfig, SmkConfig};

use super::dense::{evaluated, is_expert, is_router, logged, moved, parameters, rows};
use super::engine::{Asked, Model, Routing, Text};
use super::figures::Figures;
use crate::models;
use crate::router_fit::{TASKS, planted};

/// A token for itself, slices in one bank, Gaussian routers.
#[moe(groups = 3, experts = 4, top_k = [2, 2])]
struct GoldenToken;

/// The segment before decides.
#[moe(groups = 3, experts = 4, router = linear, top_k = [2, 2], route_per = segment(8), gate = straight_through)]
struct GoldenSegment;

/// The first tokens decide.
#[moe(groups = 3, experts = 4, router = cosine, top_k = [1, 2], route_per = sequence(8), gate = scaled)]
struct GoldenSequence;

/// The caller decides.
#[moe(groups = 3, experts = 4, top_k = [2, 2], route_per = task)]
struct GoldenTask;

/// Slices computed on the tokens that chose them; all that is declared about learning routers.
#[moe(
    levels = [8],
    router = linear,
    top_k = 2,
    gate = scaled,
    combine = dispatch,
    balance = loss(0.01),
    z_loss = 0.001,
    jitter = 0.1
)]
struct GoldenDispatch;

/// A bias on selection; experts that always take part.
#[moe(groups = 3, experts = 4, always = 2, router = linear, top_k = [2, 2], gate = scaled, balance = bias(0.01))]
struct GoldenBias;

/// As many as entropy says.
#[moe(groups = 3, experts = 4, router = linear, pfag = entropy, gate = scaled)]
struct GoldenEntropy;

/// As few as hold the mass.
#[moe(groups = 3, experts = 4, router = linear, pfag = nucleus(0.55), balance = bias(0.01))]
struct GoldenNucleus;

/// As many as the token surprises.
#[moe(groups = 3, experts = 4, router = linear, pfag = surprisal, gate = straight_through)]
struct GoldenSurprisal;

/// Replicas merged for each token.
#[moe(groups = 2, experts = 3, router = cosine, top_k = [2, 2], experts_are = replicate)]
struct GoldenMerge;

/// Replicas merged once a sequence.
#[moe(levels = [4], router = linear, top_k = 4, experts_are = replicate, route_per = sequence(8))]
struct GoldenMergedSequence;

/// Replicas computed on the tokens that chose them.
#[moe(groups = 2, experts = 3, router = linear, top_k = [2, 2], experts_are = replicate, combine = dispatch)]
struct GoldenReplicas;

/// Three levels, and a router of each kind; another activation.
#[moe(
    levels = [2, 3, 2],
    router = [linear, gaussian(dim = 6, covariance = shared), cosine],
    top_k = [2, 2, 1],
    gate = straight_through,
    activation = gelu
)]
struct GoldenDeep;

/// Named, uneven groups.
#[moe(router = gaussian(dim = 6, reduce = sum), top_k = 2, gate = straight_through)]
enum GoldenGroups {
    #[group(experts = 5, top_k = 3)]
    Words,
    #[group(experts = 3, router = cosine)]
    Numbers,
    #[group(experts = 2, router = random, top_k = 1)]
    Other,
}

/// Tokens a sequence.
const LENGTH: usize = 32;
/// Sequences a batch.
const BATCH: usize = 4;
const VOCABULARY: usize = 300;
const STEPS: u64 = 5;

static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let mut text = Text::generated(24_000, VOCABULARY);
    text.test.truncate(8 * LENGTH + 1);
    text
});

/// The width of an MLP is divided by few numbers of experts.
fn cfg(hidden_act: &str) -> Arch {
    let (vocab_size, hidden_size, hidden_act) = (VOCABULARY, 32, hidden_act.to_owned());
    Arch { vocab_size, hidden_size, hidden_act, ..models::config(98, true) }
}

/// Whether a language model's loss, or a step's load, moves the routers.
fn routers_learn(spec: &MoeSpec) -> bool {
    spec.route_per != RoutePer::Task && (spec.gate != Gate::Unit || spec.balance != Balance::None)
}

/// A variant from its routed logits to the tokens that it writes behind a few steps of Surprise Min-K.
pub(super) fn run(figures: &mut Figures, name: &str) {
    let spec = &tinyonn::moe::variant(name).unwrap().spec;
    // ×8 of a new model's: of about the inverse root of the width.
    let dense = Model::drawn(&cfg(spec.activation.as_deref().unwrap_or("silu")), 2, 8.0);
    let model = dense.upcycled(name, 6);
    let labels = Labels::random(TEXT.train.tasks.len(), dense.cfg.num_hidden_layers, spec, 3);
    let (rows, routed) = (rows(&TEXT.test, LENGTH), Routing::Routed(&labels));
    figures.numbers("all/logits", model.logits(&rows, Routing::All));
    let says = |figures: &mut Figures, when: &str| {
        figures.numbers(format!("{when}/logits"), model.logits(&rows, routed));
        figures.numbers(format!("{when}/token_losses"), model.token_losses(&rows, routed));
        evaluated(figures, when, &model.evaluate(&TEXT.test, (LENGTH, BATCH), routed));
    };
    says(figures, "before");
    let optimizer = OptimizerConfig { rate: 2e-3, decay: 0.0, ..OptimizerConfig::DEFAULT };
    let config = SmkConfig {
        steps: STEPS,
        batch: BATCH,
        min_k: 3,
        routers: routers_learn(spec),
        optimizer,
        ..SmkConfig::DEFAULT
    };
    let before = model.copy();
    let (share, records) = model.smk(&config, (&TEXT.train, LENGTH), routed, 4);
    logged(figures, &records, &["loss", "load_max_over_mean", "load_evenness", "load_dead"]);
    figures.number("updated_share", share);
    moved(figures, &model, &before, |name| is_expert(name) || is_router(name));
    says(figures, "after");
    let prompt = &TEXT.test.tasks[0].tokens[..12];
    let tokens = model.generate(prompt, 8, routed, None);
    figures.words("generated", tokens.iter().map(u32::to_string));
}

/// Routers of every kind fitted to planted tasks: what has no closed form learns by its gradient.
pub(super) fn fits_of_every_kind(figures: &mut Figures) {
    let cfg = Arch { hidden_act: "gelu".to_owned(), ..models::config(98, true) };
    let model = Model::drawn(&cfg, 2, 8.0).upcycled("GoldenDeep", 6);
    let [train, validation, test] = ["train", "validation", "test"].map(|purpose| planted(purpose, 400, 1.0));
    let labels = Labels::random(TASKS, cfg.num_hidden_layers, model.spec(), 3);
    let config = RouterFitConfig { steps: 40, batch: 64, rate: 2e-2, ..RouterFitConfig::default() };
    model.fit([&train, &validation], Asked::Tasks(&labels), &config);
    parameters(figures, &model, is_router);
    let accuracy = model.router_accuracy(&test, &labels);
    figures.numbers("accuracy", accuracy.layers.iter().flat_map(|layer| layer.accuracy.clone()));
}
