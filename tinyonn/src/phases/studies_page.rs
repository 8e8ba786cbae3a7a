//! The pictures of phase 1's studies: loss against active share, and what ablating and amplifying does.

use super::causal::Intervention;
use super::frontier::{Frontier, FrontierPoint};
use crate::Result;
use crate::report::{BarSeries, Bars, Figure, Heatmap, Lines, Scale, Section, Series, SeriesStyle};

/// The frontier.
pub(super) fn frontier(frontier: &Frontier) -> Result<Section> {
    let worth = |point: &&FrontierPoint| Some((100.0 * point.active_share, point.recovery?));
    let series = |name: &str, style: SeriesStyle, points: &[&FrontierPoint]| Series {
        name: name.into(),
        points: points.iter().filter_map(worth).map(|(share, recovery)| (share, 100.0 * recovery.mean)).collect(),
        interval: Some(points.iter().filter_map(worth).map(|(_, r)| (100.0 * r.low, 100.0 * r.high)).collect()),
        style,
    };
    let of = |form: &str| frontier.points.iter().filter(|point| point.form == form).collect::<Vec<_>>();
    let fixed = of("fixed");
    let mut drawn = vec![
        series("best fixed k", SeriesStyle::Marked, &leading(&fixed)),
        // Their intervals, over one another, would hide them.
        Series { interval: None, ..series("all fixed k", SeriesStyle::Points, &fixed) },
    ];
    for form in ["nucleus", "entropy", "surprisal"] {
        let points = of(form);
        if !points.is_empty() {
            drawn.push(series(form, SeriesStyle::Points, &points));
        }
    }
    let lines = Lines {
        title: "What the MLPs are worth, by how much of them is active".into(),
        x_label: "active neurons, %".into(),
        y_label: "recovery, %".into(),
        series: drawn,
        log_x: false,
    };
    Ok(Section {
        heading: "How much must be active?".into(),
        prose: vec![format!(
            "Each point routes the test split with another number of groups and of experts in each, or lets the routers' own certainty decide how many \
             (PFAG), with routers as they were fitted. Recovery is (L without MLPs − L)/(L without MLPs − L dense): {:.3} nats a token without \
             any MLP, {:.3} with all. The best fixed k are picked among these very points; `surprisal` also takes a first pass, all active, which its share \
             leaves out.",
            frontier.without, frontier.dense
        )],
        figures: vec![Figure::plot(
            "frontier",
            &lines,
            format!(
                "At most {} test tokens a task; 95 % intervals over documents, paired with the dense model.",
                frontier.tokens
            ),
        )?],
    })
}

/// The points that no other one beats at as many active neurons or fewer.
fn leading<'a>(points: &[&'a FrontierPoint]) -> Vec<&'a FrontierPoint> {
    let mut best: Vec<&FrontierPoint> = Vec::new();
    for point in points {
        if best.last().is_none_or(|last| point.loss.mean < last.loss.mean) {
            best.push(point);
        }
    }
    best
}

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
