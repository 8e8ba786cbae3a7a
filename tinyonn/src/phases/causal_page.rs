//! The pictures of causal validation: what ablating and amplifying does.

use super::causal::Intervention;
use crate::Result;
use crate::report::{BarSeries, Bars, Figure, Heatmap, Scale, Section, common_range};

/// The sources whose matrices are drawn, each beside what it is held against.
pub(super) const DRAWN: [&str; 8] = [
    "sps",
    "sps_weakened",
    "random_of_norm_of_sps",
    "activation",
    "activation_weakened",
    "random_of_norm_of_activation",
    "taylor_magnitude",
    "taylor",
];

/// Causal validation.
pub(super) fn causal(causal: &[Intervention], tasks: &[String]) -> Result<Section> {
    let mut figures = Vec::new();
    for unit in ["expert", "neuron"] {
        let of = |takes: bool| causal.iter().filter(move |found| found.unit == unit && found.takes() == takes);
        let mut ablated: Vec<&Intervention> = of(true).collect();
        ablated.sort_by(|a, b| b.specificity.mean.total_cmp(&a.specificity.mean));
        let bars = Bars {
            title: format!("What a task loses more than others do without a tenth of its {unit}s"),
            value_label: "diagonal minus rest, nats a token".into(),
            categories: ablated.iter().map(|found| chosen_by(&found.source)).collect(),
            series: vec![BarSeries {
                name: "× 0".into(),
                values: ablated.iter().map(|found| found.specificity.mean).collect(),
                whiskers: Some(ablated.iter().map(|found| (found.specificity.low, found.specificity.high)).collect()),
            }],
            reference: None,
        };
        let Some(first) = ablated.first() else { continue };
        let caption = format!(
            "The {} {unit}s of each layer that a score is highest for, or random ones, the mean of three draws; 95 % intervals over documents. {}",
            first.count,
            beyond(&ablated)
        );
        figures.push(Figure::plot(format!("specificity-{unit}"), &bars, caption)?);
        for takes in [true, false] {
            let drawn: Vec<&Intervention> =
                DRAWN.iter().filter_map(|source| of(takes).find(|found| found.source == *source)).collect();
            let range = common_range(drawn.iter().map(|found| &found.delta));
            for found in drawn {
                let map = matrix((unit, &found.source, takes), &found.delta, tasks, range);
                let matched = found
                    .norm_to_matched
                    .map_or(String::new(), |ratio| format!(", {ratio:.2} of that of the units they are held against"));
                let caption = format!(
                    "{} {unit}s of each layer, outputs × {:.2}; the norm touched is {:.2} of that of the highest ∫SPS{matched}. One scale for all such matrices.",
                    found.count, found.factor, found.norm_to_sps
                );
                figures.push(Figure::plot(stem((unit, &found.source, takes)), &map, caption)?);
            }
        }
    }
    Ok(Section {
        heading: "Does a task need what its image points at?".into(),
        prose: vec![
            "The units of each layer that score highest on a task are ablated (their outputs × 0) or amplified (× 1.5), everything else active, and \
             the change of every task's held-out loss is measured. If the image points at what its own task needs, the diagonal stands out. What puts \
             out much on a task's text costs that text much, whatever it is for: so beside ∫SPS' and activation's units stand random others, as many and of the \
             same output norm; where even the strongest others have less, the score's own outputs, weakened to lose no more, stand in (“at random's norm”). Random units are ablated only."
                .into(),
        ],
        figures,
    })
}

/// What sources need beyond units of their size, in a sentence.
fn beyond(ablated: &[&Intervention]) -> String {
    let said = ablated.iter().filter_map(|found| {
        let beyond = found.beyond_matched?;
        Some(format!("{} {:+.3} [{:+.3}, {:+.3}]", chosen_by(&found.source), beyond.mean, beyond.low, beyond.high))
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() { String::new() } else { format!("At one norm, beyond random units: {}.", said.join("; ")) }
}

/// Change of the loss, `[task whose units are touched][task measured]`.
pub(super) fn matrix(
    (unit, source, takes): (&str, &str, bool),
    delta: &[Vec<f64>],
    tasks: &[String],
    range: Option<(f64, f64)>,
) -> Heatmap {
    let chosen = chosen_by(source);
    let (title, done) = if source.ends_with("_weakened") {
        (format!("With the {unit}s weakened: {chosen}"), "are weakened")
    } else if takes {
        (format!("Without the {unit}s: {chosen}"), "are missing")
    } else {
        (format!("The {unit}s × 1.5: {chosen}"), "are amplified")
    };
    Heatmap {
        title,
        row_label: format!("task whose {unit}s {done}"),
        column_label: "task measured".into(),
        rows: tasks.to_vec(),
        columns: tasks.to_vec(),
        values: delta.to_vec(),
        scale: Scale::Diverging,
        column_groups: None,
        range,
        value_label: "change of the loss, nats a token".into(),
        spread: None,
    }
}

/// The name of a matrix' files.
pub(super) fn stem((unit, source, takes): (&str, &str, bool)) -> String {
    let done = if takes { "ablated" } else { "amplified" };
    format!("{done}-{unit}-{}", source.replace('_', "-"))
}

/// A source in words: `highest ∫SPS`, `random, norm of activation`.
pub(super) fn chosen_by(source: &str) -> String {
    let score = |name: &str| match name {
        "sps" => "∫SPS".to_owned(),
        "taylor_magnitude" => "|Taylor|".into(),
        "taylor" => "Taylor".into(),
        "activation_plus_surprise" => "activation + surprise".into(),
        name => name.replace('_', " "),
    };
    if let Some(matched) = source.strip_prefix("random_of_norm_of_") {
        return format!("random, norm of {}", score(matched));
    }
    if let Some(weakened) = source.strip_suffix("_weakened") {
        return format!("highest {}, at random's norm", score(weakened));
    }
    if let Some(lowest) = source.strip_suffix("_lowest") {
        return format!("lowest {}", score(lowest));
    }
    match source.strip_suffix("_contrasted") {
        Some(contrasted) => format!("highest {}, contrasted", score(contrasted)),
        None if source == "random" => source.into(),
        None => format!("highest {}", score(source)),
    }
}
