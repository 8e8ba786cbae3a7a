//! The pictures of causal validation: what ablating and amplifying does.

use super::causal::Intervention;
use crate::Result;
use crate::report::{BarSeries, Bars, Figure, Heatmap, Scale, Section};

/// Causal validation.
pub(super) fn causal(causal: &[Intervention], tasks: &[String]) -> Result<Section> {
    let mut figures = Vec::new();
    for unit in ["expert", "neuron"] {
        let of = |factor: f64| causal.iter().filter(move |found| found.unit == unit && found.factor == factor);
        let mut ablated: Vec<&Intervention> = of(0.0).collect();
        ablated.sort_by(|a, b| b.specificity.mean.total_cmp(&a.specificity.mean));
        let bars = Bars {
            title: format!("What a task loses more than others do without its {unit}s"),
            value_label: "diagonal minus rest, nats a token".into(),
            categories: ablated.iter().map(|found| found.source.replace('_', " ")).collect(),
            series: vec![BarSeries {
                name: "× 0".into(),
                values: ablated.iter().map(|found| found.specificity.mean).collect(),
                whiskers: Some(ablated.iter().map(|found| (found.specificity.low, found.specificity.high)).collect()),
            }],
            reference: None,
        };
        if ablated.is_empty() {
            continue;
        }
        figures.push(Figure::plot(
            format!("specificity-{unit}"),
            &bars,
            "Chosen by the highest of each score, by ∫SPS' lowest, or at random; 95 % intervals over documents.",
        )?);
        for source in ["sps", "activation", "taylor", "random_of_same_norm"] {
            for found in of(0.0).chain(of(1.5)).filter(|found| found.source == source) {
                let factor = if found.factor == 0.0 { "ablated" } else { "amplified" };
                let heatmap = Heatmap {
                    title: format!("{} {unit}s {factor}", source.replace('_', " ")),
                    row_label: format!("task whose {unit}s are {factor}"),
                    column_label: "task measured".into(),
                    rows: tasks.to_vec(),
                    columns: tasks.to_vec(),
                    values: found.delta.clone(),
                    scale: Scale::Diverging,
                    column_groups: None,
                    range: None,
                    value_label: "change of the loss, nats a token".into(),
                    spread: None,
                };
                let caption = format!(
                    "{} {unit}s of each layer, outputs × {}; their norm is {:.2} of that of the highest ∫SPS.",
                    found.count, found.factor, found.norm_ratio
                );
                figures.push(Figure::plot(format!("{factor}-{unit}-{}", source.replace('_', "-")), &heatmap, caption)?);
            }
        }
    }
    Ok(Section {
        heading: "Does a task need what its image points at?".into(),
        prose: vec![
            "The units of each layer that score highest on a task are ablated (their outputs × 0) or amplified (× 1.5), everything else active, and \
             the change of every task's held-out loss is measured. If the image points at what its own task needs, the diagonal stands out."
                .into(),
        ],
        figures,
    })
}
