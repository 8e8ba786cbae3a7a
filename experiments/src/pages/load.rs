//! How work is shared out among experts: layer by layer and task by task, beside what the labels ask for; and whether it has collapsed.

use super::pictures;
use super::run::{Material, unit};
use crate::names::group_columns;
use crate::report::{Column, Figure, Heatmap, Scale, Section, Table, shown_layers};
use crate::shown::Imaged;
use tinyonn::Result;
use tinyonn::imaging::Labels;
use tinyonn::moe::LoadFigures;

/// The section.
pub(super) fn load(m: &Material<'_>) -> Result<Section> {
    let mut figures = Vec::new();
    if let (Some(imaged), Some(labels)) = (m.imaged, m.labels) {
        figures.extend(by_task(m, imaged, labels)?);
    }
    if let Some(load) = m.load_after {
        let layers = (0..load.len()).map(|layer| layer.to_string()).collect();
        let title = "Expert load by layer, after SMK".into();
        let after = Heatmap { title, row_label: "layer".into(), rows: layers, values: load.to_vec(), ..blank(m) };
        figures.push(Figure::plot("load-after-smk", &after, "Of tokens: test split, all tasks, routed.")?);
    }
    figures.push(pictures::load_table(m.summary)?);
    let mut prose = collapses(m);
    if prose.is_empty() {
        let apart = if m.tasks.len() > 1 { "no layer's labels give all tasks one path, and " } else { "" };
        prose.push(format!(
            "Nothing has collapsed: {apart}every layer's load is, within a factor of two, as even as the labels ask for."
        ));
    }
    prose.push("The share that takes an expert; what a shared decision reads, all active, is not counted.".into());
    Ok(Section { heading: "Expert load".into(), prose, figures })
}

/// A line for the top of the page, if anything has collapsed.
pub(super) fn alarm(m: &Material<'_>) -> Option<String> {
    match collapses(m).len() {
        0 => None,
        1 => Some("There is a warning of collapse: see Expert load.".into()),
        several => Some(format!("There are {several} warnings of collapse: see Expert load.")),
    }
}

/// Every collapse of the labels and of the load, in plain words.
fn collapses(m: &Material<'_>) -> Vec<String> {
    let s = m.summary;
    let of_load = |when: &str, found: &LoadFigures| -> Vec<String> {
        let warnings = found.warnings(m.spec, &s.load.asked);
        let told = |warning: &String| format!("Load{when}: {}.", warning.strip_prefix("collapse: ").unwrap_or(warning));
        warnings.iter().map(told).collect()
    };
    let labels = s.labels.warning().map(|warning| format!("Labels: {warning}."));
    let before = of_load(if m.smk.is_some() { " before SMK" } else { "" }, &s.load.before);
    let after = m.smk.map(|smk| of_load(" after SMK", &smk.load)).unwrap_or_default();
    labels.into_iter().chain(before).chain(after).collect()
}

/// A map of shares by expert, to be given its title, rows and values.
fn blank(m: &Material<'_>) -> Heatmap {
    let (columns, column_groups) = group_columns(m.spec);
    Heatmap {
        title: String::new(),
        row_label: String::new(),
        column_label: "expert".into(),
        rows: Vec::new(),
        columns,
        values: Vec::new(),
        scale: Scale::Sequential,
        column_groups,
        range: Some((0.0, 1.0)),
        value_label: "share".into(),
        spread: None,
    }
}

/// Tasks × experts, a map a layer: what routers take of each task, and below it what its label asks for.
fn by_task(m: &Material<'_>, imaged: &Imaged, labels: &Labels) -> Result<Vec<Figure>> {
    let load = &imaged.accuracy.load;
    let shown = shown_layers(load.len());
    let always = if m.spec.always.is_empty() { "" } else { " Experts that always take part are nobody's choice." };
    let figure = |(at, &layer): (usize, &usize)| {
        let rows = m.tasks.iter().flat_map(|task| [task.clone(), format!("{task}, label")]);
        let of_task = |(task, found): (usize, &Vec<f64>)| [found.clone(), asked(labels, (task, layer), found.len())];
        let heatmap = Heatmap {
            title: format!("Expert load by task, layer {layer}"),
            row_label: "task".into(),
            rows: rows.collect(),
            values: load[layer].iter().enumerate().flat_map(of_task).collect(),
            ..blank(m)
        };
        // The CSV goes on to the next layer that is drawn.
        let next = shown.get(at + 1).copied().unwrap_or(load.len());
        let more = match next - layer - 1 {
            0 => String::new(),
            1 => format!(" The CSV also has layer {}, which is not drawn.", layer + 1),
            _ => format!(" The CSV also has layers {} to {}, which are not drawn.", layer + 1, next - 1),
        };
        let caption = format!(
            "Layer {layer}: of each task's {unit}s in the test split, all experts active, the share that routers send to each \
             expert; below it what the task's label asks for, all or nothing.{always}{more}",
            unit = unit(m.spec)
        );
        let numbers = numbers(m, (imaged, labels), layer..next, &heatmap.columns);
        Figure::plot(format!("load-by-task-layer-{layer}"), &heatmap, caption)?.with_numbers(&numbers)
    };
    shown.iter().enumerate().map(figure).collect()
}

/// 1 for the experts on a task's path in a layer, 0 for the others.
fn asked(labels: &Labels, (task, layer): (usize, usize), experts: usize) -> Vec<f64> {
    let path = &labels.paths.experts[task][layer];
    (0..experts as u32).map(|expert| f64::from(u8::from(path.binary_search(&expert).is_ok()))).collect()
}

/// A row for each layer, task and expert.
fn numbers(
    m: &Material<'_>,
    (imaged, labels): (&Imaged, &Labels),
    layers: std::ops::Range<usize>,
    experts: &[String],
) -> Table {
    let columns = ["layer", "task", "expert"].map(Column::text).into_iter();
    let of_task = |layer: usize, task: usize| {
        let found = &imaged.accuracy.load[layer][task];
        let each = experts.iter().zip(found).zip(asked(labels, (task, layer), found.len()));
        let row = move |((expert, found), asked): ((&String, &f64), f64)| {
            vec![
                layer.to_string().into(),
                m.tasks[task].clone().into(),
                expert.clone().into(),
                (*found).into(),
                asked.into(),
            ]
        };
        each.map(row).collect::<Vec<_>>()
    };
    let of_layer = |layer: usize| (0..m.tasks.len()).flat_map(move |task| of_task(layer, task));
    Table {
        columns: columns.chain([Column::number("share", 3), Column::number("label", 0)]).collect(),
        rows: layers.flat_map(of_layer).collect(),
    }
}
