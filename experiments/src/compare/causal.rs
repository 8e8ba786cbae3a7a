//! Causal validation over seeds: what a task loses without the units that its image points at.

use super::outcome::{Finished, mean};
use super::told::{Told, each, over_seeds};
use crate::causal::{AS_OTHERS, AS_RANDOM, Intervention};
use crate::pages::causal::{DRAWN, bars, chosen_by, matrix, stem, titles};
use crate::report::{Column, Figure, Table, common_range};
use tinyonn::Result;
use tinyonn::metrics::{Interval, mean_interval};

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

    /// Of each seed that has it.
    fn found(&self, of: impl Fn(&Intervention) -> Option<Interval>) -> Vec<Interval> {
        self.seeds.iter().filter_map(|found| of(found)).collect()
    }

    /// `+0.301 ± 0.040 (5 of 5)`: the mean, half its 95 % interval over models, and how many models' own intervals are above zero.
    fn sure(&self, of: impl Fn(&Intervention) -> Option<Interval>) -> String {
        let found = self.found(of);
        if found.is_empty() {
            return "–".into();
        }
        let above = found.iter().filter(|interval| interval.low > 0.0).count();
        let means: Vec<f64> = found.iter().map(|interval| interval.mean).collect();
        let half = mean_interval(&means).map_or("–".into(), |models| format!("{:.3}", models.high - models.mean));
        format!("{:+.3} ± {half} ({above} of {})", mean(&means), found.len())
    }
}

/// What was done with `factor`, in the order in which it was done.
fn rows(corpus: &[Finished], factor: f64) -> Vec<Row<'_>> {
    let first = corpus.first().map_or(&[][..], |finished| &finished.subject.causal);
    let row = |found: &'_ Intervention| {
        let same =
            |other: &&Intervention| other.source == found.source && other.unit == found.unit && other.factor == factor;
        corpus.iter().filter_map(|finished| finished.subject.causal.iter().find(same)).collect::<Vec<_>>()
    };
    let done = first.iter().filter(|found| found.factor == factor);
    done.map(|found| Row { unit: &found.unit, source: &found.source, seeds: row(found) }).collect()
}

/// What ∫SPS' and activation's units are to their task, in a sentence.
pub(super) fn in_short(name: &str, corpus: &[Finished]) -> Option<String> {
    let ablated = rows(corpus, 0.0);
    let of = |unit: &str, source: &str| ablated.iter().find(|row| row.unit == unit && row.source == source);
    let beyond = |unit: &str, source: String| {
        of(unit, &source).map_or("–".into(), |row| row.sure(|found| found.beyond_random))
    };
    let said = |unit: &str, score: &str| {
        let own = of(unit, score)?.sure(|found| Some(found.specificity));
        let [random, others] = [AS_RANDOM, AS_OTHERS].map(|at| beyond(unit, format!("{score}{at}")));
        Some(format!("{} {own}, {random} beyond random units, {others} beyond strong others", chosen_by(score)))
    };
    let of_unit = |unit: &str| {
        let scores: Vec<String> = ["sps", "activation"].into_iter().filter_map(|score| said(unit, score)).collect();
        (!scores.is_empty()).then(|| format!("{unit}s by {}", scores.join("; by ")))
    };
    let units: Vec<String> = ["expert", "neuron"].into_iter().filter_map(of_unit).collect();
    (!units.is_empty()).then(|| {
        format!(
            "What a task of `{name}` text loses more than others do without a tenth of its units, nats a token, ± over models, in brackets the models \
             that are sure of it: {}. Beyond: at one number and one norm of outputs.",
            units.join("; ")
        )
    })
}

/// One row a source and unit.
pub(super) fn table(name: &str, corpus: &[Finished]) -> Told {
    let amplified = rows(corpus, 1.5);
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
            row.sure(|found| found.beyond_random).into(),
            row.over(own).into(),
            same.map_or("–".into(), |same| same.sure(|found| Some(found.specificity))).into(),
            same.map_or("–".into(), |same| same.sure(|found| found.beyond_random)).into(),
            row.over(|found| found.norm_to_sps).into(),
            row.over(|found| found.norm_to_matched.unwrap_or(f64::NAN)).into(),
        ]
    };
    Told {
        heading: format!("Does a task need what its image points at? ({name})"),
        prose: "The tenth of every layer's units that scores highest on a task is ablated (× 0) or amplified (× 1.5), all else active. Specificity: what that costs the task \
                itself minus what it costs the other tasks, in nats a token; above zero, the score finds what its own task needs. Beyond others: at one number and one norm of outputs, minus \
                the specificity of random units, or of others that are not the score's own and are drawn to have its norm, three draws; where these have less norm, only so large a \
                share of the score's own outputs is taken or added (at random's norm, at others' norm). Others that are strong on the task's text are the harder null. ± is half the 95 % \
                interval over models, in brackets the models whose own interval over documents is above zero. Norms: √Σ E[h²] ‖W_d[:, i]‖², cross terms left out. On a quarter of the test \
                tokens; experts are those of the reference's partition."
            .into(),
        table: Table {
            columns: vec![
                Column::text("units"),
                Column::text("chosen by"),
                Column::text("specificity, × 0"),
                Column::text("by seed"),
                Column::text("beyond others, × 0"),
                Column::number("cost to the task itself, × 0", 3),
                Column::text("specificity, × 1.5"),
                Column::text("beyond others, × 1.5"),
                Column::number("norm ÷ ∫SPS'", 3),
                Column::number("norm ÷ matched", 3),
            ],
            rows: rows(corpus, 0.0).iter().map(row).collect(),
        },
    }
}

/// Specificity by source, whiskers from the least seed to the most; and matrices, mean over seeds.
pub(super) fn pictures(name: &str, corpus: &[Finished]) -> Result<Vec<Figure>> {
    let tasks = corpus.first().map_or(&[][..], |finished| &finished.subject.tasks);
    let mut figures = Vec::new();
    for (unit, factor) in [("expert", 0.0), ("expert", 1.5), ("neuron", 0.0), ("neuron", 1.5)] {
        let mut touched = rows(corpus, factor);
        touched.retain(|row| row.unit == unit);
        touched.sort_by(|a, b| mean(&b.specificity()).total_cmp(&mean(&a.specificity())));
        if touched.is_empty() {
            continue;
        }
        figures.push(specificity((name, unit, factor), &touched)?);
        let drawn: Vec<(&Row<'_>, Vec<Vec<f64>>)> = DRAWN
            .iter()
            .filter_map(|source| touched.iter().find(|row| row.source == *source))
            .map(|row| (row, row.delta()))
            .collect();
        let range = common_range(drawn.iter().map(|(_, delta)| delta));
        for (row, delta) in &drawn {
            let caption = format!("{name}, {}. One scale for all such matrices.", over_seeds(row.seeds.len()));
            let map = matrix((unit, row.source, factor), delta, tasks, range);
            figures.push(Figure::plot(format!("{}-{name}", stem((unit, row.source, factor))), &map, caption)?);
        }
    }
    Ok(figures)
}

fn specificity((name, unit, factor): (&str, &str, f64), touched: &[Row<'_>]) -> Result<Figure> {
    let over_seeds = |row: &Row<'_>| {
        let seeds = row.specificity();
        let (low, high) = (seeds.iter().copied().reduce(f64::min), seeds.iter().copied().reduce(f64::max));
        Interval { mean: mean(&seeds), low: low.unwrap_or(f64::NAN), high: high.unwrap_or(f64::NAN) }
    };
    let found: Vec<(&str, Interval)> = touched.iter().map(|row| (row.source, over_seeds(row))).collect();
    let (stem, title) = titles(unit, factor);
    let bars = bars(format!("{title} ({name})"), factor, &found);
    let caption = "Mean over seeds; whiskers from the least seed to the most.";
    Figure::plot(format!("{stem}-{name}"), &bars, caption)
}
