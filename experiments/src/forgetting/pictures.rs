//! The pictures of the study.

use tinyonn::Result;
use tinyonn::metrics::mean_interval;
use tinyonn::train::UpdateRule;

use super::{Outcome, StudyConfig};
use crate::report::{BarSeries, Bars, Figure, Lines, Series, SeriesStyle};

/// All that there are runs for.
pub(super) fn figures(outcome: &Outcome, config: &StudyConfig) -> Result<Vec<Figure>> {
    let all = [paths(outcome, config)?, rates(outcome, config)?, finals(outcome)?];
    Ok(all.into_iter().flatten().collect())
}

/// Loss of the old text over that of the first task, a curve a method, from the first look to the last.
fn paths(outcome: &Outcome, config: &StudyConfig) -> Result<Option<Figure>> {
    let series: Vec<Series> = config
        .methods()
        .into_iter()
        .filter_map(|method| outcome.best(method))
        .map(|run| {
            let looks = run.record.looks.iter().filter(|look| look.task == 0);
            let mut points: Vec<(f64, f64)> = looks.map(|look| (look.new, look.old)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let style = SeriesStyle::Marked;
            Series { name: run.trial.method.name(), points, interval: None, style }
        })
        .collect();
    if series.is_empty() {
        return Ok(None);
    }
    let task = outcome.screen[0].record.tasks.first().cloned().unwrap_or_default();
    let lines = Lines {
        title: "Old text over new learning, in the first task".into(),
        x_label: format!("held-out loss of {task}, nats a token (learning goes left)"),
        y_label: config.old_measure().into(),
        series,
        log_x: false,
    };
    Figure::plot("first-task", &lines, "Each method at the rate that did best in the screen.").map(Some)
}

/// What the old text has lost at equal learning, over the rate.
fn rates(outcome: &Outcome, config: &StudyConfig) -> Result<Option<Figure>> {
    let mut series: Vec<Series> = Vec::new();
    for run in outcome.screen.iter().filter(|run| run.trial.rule == UpdateRule::Adamw) {
        let Some(rise) = run.matched.rise() else { continue };
        let (name, point) = (run.trial.method.name(), (run.trial.rate, rise));
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, points: vec![point], interval: None, style: SeriesStyle::Marked }),
        }
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    if series.is_empty() {
        return Ok(None);
    }
    let lines = Lines {
        title: "Forgetting of the old text at equal learning, over the rate".into(),
        x_label: "rate of AdamW".into(),
        y_label: format!("rise: {}, nats a token", config.old_measure()),
        series,
        log_x: true,
    };
    Figure::plot("rates", &lines, "A rate at which a task is not learnt is missing.").map(Some)
}

/// The finals.
fn finals(outcome: &Outcome) -> Result<Option<Figure>> {
    let known = outcome.finals.iter().filter_map(|finalist| {
        let rises: Vec<f64> = finalist.by_seed(|run| run.1.rise()).into_iter().flatten().collect();
        let interval = mean_interval(&rises)?;
        Some((finalist.trial.method.name(), interval))
    });
    let known: Vec<_> = known.collect();
    if known.is_empty() {
        return Ok(None);
    }
    let bars = Bars {
        title: "Forgetting of the old text at equal learning: the finals".into(),
        value_label: "rise of the old text's loss, nats a token".into(),
        categories: known.iter().map(|(name, _)| name.clone()).collect(),
        series: vec![BarSeries {
            name: "rise".into(),
            values: known.iter().map(|(_, rise)| rise.mean).collect(),
            whiskers: Some(known.iter().map(|(_, rise)| (rise.low, rise.high)).collect()),
        }],
        reference: None,
    };
    Figure::plot("finals", &bars, "Means over seeds, in each over orders; 95 % intervals over seeds.").map(Some)
}
