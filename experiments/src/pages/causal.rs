//! The pictures of causal validation: what ablating and amplifying does.

use crate::causal::{AS_OTHERS, AS_RANDOM, Intervention};
use crate::report::{BarSeries, Bars, Figure, Heatmap, Scale, Section, common_range};
use tinyonn::Result;
use tinyonn::metrics::Interval;

/// The sources whose matrices are drawn, each beside what it is held against.
pub(crate) const DRAWN: [&str; 8] = [
    "sps",
    "sps_as_others",
    "random_of_norm_of_sps",
    "activation",
    "activation_as_others",
    "random_of_norm_of_activation",
    "taylor_magnitude",
    "taylor",
];

/// Causal validation.
pub(super) fn causal(causal: &[Intervention], tasks: &[String]) -> Result<Section> {
    let mut figures = Vec::new();
    for unit in ["expert", "neuron"] {
        let of = |factor: f64| causal.iter().filter(move |found| found.unit == unit && found.factor == factor);
        for factor in [0.0, 1.5] {
            let all: Vec<&Intervention> = of(factor).collect();
            if all.is_empty() {
                continue;
            }
            figures.push(specificity((unit, factor), all)?);
            let drawn: Vec<&Intervention> =
                DRAWN.iter().filter_map(|source| of(factor).find(|found| found.source == *source)).collect();
            let range = common_range(drawn.iter().map(|found| &found.delta));
            for found in drawn {
                let map = matrix((unit, &found.source, factor), &found.delta, tasks, range);
                let matched = found
                    .norm_to_matched
                    .map_or(String::new(), |ratio| format!(", {ratio:.2} of that of the units they are held against"));
                let caption = format!(
                    "{} {unit}s of each layer, outputs × {:.2}; the norm touched is {:.2} of that of the highest ∫SPS{matched}. One scale for all such matrices.",
                    found.count,
                    1.0 + (factor - 1.0) * found.strength,
                    found.norm_to_sps
                );
                figures.push(Figure::plot(stem((unit, &found.source, factor)), &map, caption)?);
            }
        }
    }
    Ok(Section {
        heading: "Does a task need what its image points at?".into(),
        prose: vec![
            "The units of each layer that score highest on a task are ablated (their outputs × 0) or amplified (× 1.5), everything else active, and \
             the change of every task's held-out loss is measured. If the image points at what its own task needs, the diagonal stands out. What puts \
             out much on a task's text costs that text much, whatever it is for: so ∫SPS' and activation's units are held against others at one number and one \
             norm of outputs. Random units have less norm: of the score's own outputs only so large a share is taken (“at random's norm”). Others that are drawn \
             to have its norm are strong on the task's text too, the harder null; where even the strongest have less, its own are weakened to that (“at others' norm”)."
                .into(),
        ],
        figures,
    })
}

/// Specificity by source, the most specific first.
fn specificity((unit, factor): (&str, f64), mut found: Vec<&Intervention>) -> Result<Figure> {
    found.sort_by(|a, b| b.specificity.mean.total_cmp(&a.specificity.mean));
    let (stem, title) = titles(unit, factor);
    let bars = bars(title, factor, &found.iter().map(|found| (&*found.source, found.specificity)).collect::<Vec<_>>());
    let count = found.first().map_or(0, |found| found.count);
    let caption = format!(
        "The {count} {unit}s of each layer that a score is highest for, or random ones, the mean of three draws; 95 % intervals over documents. {}",
        beyond(&found)
    );
    Figure::plot(stem, &bars, caption)
}

/// Specificities by source, from the top down.
pub(crate) fn bars(title: String, factor: f64, found: &[(&str, Interval)]) -> Bars {
    Bars {
        title,
        value_label: "diagonal minus rest, nats a token".into(),
        categories: found.iter().map(|(source, _)| chosen_by(source)).collect(),
        series: vec![BarSeries {
            name: format!("× {factor}"),
            values: found.iter().map(|(_, specificity)| specificity.mean).collect(),
            whiskers: Some(found.iter().map(|(_, specificity)| (specificity.low, specificity.high)).collect()),
        }],
        reference: None,
    }
}

/// A figure's name and its title: what a task loses by an intervention on its own units, more than others do.
pub(crate) fn titles(unit: &str, factor: f64) -> (String, String) {
    if factor == 0.0 {
        let title = format!("What a task loses more than others do without a tenth of its {unit}s");
        (format!("specificity-{unit}"), title)
    } else {
        let title = format!("What a task loses more than others do with a tenth of its {unit}s × {factor}");
        (format!("specificity-amplified-{unit}"), title)
    }
}

/// What sources need beyond units of their size, in a sentence.
fn beyond(found: &[&Intervention]) -> String {
    let said = found.iter().filter_map(|found| {
        let beyond = found.beyond_random?;
        Some(format!("{} {:+.3} [{:+.3}, {:+.3}]", chosen_by(&found.source), beyond.mean, beyond.low, beyond.high))
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() { String::new() } else { format!("Minus the units whose norm they have: {}.", said.join("; ")) }
}

/// Change of the loss, `[task whose units are touched][task measured]`.
pub(crate) fn matrix(
    (unit, source, factor): (&str, &str, f64),
    delta: &[Vec<f64>],
    tasks: &[String],
    range: Option<(f64, f64)>,
) -> Heatmap {
    let chosen = chosen_by(source);
    let (title, done) = if factor == 0.0 {
        (format!("Without the {unit}s: {chosen}"), "are missing")
    } else {
        (format!("The {unit}s × {factor}: {chosen}"), "are amplified")
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
pub(crate) fn stem((unit, source, factor): (&str, &str, f64)) -> String {
    let done = if factor == 0.0 { "ablated" } else { "amplified" };
    format!("{done}-{unit}-{}", source.replace('_', "-"))
}

/// A source in words: `highest ∫SPS`, `others, norm of activation`.
pub(crate) fn chosen_by(source: &str) -> String {
    let score = |name: &str| match name {
        "sps" => "∫SPS".to_owned(),
        "taylor_magnitude" => "|Taylor|".into(),
        "taylor" => "Taylor".into(),
        "activation_plus_surprise" => "activation + surprise".into(),
        name => name.replace('_', " "),
    };
    if let Some(matched) = source.strip_prefix("random_of_norm_of_") {
        return format!("others, norm of {}", score(matched));
    }
    if let Some(weakened) = source.strip_suffix(AS_RANDOM) {
        return format!("{} at random's norm", score(weakened));
    }
    if let Some(weakened) = source.strip_suffix(AS_OTHERS) {
        return format!("{} at others' norm", score(weakened));
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
