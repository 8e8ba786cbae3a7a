//! `report.html`: whether it worked, on one self-contained page.

use std::collections::BTreeMap;

use tinyonn::imaging::Labels;
use tinyonn::moe::{MoeSpec, RoutePer};
use tinyonn::phases::Phase1Summary;
use tinyonn::phases::summary::SmkFigures;
use tinyonn::train::LevelAccuracy;
use tinyonn::{Error, Result};

use super::{causal, frontier, load, pictures, specific_experts};
use crate::names::group_columns;
use crate::report::{BarSeries, Bars, Figure, Heatmap, Lines, Page, Scale, Section, Series, common_range};
use crate::shown::Imaged;
use crate::studies::Studies;

/// What the page shows.
pub(super) struct Material<'a> {
    pub(super) summary: &'a Phase1Summary,
    pub(super) studies: &'a Studies,
    /// Of phase 2.
    pub(super) smk: Option<&'a SmkFigures>,
    pub(super) tasks: &'a [String],
    pub(super) spec: &'a MoeSpec,
    /// Of phase 1, where it ran here.
    pub(super) imaged: Option<&'a Imaged>,
    pub(super) labels: Option<&'a Labels>,
    /// After SMK, `[layer][expert]`.
    pub(super) load_after: Option<&'a [Vec<f64>]>,
    /// Losses by step.
    pub(super) pretrain: &'a [(f64, f64)],
    /// Losses by step.
    pub(super) smk_log: &'a [(f64, f64)],
}

/// The page.
pub(super) fn page(m: &Material<'_>) -> Result<Page> {
    let s = m.summary;
    let verdict = if s.lossless.bit_equal { "bit for bit the dense model's" } else { "NOT the dense model's" };
    let lost = |loss: f64| format!("{:.3} nats a token", loss - s.loss.dense);
    let after =
        m.smk.map_or(String::new(), |smk| format!(" before the experts differentiate and {} after", lost(smk.routed)));
    let mut lead = vec![
        format!(
            "A dense model of {} parameters was decomposed into {} experts a layer. All active, its logits are {verdict}.",
            s.model.parameters, s.model.experts
        ),
        format!(
            "Routed, with {:.0} % of the neurons active, it loses {}{after} (dense: {:.3} nats; routers fitted to random paths: {:.3}; to \
             other tasks' paths: {:.3}).",
            100.0 * s.active_share,
            lost(s.loss.routed_before),
            s.loss.dense,
            s.loss.routed_random_labels,
            s.loss.routed_permuted_labels,
        ),
    ];
    lead.extend(load::alarm(m));
    let mut facts = vec![
        ("variant".into(), s.variant.clone()),
        ("seed".into(), s.seed.to_string()),
        ("corpus SHA-256".into(), s.corpus.sha256.clone()),
    ];
    facts.push(("labels by".into(), s.labels_by.replace('_', " ")));
    facts.extend(s.model.partition.iter().map(|partition| ("partition".into(), partition.clone())));
    facts.extend([
        ("largest |Δ logit|, all active".into(), s.lossless.max_abs_diff.to_string()),
        ("share of surprises above zero".into(), format!("{:.4}", s.scan.gradient_nonzero_share)),
        ("distinct paths".into(), format!("{} of {} tasks", s.labels.distinct_paths, m.tasks.len())),
        ("entropy of the labels' experts".into(), entropy(s)),
        (
            "overlap of two tasks' labels".into(),
            format!("{:.2} (0: no expert in common, 1: one path)", s.labels.overlap),
        ),
        ("seconds".into(), seconds(s)),
    ]);
    let mut sections = vec![losses(m)?];
    if !m.studies.label_sources.is_empty() {
        sections.push(label_sources(m)?);
    }
    if let (Some(imaged), Some(labels)) = (m.imaged, m.labels) {
        sections.extend([
            brain(m.spec, m.tasks, &imaged.experts)?,
            pictures::paths(m.spec, m.tasks, labels)?,
            routing(m, imaged)?,
        ]);
    }
    if let Some(frontier) = &m.studies.frontier {
        sections.push(frontier::frontier(frontier)?);
    }
    if !m.studies.causal.is_empty() {
        sections.push(causal::causal(&m.studies.causal, m.tasks)?);
    }
    if !m.studies.specific_experts.is_empty() {
        sections.push(specific_experts::section(&m.studies.specific_experts, m.tasks)?);
    }
    sections.extend([load::load(m)?, curves(m)?]);
    Ok(Page { title: format!("{}: from a dense model to routed experts", s.variant), lead, facts, sections })
}

/// Over how many experts the labels of a layer are spread, as exp of their entropy.
fn entropy(s: &Phase1Summary) -> String {
    let (entropy, experts) = (s.labels.entropy, s.model.experts);
    format!("{entropy:.2} nats a layer: as of {:.1} experts of {experts} in equal shares", entropy.exp())
}

fn seconds(s: &Phase1Summary) -> String {
    let stages = s.seconds.iter().map(|(stage, seconds)| format!("{stage} {:.1}", seconds.as_f64().unwrap_or(0.0)));
    stages.collect::<Vec<_>>().join(", ")
}

fn losses(m: &Material<'_>) -> Result<Section> {
    let s = m.summary;
    let mut rows = vec![
        ("dense", s.loss.dense),
        ("routed", s.loss.routed_before),
        ("labels' own paths", s.loss.label_paths),
        ("other tasks' paths", s.loss.routed_permuted_labels),
        ("random paths", s.loss.routed_random_labels),
    ];
    if let Some(smk) = m.smk {
        rows[1].0 = "routed before SMK";
        rows.insert(1, ("routed after SMK", smk.routed));
    }
    let bars = Bars {
        title: "Loss on the test split".into(),
        value_label: "nats a token".into(),
        categories: rows.iter().map(|(name, _)| (*name).to_string()).collect(),
        series: vec![BarSeries { name: "loss".into(), values: rows.iter().map(|(_, x)| *x).collect(), whiskers: None }],
        reference: Some(("dense".into(), s.loss.dense)),
    };
    let named = |name: &str, (losses, key): (&BTreeMap<String, BTreeMap<String, f64>>, &str)| -> Result<BarSeries> {
        let of = |task: &String| losses.get(key)?.get(task).copied();
        let missing = |task: &String| {
            let problem = format!("has no loss `{key}` of the task `{task}`, which figures.json names");
            Error::file("summary.json", problem, "give a folder whose files are of one run")
        };
        let values = m.tasks.iter().map(|task| of(task).ok_or_else(|| missing(task))).collect::<Result<_>>()?;
        Ok(BarSeries { name: name.into(), values, whiskers: None })
    };
    let of_phase1 = [
        (if m.smk.is_some() { "routed before SMK" } else { "routed" }, "routed_before"),
        ("other tasks' paths", "routed_permuted_labels"),
        ("random paths", "routed_random_labels"),
    ];
    let mut series = vec![named("dense", (&s.loss_by_task, "dense"))?];
    series.extend(m.smk.map(|smk| named("routed after SMK", (&smk.by_task, "routed"))).transpose()?);
    for (name, key) in of_phase1 {
        series.push(named(name, (&s.loss_by_task, key))?);
    }
    let by_task = Bars {
        title: "Loss by task".into(),
        value_label: "nats a token".into(),
        categories: m.tasks.to_vec(),
        series,
        reference: None,
    };
    Ok(Section {
        heading: "Did it work?".into(),
        prose: vec![
            "Each bar is the mean cross-entropy over all tokens of documents that no stage has seen. The controls use the same \
             routers, fitted in the same way, to paths that know nothing of the task."
                .into(),
        ],
        figures: vec![
            Figure::plot("loss", &bars, "Random and other tasks' paths: the mean of three draws each.")?,
            Figure::plot(
                "loss-by-task",
                &by_task,
                "The same, task by task: a mean can hide tasks on which paths that know nothing do better.",
            )?,
        ],
    })
}

/// What the labels of each source are worth.
fn label_sources(m: &Material<'_>) -> Result<Section> {
    let sources = &m.studies.label_sources;
    let mut rows: Vec<_> = sources.iter().filter(|(name, _)| *name != "dense").collect();
    rows.sort_by(|a, b| a.1.loss.total_cmp(&b.1.loss));
    let bars = Bars {
        title: "Loss along the paths of each source".into(),
        value_label: "nats a token".into(),
        categories: rows.iter().map(|(name, _)| name.replace('_', " ")).collect(),
        series: vec![BarSeries {
            name: "loss".into(),
            values: rows.iter().map(|(_, figures)| figures.loss).collect(),
            whiskers: None,
        }],
        reference: sources.get("dense").map(|dense| ("dense".into(), dense.loss)),
    };
    Ok(Section {
        heading: "Whose image knows the path?".into(),
        prose: vec![
            "The same hierarchy, each task along the path that a source of labels gives it: the task is known, no router between, and \
             the experts have not differentiated. ∫SPS stands beside other scores of the same scan, and beside paths that know less. All share this run's partition of neurons."
                .into(),
        ],
        figures: vec![Figure::plot(
            "label-sources",
            &bars,
            "A part of the test split, the same for all; random and permuted paths: the mean of three draws. Lowest first.",
        )?],
    })
}

/// What shares a decision, in a word.
pub(super) fn unit(spec: &MoeSpec) -> &'static str {
    match spec.route_per {
        RoutePer::Token | RoutePer::Task => "token",
        RoutePer::Segment { .. } => "segment",
        RoutePer::Sequence { .. } => "sequence",
    }
}

/// The brain scan: ∫SPS a token, `experts[task][layer][expert]`.
pub(super) fn brain(spec: &MoeSpec, tasks: &[String], experts: &[Vec<Vec<f64>>]) -> Result<Section> {
    let (columns, column_groups) = group_columns(spec);
    let range = common_range(experts).map(|(low, high)| (-high.max(-low), high.max(-low)));
    let mut figures = Vec::new();
    let layers = experts.first().map_or(0, Vec::len);
    let blank = pictures::layers_by_experts(layers, columns, column_groups);
    for (task, values) in tasks.iter().zip(experts) {
        let heatmap =
            Heatmap { title: format!("∫SPS a token: {task}"), values: values.clone(), range, ..blank.clone() };
        let caption = format!("Layers × experts on {task}; all tasks share one scale.");
        figures.push(Figure::plot(format!("brain-{task}"), &heatmap, caption)?);
    }
    figures.extend(pictures::contrast(tasks, experts, blank)?);
    Ok(Section {
        heading: "Brain scan".into(),
        prose: vec![
            "∫SPS is activation minus surprise, each standardised over a layer's tokens and neurons, summed over the task's text and \
             divided by its tokens: above zero, an expert is more active than it is surprised."
                .into(),
        ],
        figures,
    })
}

fn routing(m: &Material<'_>, imaged: &Imaged) -> Result<Section> {
    let s = m.summary;
    let confusion = Heatmap {
        title: "Whose path is it?".into(),
        row_label: format!("task of the {}", unit(m.spec)),
        column_label: "task whose label the predicted path overlaps most".into(),
        rows: m.tasks.to_vec(),
        columns: m.tasks.to_vec(),
        values: imaged.accuracy.confusion.clone(),
        scale: Scale::Sequential,
        column_groups: None,
        range: Some((0.0, 1.0)),
        value_label: "share".into(),
        spread: None,
    };
    let layers = &imaged.accuracy.layers;
    let accuracy = Lines {
        title: format!("Router accuracy by layer, one {} a decision", unit(m.spec)),
        x_label: "layer".into(),
        y_label: "|predicted ∩ label| / |label|".into(),
        series: m
            .spec
            .levels
            .iter()
            .enumerate()
            .flat_map(|(level, declared)| {
                let points = |of: fn(&LevelAccuracy) -> &Vec<f64>| {
                    layers.iter().enumerate().map(|(layer, accuracy)| (layer as f64, of(accuracy)[level])).collect()
                };
                let sure =
                    layers.iter().map(|layer| (layer.intervals[level].low, layer.intervals[level].high)).collect();
                let found = Series::line(format!("{}s", declared.name), points(|layer| &layer.accuracy));
                [
                    Series { interval: Some(sure), ..found },
                    Series::line(format!("{}s, chance", declared.name), points(|layer| &layer.chance)),
                ]
            })
            .collect(),
        log_x: false,
    };
    Ok(Section {
        heading: "Routers".into(),
        prose: vec![format!(
            "On text they have not seen, routers find {:.1} % of a token's labelled groups (always the commonest path: {:.1} %) and \
             {:.1} % of its experts ({:.1} %). When a sequence shares one decision: {:.1} % of the groups ({:.1} %).",
            100.0 * s.router.token.group_accuracy,
            100.0 * s.router.token.chance,
            100.0 * s.router.token.expert_accuracy,
            100.0 * s.router.token.expert_chance,
            100.0 * s.router.sequence.group_accuracy,
            100.0 * s.router.sequence.chance,
        )],
        figures: [
            Figure::plot("confusion", &confusion, "Mean over layers; rows sum to one.")?,
            Figure::plot(
                "router-accuracy",
                &accuracy,
                "Held-out, with 95 % intervals over documents, beside always answering the commonest path.",
            )?,
        ]
        .into_iter()
        .chain(pictures::density_figures(&imaged.densities, m.spec)?)
        .collect(),
    })
}

fn curves(m: &Material<'_>) -> Result<Section> {
    let curve = |title: &str, stage: &str, points: &[(f64, f64)]| Lines {
        title: title.into(),
        x_label: "step".into(),
        y_label: "nats a token".into(),
        series: vec![Series::line(stage, points.to_vec())],
        log_x: false,
    };
    let mut figures = Vec::new();
    if !m.pretrain.is_empty() {
        let lines = curve("Dense pretraining", "pretrain", m.pretrain);
        figures.push(Figure::plot("loss-pretraining", &lines, "Training loss of the dense model, every tenth step.")?);
    }
    if m.smk.is_some() {
        let lines = curve("Surprise Min-K", "smk", m.smk_log);
        let caption = "Training loss under routed activation, at a constant rate, every tenth step.";
        figures.push(Figure::plot("loss-smk", &lines, caption)?);
    }
    Ok(Section { heading: "Loss curves".into(), prose: vec![], figures })
}
