//! The pictures of the most specific experts: what lights them up, and what each task's loss becomes without them.

use tinyonn::Result;

use crate::report::{Column, Figure, Heatmap, Scale, Section, Table, TableCell, common_range};
use crate::specific_experts::{Context, SpecificExpert};

/// A section of them.
pub(super) fn section(found: &[SpecificExpert], tasks: &[String]) -> Result<Section> {
    let range = common_range([&found.iter().map(|own| own.rise.clone()).collect::<Vec<_>>()]);
    let mut figures = Vec::new();
    for of_layer in found.chunk_by(|a, b| a.layer == b.layer) {
        let layer = of_layer[0].layer;
        let map = Heatmap {
            title: format!("Without one expert of layer {layer}"),
            row_label: "expert left out".into(),
            column_label: "task measured".into(),
            rows: of_layer.iter().map(|own| format!("{}: {}", own.expert, task(own, tasks))).collect(),
            columns: tasks.to_vec(),
            values: of_layer.iter().map(|own| own.rise.clone()).collect(),
            scale: Scale::Diverging,
            column_groups: None,
            range,
            value_label: "change of the loss, nats a token".into(),
            spread: None,
        };
        let caption = "Beside each expert the task on whose text it puts out most. One scale for all layers.";
        figures.push(Figure::plot(format!("without-expert-{layer}"), &map, caption)?);
        let rows = of_layer.iter().flat_map(|own| rows(own, tasks)).collect();
        let columns = vec![
            Column::text(&format!("expert of layer {layer}")),
            Column::text("puts out most on"),
            Column::number("times its mean", 2),
            Column::text("what lights it up"),
            Column::text("source"),
        ];
        let caption = "Tokens of training text, in ▸arrows◂, with what stands around them in their documents: at most twenty tokens each, every one of another document.";
        figures.push(Figure::table(&Table { columns, rows }, caption)?);
    }
    Ok(Section {
        heading: "What are its most specific experts for?".into(),
        prose: vec![
            "Of three layers the ten experts whose outputs differ most between tasks: √E[o²] on the task where it is largest over its mean over tasks, o the size of an expert's output at a token, √Σ h_i² ‖w_i‖². Each \
             is left out by itself, everything else active. If an expert is for what it is active on, its own task's loss rises most."
                .into(),
        ],
        figures,
    })
}

fn task<'t>(own: &SpecificExpert, tasks: &'t [String]) -> &'t str {
    tasks.get(own.task).map_or("?", String::as_str)
}

/// A row a context, the first with what is said of the expert.
fn rows<'a>(own: &'a SpecificExpert, tasks: &'a [String]) -> impl Iterator<Item = Vec<TableCell>> + 'a {
    own.contexts.iter().enumerate().map(move |(at, context)| {
        let said: [TableCell; 3] = if at == 0 {
            [own.expert.to_string().into(), task(own, tasks).into(), own.specificity.into()]
        } else {
            ["".into(), "".into(), f64::NAN.into()]
        };
        said.into_iter().chain([told(context).into(), context.source.clone().into()]).collect()
    })
}

/// On one line, as plain words.
fn told(context: &Context) -> String {
    let visible = |text: &str| text.replace('\n', "⏎").replace('\t', "⇥").replace('`', "ˋ");
    format!("{}▸{}◂{}", visible(&context.before), visible(&context.token), visible(&context.after))
}
