//! Sections at the shape and settings of a default run: pretraining, scan, labels, fits and Surprise Min-K.
//!
//! Only what is said to be of the pretrained model is; all else begins at weights that were drawn, so that no section's figures
//! hang on those of another, but for the scan and the router inputs.

use std::sync::LazyLock;

use rand::Rng as _;
use tinyonn::data::TokenSet;
use tinyonn::decoder::Arch;
use tinyonn::imaging::inputs::Samples;
use tinyonn::imaging::{LabelBalance, Labels, Log1p, NeuronScan, Partition, ScanOptions, ScanRequest, Score, Units};
use tinyonn::metrics::Record;
use tinyonn::moe::moe;
use tinyonn::ops::{GradSite, NeuronSums, UnitSums};
use tinyonn::phases::RunConfig;
use tinyonn::random;
use tinyonn::train::{FitBy, PretrainConfig, RouterFitConfig, SmkConfig};

use super::engine::{Asked, Evaluated, Inputs, Model, Routing, Text};
use super::figures::Figures;

/// Paths of few experts.
#[moe(groups = 4, experts = 4, top_k = [1, 2])]
struct GoldenNarrow;

/// The variant of a default run.
const VARIANT: &str = "TinyOnn";
/// Training tokens of each task that are scanned; held-out ones are half as many.
const SCANNED: usize = 1024;
/// One token in so many is an input of routers, and one in so many has labels of its own.
const STRIDES: (usize, usize) = (2, 96);
/// Tokens of a sequence whose mean is an input of routers.
const FIRST: usize = 64;
/// About the inverse root of the width over what a new model has: drawn matrices then keep the size of what they multiply.
const SIZE: f64 = 4.0;

static RUN: LazyLock<RunConfig> = LazyLock::new(RunConfig::default);
static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let mut text = Text::generated(60_000, RUN.dense.vocab_size);
    text.validation.truncate(SCANNED / 2 + 1);
    text.test.truncate(SCANNED / 2 + 1);
    text
});
static PRETRAINED: LazyLock<(Model, Vec<Record>)> = LazyLock::new(|| pretrained(30));
static DRAWN: LazyLock<Model> = LazyLock::new(|| Model::drawn(&cfg(), 1, SIZE));
static SCAN: LazyLock<(NeuronScan, Inputs)> =
    LazyLock::new(|| DRAWN.scan_with_inputs(&TEXT.train, options(), (STRIDES.0, FIRST)));

fn cfg() -> Arch {
    RUN.dense.arch(RUN.dense.vocab_size, "silu")
}

fn options() -> ScanOptions {
    ScanOptions { length: RUN.length, batch: RUN.batch, tokens_per_task: SCANNED }
}

fn pretrained(steps: u64) -> (Model, Vec<Record>) {
    // The warm-up of a default run when the figures were made.
    let config = PretrainConfig { steps, warmup: 100, ..RUN.pretrain };
    Model::pretrained(&cfg(), &config, (&TEXT.train, RUN.length), RUN.seed)
}

/// One value of all lines of a log.
pub(super) fn logged(figures: &mut Figures, records: &[Record], names: &[&str]) {
    figures.numbers("step", records.iter().map(|record| record.step as f64));
    for name in names {
        figures.numbers(*name, records.iter().map(|record| record.value(name).expect("it is logged")));
    }
}

/// Parameters of one kind of all layers (and experts) behind one another, a figure a kind.
pub(super) fn parameters(figures: &mut Figures, model: &Model, which: impl Fn(&str) -> bool) {
    let mut kinds: Vec<(String, Vec<f32>)> = Vec::new();
    for (name, values) in model.parameters().into_iter().filter(|(name, _)| which(name)) {
        let kind = name.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".");
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, all)) => all.extend(values),
            None => kinds.push((kind, values)),
        }
    }
    kinds.into_iter().for_each(|(kind, values)| figures.numbers(kind, values));
}

/// As [`parameters`], of a model that was `before`; and how far they moved, which says more of a few steps than where they are.
pub(super) fn moved(figures: &mut Figures, model: &Model, before: &Model, which: impl Fn(&str) -> bool + Copy) {
    parameters(figures, model, which);
    let pairs = model.parameters().into_iter().zip(before.parameters()).filter(|((name, _), _)| which(name));
    let size = |((_, now), (_, then)): ((String, Vec<f32>), (String, Vec<f32>))| -> f64 {
        now.iter().zip(&then).map(|(now, then)| f64::from(now - then).abs()).sum()
    };
    figures.numbers("moved", pairs.map(size));
}

pub(super) fn is_expert(name: &str) -> bool {
    name.contains(".mlp.") && name.ends_with("_proj.weight")
}

pub(super) fn is_router(name: &str) -> bool {
    name.contains("_router.") || name.ends_with("balance_bias")
}

fn is_scale(name: &str) -> bool {
    name.rsplit('.').next() == Some("scale")
}

/// Losses by task and document, and the load.
pub(super) fn evaluated(figures: &mut Figures, what: &str, Evaluated { losses, load }: &Evaluated) {
    figures.numbers(format!("{what}/loss"), std::iter::once(losses.mean).chain(losses.by_task.iter().copied()));
    let documents = losses.by_document.iter().filter(|document| document.tokens > 0.0);
    figures.numbers(format!("{what}/loss_by_document"), documents.map(|document| document.sum / document.tokens));
    if load.iter().flatten().any(|share| *share > 0.0) {
        figures.numbers(format!("{what}/load"), load.iter().flatten().copied());
    }
}

/// The experts of a path as the digits of a hexadecimal number, the first expert its lowest bit.
fn path(experts: &[u32]) -> String {
    let digits = experts.iter().max().map_or(0, |most| *most as usize / 4) + 1;
    let digit = |at: usize| (0..4).filter(|bit| experts.contains(&((at * 4 + bit) as u32))).map(|bit| 1 << bit).sum();
    (0..digits).rev().map(|at| char::from_digit(digit(at), 16).unwrap()).collect()
}

fn paths(labels: &Labels) -> impl Iterator<Item = String> + '_ {
    labels.paths.experts.iter().flatten().map(|experts| path(experts))
}

/// A row of tokens of each task, the first ones of the test split.
pub(super) fn rows(set: &TokenSet, length: usize) -> Vec<Vec<u32>> {
    set.tasks.iter().map(|task| task.tokens[..length].to_vec()).collect()
}

/// The text that all sections read: where this differs, nothing else is worth a look.
pub(super) fn text(figures: &mut Figures) {
    for (name, set) in [("train", &TEXT.train), ("validation", &TEXT.validation), ("test", &TEXT.test)] {
        figures.words(format!("{name}/sha256"), [set.sha256()]);
        figures.words(format!("{name}/tokens"), set.tasks.iter().map(|task| task.tokens.len().to_string()));
    }
}

/// One step of pretraining, whose figures no earlier step has blurred.
pub(super) fn first_step(figures: &mut Figures) {
    let (model, records) = pretrained(1);
    logged(figures, &records, &["loss", "gradient_norm", "rate"]);
    moved(figures, &model, &Model::drawn(&cfg(), RUN.seed, 1.0), |_| true);
}

pub(super) fn pretraining(figures: &mut Figures) {
    let (model, records) = &*PRETRAINED;
    logged(figures, records, &["loss", "gradient_norm", "rate"]);
    moved(figures, model, &Model::drawn(&cfg(), RUN.seed, 1.0), |_| true);
}

/// What the pretrained model says: logits, losses, held-out losses.
pub(super) fn pretrained_logits(figures: &mut Figures) {
    says(figures, &PRETRAINED.0);
}

/// The same of the drawn model.
pub(super) fn logits(figures: &mut Figures) {
    says(figures, &DRAWN);
    let prompt = &TEXT.test.tasks[0].tokens[..16];
    for (name, temperature) in [("greedy", None), ("drawn", Some(0.8))] {
        let tokens = DRAWN.generate(prompt, 12, Routing::All, temperature);
        figures.words(format!("generated/{name}"), tokens.iter().map(u32::to_string));
    }
}

fn says(figures: &mut Figures, model: &Model) {
    let rows = rows(&TEXT.test, RUN.length);
    figures.numbers("logits", model.logits(&rows, Routing::All));
    figures.numbers("token_losses", model.token_losses(&rows, Routing::All));
    evaluated(figures, "all", &model.evaluate(&TEXT.test, (RUN.length, RUN.batch), Routing::All));
}

/// A scan of the pretrained model that sums all there is: neurons, experts of a partition, and log1p of both.
pub(super) fn pretrained_scan(figures: &mut Figures) {
    let model = &PRETRAINED.0;
    scanned(figures, &model.scan(&TEXT.train, &request(model, GradSite::Weight)));
}

/// Scans of the drawn model, with surprise at every place where a gradient is taken.
pub(super) fn drawn_scan(figures: &mut Figures) {
    scanned(figures, &DRAWN.scan(&TEXT.train, &request(&DRAWN, GradSite::Weight)));
    for site in [GradSite::Input, GradSite::Output] {
        let options = ScanOptions { tokens_per_task: SCANNED / 2, ..options() };
        let scan = DRAWN.scan(&TEXT.train, &ScanRequest { options, ..request(&DRAWN, site) });
        let neurons = |of: fn(&NeuronSums) -> &Vec<f64>| scan.sums.iter().flatten().flat_map(of).copied();
        figures.numbers(format!("{}/neurons/surprise", site.name()), neurons(|sums| &sums.surprise));
        let experts = scan.experts.as_ref().unwrap().sums.iter().flatten();
        figures.numbers(format!("{}/experts/surprise", site.name()), experts.flat_map(|sums| &sums.surprise).copied());
    }
}

fn request(model: &Model, grad_site: GradSite) -> ScanRequest {
    let neuron_expert = model.partition(VARIANT, Partition::Random, None, RUN.seed);
    let count = 1 + neuron_expert.iter().flatten().max().map_or(0, |most| *most as usize);
    let units = Some(Units { neuron_expert, count });
    ScanRequest { grad_site, units, log1p: Log1p::Measured, ..ScanRequest::new(options()) }
}

fn scanned(figures: &mut Figures, scan: &NeuronScan) {
    figures.numbers("tokens", scan.tokens.iter().map(|tokens| *tokens as f64));
    figures.numbers("loss", scan.loss.clone());
    for (at, name) in NeuronSums::NAMES.iter().enumerate() {
        let sums = scan.sums.iter().flatten().flat_map(|sums| sums.each()[at]);
        figures.numbers(format!("neurons/{name}"), sums.copied());
    }
    let mut units = |what: &str, sums: &[Vec<UnitSums>]| {
        for (at, name) in UnitSums::NAMES.iter().enumerate() {
            let sums = sums.iter().flatten().flat_map(|sums| sums.each()[at]);
            figures.numbers(format!("{what}/{name}"), sums.copied());
        }
    };
    units("experts", &scan.experts.as_ref().unwrap().sums);
    let log1p = scan.log1p.as_ref().unwrap();
    units("log1p/neurons", &log1p.neurons);
    units("log1p/experts", log1p.experts.as_ref().unwrap());
    figures.numbers("log1p/scales", log1p.scales.iter().flat_map(|scale| [scale.activation, scale.surprise]));
}

/// What routers see of the training split, and of the test split when they route.
pub(super) fn router_inputs(figures: &mut Figures) {
    let model = DRAWN.upcycled(VARIANT, RUN.seed);
    let labels = Labels::random(TEXT.train.tasks.len(), cfg().num_hidden_layers, model.spec(), 0);
    let routed = model.inputs(&TEXT.test, options(), (STRIDES.0, FIRST), Routing::Routed(&labels));
    for (what, inputs) in [("all", &SCAN.1), ("routed", &routed)] {
        for (unit, layers) in [("tokens", &inputs.tokens), ("sequences", &inputs.sequences)] {
            let values = layers.iter().flat_map(|samples| samples.values.iter().copied());
            figures.numbers(format!("{what}/{unit}"), values);
            let owners = layers.iter().flat_map(|samples| samples.tasks.iter().zip(&samples.documents));
            let numbers = owners.flat_map(|(task, document)| [*task, *document]).map(f64::from);
            figures.numbers(format!("{what}/{unit}/tasks_and_documents"), numbers);
        }
    }
}

/// A scan that nothing was read for: clusters of neurons are decided by hairs, which the rounding of a true one's passes would turn.
fn made_up() -> NeuronScan {
    let cfg = cfg();
    let mut scan = NeuronScan::zero(
        TEXT.train.tasks.iter().map(|task| task.name.clone()).collect(),
        cfg.num_hidden_layers,
        cfg.intermediate_size,
    );
    scan.tokens.fill(SCANNED as u64);
    let mut rng = random::stream(0, "tests/golden/scan");
    for sums in scan.sums.iter_mut().flatten() {
        for neuron in 0..cfg.intermediate_size {
            let [a, s, taylor] = [(); 3].map(|()| rng.random::<f64>());
            let tokens = SCANNED as f64;
            let values = [a, 1.5 * a * a, s, 1.5 * s * s, taylor - 0.5, taylor, 1.0];
            sums.each_mut().into_iter().zip(values).for_each(|(sums, value)| sums[neuron] = tokens * value);
        }
    }
    scan
}

/// Which expert each neuron goes to, by every strategy; a layer is told by its digits' digest, for it is the same or it is not.
pub(super) fn partitions(figures: &mut Figures) {
    let scan = made_up();
    let read = Some((&scan, &TEXT.train, options()));
    for strategy in Partition::ALL {
        // The recorded figures are of those that there were.
        if matches!(strategy, Partition::CoactivationBinary | Partition::Rate) {
            continue;
        }
        let digest = |layer: &Vec<u32>| {
            let mut digest = tinyonn::files::Digest::new();
            digest.words(layer);
            digest.hex()[..16].to_owned()
        };
        let layers = DRAWN.partition(VARIANT, strategy, read, RUN.seed);
        figures.words(strategy.word(), layers.iter().map(digest));
    }
}

/// Labels of tasks by every score, and of tokens by some.
pub(super) fn labels(figures: &mut Figures) {
    let model = DRAWN.upcycled(VARIANT, RUN.seed);
    let (scan, none, sinkhorn) = (&SCAN.0, LabelBalance::None, LabelBalance::Sinkhorn);
    for score in Score::ALL {
        let labels = model.labels(scan, score, false, none);
        figures.words(format!("tasks/{}", score.name()), paths(&labels));
    }
    figures.words("tasks/sps/contrasted", paths(&model.labels(scan, Score::Sps, true, none)));
    // Of narrow paths: which of many choices a task is left without is decided by rounding where it takes most of them.
    let narrow = DRAWN.upcycled("GoldenNarrow", RUN.seed);
    figures.words("tasks/sps/sinkhorn", paths(&narrow.labels(scan, Score::Sps, false, sinkhorn)));
    let read = (&TEXT.train, options(), STRIDES.1);
    let of_tokens = [
        ("sps", Score::Sps, false, none),
        ("activation_plus_surprise/contrasted", Score::ActivationPlusSurprise, true, none),
        ("taylor/sinkhorn", Score::Taylor, false, sinkhorn),
    ];
    for (name, score, contrast, balance) in of_tokens {
        let layers = model.token_labels(&DRAWN, read, (scan, score, contrast), balance);
        let rows = layers.iter().flat_map(|layer| (0..layer.class_of_row.len()).map(|row| path(layer.path(row))));
        figures.words(format!("tokens/{name}"), rows);
    }
}

/// A fit, by its name.
struct Fitted {
    name: &'static str,
    model: Model,
    /// Against labels of tokens themselves, `[layer][level]`.
    row_accuracy: Option<Vec<Vec<f64>>>,
}

/// Held-out inputs.
static HELD: LazyLock<[Vec<Samples>; 2]> = LazyLock::new(|| {
    [&TEXT.validation, &TEXT.test].map(|set| DRAWN.inputs(set, options(), (STRIDES.0, FIRST), Routing::All).tokens)
});
static TASK_LABELS: LazyLock<Labels> =
    LazyLock::new(|| DRAWN.upcycled(VARIANT, RUN.seed).labels(&SCAN.0, Score::Sps, false, LabelBalance::None));
static FITTED: LazyLock<Vec<Fitted>> = LazyLock::new(|| {
    let by = |fit| RouterFitConfig { fit, steps: 20, ..RUN.router };
    let fits = [("gda", FitBy::Gda), ("gda+sgd", FitBy::GdaSgd), ("sgd", FitBy::Sgd)];
    let of_tasks = fits.map(|(name, fit)| {
        let model = DRAWN.upcycled(VARIANT, RUN.seed);
        model.fit([&SCAN.1.tokens, &HELD[0]], Asked::Tasks(&TASK_LABELS), &by(fit));
        Fitted { name, model, row_accuracy: None }
    });
    let model = DRAWN.upcycled(VARIANT, RUN.seed);
    let label = |set| {
        let read = (set, options(), STRIDES.0);
        model.token_labels(&DRAWN, read, (&SCAN.0, Score::Sps, false), LabelBalance::None)
    };
    let [train, validation, test] = [&TEXT.train, &TEXT.validation, &TEXT.test].map(label);
    model.fit([&SCAN.1.tokens, &HELD[0]], Asked::Rows([&train, &validation]), &by(FitBy::Gda));
    let row_accuracy = Some(model.row_accuracy(&HELD[1], &test));
    of_tasks.into_iter().chain([Fitted { name: "gda/token_labels", model, row_accuracy }]).collect()
});

/// The parameters of fitted routers.
pub(super) fn fits(figures: &mut Figures) {
    for Fitted { name, model, .. } in FITTED.iter() {
        let mut own = Figures::default();
        parameters(&mut own, model, |parameter| is_router(parameter) && !is_scale(parameter));
        let renamed = own.0.into_iter().map(|(kind, figure)| (format!("{name}/{kind}"), figure));
        figures.0.extend(renamed);
    }
}

/// What fitted routers are worth: their scale, how often they find the labels, the loss when they route.
pub(super) fn fitted(figures: &mut Figures) {
    for Fitted { name, model, row_accuracy } in FITTED.iter() {
        let scales = model.parameters().into_iter().filter(|(parameter, _)| is_scale(parameter));
        figures.numbers(format!("{name}/scale"), scales.flat_map(|(_, values)| values));
        let accuracy = model.router_accuracy(&HELD[1], &TASK_LABELS);
        figures.numbers(format!("{name}/accuracy"), accuracy.layers.iter().flat_map(|layer| layer.accuracy.clone()));
        figures.numbers(format!("{name}/chance"), accuracy.layers.iter().flat_map(|layer| layer.chance.clone()));
        figures.numbers(format!("{name}/confusion"), accuracy.confusion.iter().flatten().copied());
        figures.numbers(format!("{name}/load_by_task"), accuracy.load.iter().flatten().flatten().copied());
        if let Some(rows) = row_accuracy {
            figures.numbers(format!("{name}/row_accuracy"), rows.iter().flatten().copied());
        }
        let routed = model.evaluate(&TEXT.test, (RUN.length, RUN.batch), Routing::Routed(&TASK_LABELS));
        evaluated(figures, name, &routed);
    }
}

/// Surprise Min-K behind routers in closed form.
pub(super) fn smk(figures: &mut Figures) {
    let gda = FITTED.iter().find(|fitted| fitted.name == "gda").expect("it is fitted");
    let model = gda.model.copy();
    let config = SmkConfig { steps: 30, ..RUN.smk };
    let routed = Routing::Routed(&TASK_LABELS);
    let (share, records) = model.smk(&config, (&TEXT.train, RUN.length), routed, RUN.seed ^ 1);
    logged(figures, &records, &["loss", "load_max_over_mean", "load_evenness", "load_dead"]);
    figures.number("updated_share", share);
    moved(figures, &model, &gda.model, is_expert);
    let others = |model: &Model| -> Vec<(String, Vec<f32>)> {
        model.parameters().into_iter().filter(|(name, _)| !is_expert(name)).collect()
    };
    figures.words("others_stay", [(others(&model) == others(&gda.model)).to_string()]);
    for (name, routing) in [("routed", routed), ("all", Routing::All), ("paths", Routing::Paths(&TASK_LABELS))] {
        evaluated(figures, name, &model.evaluate(&TEXT.test, (RUN.length, RUN.batch), routing));
    }
}
