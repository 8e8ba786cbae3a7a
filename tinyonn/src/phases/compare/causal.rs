//! Causal validation over seeds: what a task loses without the units that its image points at.

use super::outcome::{Finished, mean};
use super::told::{Told, each, over_seeds};
use crate::Result;
use crate::metrics::Interval;
use crate::phases::causal::Intervention;
use crate::phases::causal_page::{DRAWN, chosen_by, matrix, stem};
use crate::report::{BarSeries, Bars, Column, Figure, Table, common_range};

/// One kind of intervention, seed by seed.
struct Row<'a> {
    unit: &'a str,
    source: &'a str,
    seeds: Vec<&'a Intervention>,
}

impl Row<'_> {
    fn over(&self, value: impl Fn(&Intervention) -> f64) -> f64 {
        mean(&self.seeds.iter().map(|found| value(found)).collect::<Vec<_>>())
    }

    fn specificity(&self) -> Vec<f64> {
        self.seeds.iter().map(|found| found.specificity.mean).collect()
    }

    /// Δ, mean over seeds.
    fn delta(&self) -> Vec<Vec<f64>> {
        let tasks = self.seeds.first().map_or(0, |found| found.delta.len());
        let of = |touched: usize, measured: usize| self.over(|found| found.delta[touched][measured]);
        (0..tasks).map(|touched| (0..tasks).map(|measured| of(touched, measured)).collect()).collect()
    }

    /// `0.301 (5 of 5)`: the mean, and how many seeds' own intervals are above zero.
    fn sure(&self, of: impl Fn(&Intervention) -> Option<Interval>) -> String {
        let found: Vec<Interval> = self.seeds.iter().filter_map(|found| of(found)).collect();
        if found.is_empty() {
            return "–".into();
        }
        let above = found.iter().filter(|interval| interval.low > 0.0).count();
        let mean = mean(&found.iter().map(|interval| interval.mean).collect::<Vec<_>>());
        format!("{mean:+.3} ({above} of {})", found.len())
    }
}

/// What took outputs away, or what amplified them, in the order in which it was done.
fn rows(corpus: &[Finished], takes: bool) -> Vec<Row<'_>> {
    let first = corpus.first().map_or(&[][..], |finished| &finished.subject.causal);
    let row = |found: &'_ Intervention| {
        let same =
            |other: &&Intervention| other.source == found.source && other.unit == found.unit && other.takes() == takes;
        corpus.iter().filter_map(|finished| finished.subject.causal.iter().find(same)).collect::<Vec<_>>()
    };
    let done = first.iter().filter(|found| found.takes() == takes);
    done.map(|found| Row { unit: &found.unit, source: &found.source, seeds: row(found) }).collect()
}

/// One row a source and unit.
pub(super) fn table(name: &str, corpus: &[Finished]) -> Told {
    let amplified = rows(corpus, false);
    let row = |row: &Row<'_>| {
        let own = |found: &Intervention| {
            let diagonal = found.delta.iter().enumerate().filter_map(|(task, row)| row.get(task));
            diagonal.sum::<f64>() / found.delta.len().max(1) as f64
        };
        let same = amplified.iter().find(|other| (other.unit, other.source) == (row.unit, row.source));
        vec![
            format!("{}s", row.unit).into(),
            chosen_by(row.source).into(),
            row.sure(|found| Some(found.specificity)).into(),
            each(&row.specificity()).into(),
            row.sure(|found| found.beyond_matched).into(),
            row.over(own).into(),
            same.map_or(f64::NAN, |same| mean(&same.specificity())).into(),
            row.over(|found| found.norm_to_sps).into(),
            row.over(|found| found.norm_to_matched.unwrap_or(f64::NAN)).into(),
        ]
    };
    Told {
        heading: format!("Does a task need what its image points at? ({name})"),
        prose: "The tenth of every layer's units that scores highest on a task is ablated (× 0) or amplified (× 1.5), all else active. Specificity: what that costs the task \
                itself minus what it costs the other tasks, in nats a token; above zero, the score finds what its own task needs. Beyond matched: the score's own units beside random \
                others, as many and of the same output norm, drawn three times; where even the strongest others have less (the last column), the score's own outputs are weakened \
                so that they lose no more (at random's norm). In brackets the models whose own 95 % interval over documents is above zero. Norms: √Σ E[h²] ‖W_d[:, i]‖². On a quarter of the test \
                tokens; experts are those of the reference's partition."
            .into(),
        table: Table {
            columns: vec![
                Column::text("units"),
                Column::text("chosen by"),
                Column::text("specificity, × 0"),
                Column::text("by seed"),
                Column::text("beyond matched"),
                Column::number("cost to the task itself, × 0", 3),
                Column::number("specificity, × 1.5", 3),
                Column::number("norm ÷ ∫SPS'", 3),
                Column::number("norm ÷ matched", 3),
            ],
            rows: rows(corpus, true).iter().map(row).collect(),
        },
    }
}

/// Specificity by source, whiskers from the least seed to the most; and matrices, mean over seeds.
pub(super) fn pictures(name: &str, corpus: &[Finished]) -> Result<Vec<Figure>> {
    let tasks = corpus.first().map_or(&[][..], |finished| &finished.subject.tasks);
    let mut figures = Vec::new();
    for unit in ["expert", "neuron"] {
        let mut ablated = rows(corpus, true);
        ablated.retain(|row| row.unit == unit);
        ablated.sort_by(|a, b| mean(&b.specificity()).total_cmp(&mean(&a.specificity())));
        if ablated.is_empty() {
            continue;
        }
        figures.push(specificity((name, unit), &ablated)?);
        let drawn: Vec<(&Row<'_>, Vec<Vec<f64>>)> = DRAWN
            .iter()
            .filter_map(|source| ablated.iter().find(|row| row.source == *source))
            .map(|row| (row, row.delta()))
            .collect();
        let range = common_range(drawn.iter().map(|(_, delta)| delta));
        for (row, delta) in &drawn {
            let caption = format!("{name}, {}. One scale for all such matrices.", over_seeds(row.seeds.len()));
            let map = matrix((unit, row.source, true), delta, tasks, range);
            figures.push(Figure::plot(format!("{}-{name}", stem((unit, row.source, true))), &map, caption)?);
        }
    }
    Ok(figures)
}

fn specificity((name, unit): (&str, &str), ablated: &[Row<'_>]) -> Result<Figure> {
    let ends = |seeds: Vec<f64>| {
        let over = |f: fn(f64, f64) -> f64, start| seeds.iter().copied().fold(start, f);
        (over(f64::min, f64::INFINITY), over(f64::max, f64::NEG_INFINITY))
    };
    let bars = Bars {
        title: format!("What a task loses more than others do without a tenth of its {unit}s ({name})"),
        value_label: "diagonal minus rest, nats a token".into(),
        categories: ablated.iter().map(|row| chosen_by(row.source)).collect(),
        series: vec![BarSeries {
            name: "× 0".into(),
            values: ablated.iter().map(|row| mean(&row.specificity())).collect(),
            whiskers: Some(ablated.iter().map(|row| ends(row.specificity())).collect()),
        }],
        reference: None,
    };
    let caption = "Mean over seeds; whiskers from the least seed to the most.";
    Figure::plot(format!("specificity-{unit}-{name}"), &bars, caption)
}
