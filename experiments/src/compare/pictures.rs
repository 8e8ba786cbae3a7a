//! The comparison's page: its tables, and the curves behind them.

use super::claim::{Trial, verdict};
use super::outcome::{Finished, Outcome, Via};
use super::{Cell, CompareConfig, causal};
use crate::report::{BarSeries, Bars, Figure, Lines, Page, Section, Series, SeriesStyle};
use tinyonn::Result;
use tinyonn::imaging::LabelSource;

/// Writes `report.html` and its figures into the comparison's folder.
///
/// # Errors
/// What the system reports.
pub fn write_report(outcome: &Outcome, trials: &[Trial], config: &CompareConfig) -> Result<()> {
    let mut sections = Vec::new();
    for (name, corpus) in &outcome.corpora {
        sections.push(Section {
            heading: format!("In pictures: {name}"),
            prose: vec![
                "Loss and recovery along the paths of each source of labels, the task known, no router between; means over seeds, 95 % intervals over the \
                 documents of all seeds, paired."
                    .into(),
            ],
            figures: [outcome.frontier(config, name, corpus)?, outcome.differences(config, name, corpus)?]
                .into_iter()
                .flatten()
                .chain(causal::pictures(name, corpus)?)
                .collect(),
        });
    }
    for told in outcome.tables(config, trials) {
        sections.push(Section {
            heading: told.heading,
            prose: Vec::new(),
            figures: vec![Figure::table(&told.table, told.prose)?],
        });
    }
    let page = Page {
        title: config.study().title.into(),
        lead: verdict(trials),
        facts: vec![
            ("seeds".into(), config.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            ("cells a seed and text".into(), config.cells().len().to_string()),
        ],
        sections,
    };
    page.write(&config.out)
}

impl Outcome {
    /// Recovery against active share, a curve a source.
    fn frontier(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Result<Option<Figure>> {
        let best = Cell { routed: false, ..config.best.clone() };
        let cells: Vec<Cell> = config.cells().into_iter().filter(|cell| is_of(cell, &best, false)).collect();
        let mut series: Vec<Series> = Vec::new();
        for source in sources(&cells) {
            let mut points: Vec<(f64, f64, (f64, f64))> = Vec::new();
            for cell in cells.iter().filter(|cell| cell.labels == source) {
                if let Some(recovery) = self.recovery(corpus, cell, Via::Paths) {
                    let share = 100.0 * cell.active_experts() as f64 / cell.experts().max(1) as f64;
                    points.push((share, 100.0 * recovery.mean, (100.0 * recovery.low, 100.0 * recovery.high)));
                }
            }
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            if points.len() > 1 {
                series.push(Series {
                    name: source.to_string().replace('_', " "),
                    points: points.iter().map(|(x, y, _)| (*x, *y)).collect(),
                    interval: Some(points.iter().map(|(_, _, interval)| *interval).collect()),
                    style: SeriesStyle::Marked,
                });
            }
        }
        if series.is_empty() {
            return Ok(None);
        }
        let lines = Lines {
            title: format!("What the MLPs are worth along each source's paths ({name})"),
            x_label: "active experts, %".into(),
            y_label: "recovery, %".into(),
            series,
            log_x: false,
        };
        Figure::plot(format!("frontier-{name}"), &lines, format!("`{}` partition.", best.partition)).map(Some)
    }

    /// What each source loses against ∫SPS in the best setting.
    fn differences(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Result<Option<Figure>> {
        let best = Cell { routed: false, ..config.best.clone() };
        let sps = Cell { labels: LabelSource::SPS, ..best.clone() };
        let cells = config.cells();
        let mut rows: Vec<(String, tinyonn::metrics::Interval)> = Vec::new();
        for cell in cells.iter().filter(|cell| is_of(cell, &best, false) && cell.top_k == best.top_k && **cell != sps) {
            if let Some(delta) = self.paired(corpus, (cell, Via::Paths), (&sps, Via::Paths)) {
                rows.push((cell.labels.to_string().replace('_', " "), delta));
            }
        }
        rows.sort_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
        if rows.is_empty() {
            return Ok(None);
        }
        let bars = Bars {
            title: format!("Loss along each source's paths minus loss along ∫SPS paths ({name})"),
            value_label: "nats a token; left of zero is better than ∫SPS".into(),
            categories: rows.iter().map(|(name, _)| name.clone()).collect(),
            series: vec![BarSeries {
                name: "difference".into(),
                values: rows.iter().map(|(_, delta)| delta.mean).collect(),
                whiskers: Some(rows.iter().map(|(_, delta)| (delta.low, delta.high)).collect()),
            }],
            reference: None,
        };
        let caption = format!("k = {}, `{}` partition.", super::told::times(&best.top_k), best.partition);
        Figure::plot(format!("differences-{name}"), &bars, caption).map(Some)
    }
}

/// Whether a cell differs from `best` in share and source alone.
fn is_of(cell: &Cell, best: &Cell, routed: bool) -> bool {
    let same = Cell { top_k: best.top_k.clone(), labels: best.labels, routed, router: best.router, ..cell.clone() };
    cell.routed == routed && same == Cell { routed, ..best.clone() }
}

fn sources(cells: &[Cell]) -> Vec<LabelSource> {
    let mut sources = Vec::new();
    for cell in cells {
        if !sources.contains(&cell.labels) {
            sources.push(cell.labels);
        }
    }
    sources
}
