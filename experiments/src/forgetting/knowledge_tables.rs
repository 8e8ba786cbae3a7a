//! The tables and the answer of the study of a pretrained model.

use tinyonn::metrics::Interval;
use tinyonn::phases::Method;

use super::matched::forgets_over;
use super::tables::{GATE, NONE, NOTHING, Told, cells, leading, within};
use super::{Kept, Outcome, Screened, StudyConfig};
use crate::report::{Column, Table};

pub(super) const BENCHMARKS: &str = "What is asked";
pub(super) const KEPT: &str = "What is still known at equal learning";

/// What is asked, and what the original answers.
pub(super) fn benchmarks(outcome: &Outcome) -> Told {
    let columns = ["benchmark", "items", "right", "floor"];
    let asked = outcome.screen.first().and_then(|run| run.record.knowledge.as_ref());
    let rows = asked.into_iter().flat_map(|known| &known.benchmarks).map(|task| {
        let Interval { mean, low, high } = task.accuracy;
        cells(vec![
            task.task.clone(),
            task.items.to_string(),
            format!("{mean:.3} [{low:.3}, {high:.3}]"),
            format!("{:.3}", task.floor),
        ])
    });
    Told {
        heading: BENCHMARKS,
        prose: "Of the benchmarks those where the original's accuracy lies above its floor, the greater of chance and the best constant answer; 95 % intervals over \
                items."
            .into(),
        table: Table { columns: columns.map(Column::text).to_vec(), rows: rows.collect() },
    }
}

/// What dense fine-tuning does to what was known, over each task, at each rate.
pub(super) fn gate(outcome: &Outcome, config: &StudyConfig) -> Told {
    let mut columns = vec![Column::text("method"), Column::text("optimizer"), Column::text("rate")];
    let tasks = config.orders.first().map(Vec::as_slice).unwrap_or_default();
    for task in tasks {
        columns.push(Column::text(&format!("{}: divergence", task.name())));
        columns.push(Column::text(&format!("{}: right", task.name())));
    }
    let seed = config.screen_seed;
    let rows = outcome.screen.iter().filter(|run| run.trial.method == Method::DENSE).map(|run| {
        let of = |task: usize| match (run.record.old_rise(task, seed), run.record.right_gained(task, seed)) {
            (Some(rise), Some(gained)) => {
                let nothing = if forgets_over(&run.record, task, seed) { "" } else { NOTHING };
                let colon = if nothing.is_empty() { "" } else { ": " };
                [within(Some(rise)), format!("{nothing}{colon}{}", within(Some(gained)))]
            }
            _ => ["diverged".into(), "diverged".into()],
        };
        cells(leading(&run.trial).into_iter().chain((0..tasks.len()).flat_map(of)).collect())
    });
    Told {
        heading: GATE,
        prose: "Over each task, in the order of the columns: by how much the divergence from the original rises, nats a token, with 95 % intervals over documents of what the \
                original wrote; and by how much the share of right answers rises, over items; both paired. A task and rate are compared only where both are worse beyond \
                their intervals, at that rate and at the one that sets the targets."
            .into(),
        table: Table { columns, rows: rows.collect() },
    }
}

/// Dense fine-tuning at the rate at which it forgets least.
fn dense(outcome: &Outcome) -> Option<(&Screened, &Kept)> {
    let dense = outcome.best(Method::DENSE)?;
    Some((dense, dense.matched.kept.as_ref()?))
}

/// Each trial at equal learning, against dense fine-tuning at its best.
pub(super) fn kept(outcome: &Outcome, config: &StudyConfig) -> Told {
    let columns =
        ["method", "optimizer", "rate", "divergence", "minus dense", "right answers", "minus dense, right answers"];
    let dense = dense(outcome);
    let seed = config.screen_seed;
    let rows = outcome.screen.iter().map(|run| {
        let figures = match &run.matched.kept {
            _ if run.matched.is_without_forgetting() => [NOTHING, NONE, NONE, NONE].map(str::to_owned),
            None => [NONE; 4].map(str::to_owned),
            Some(own) => {
                let other = dense.filter(|(dense, _)| dense.trial != run.trial);
                let minus = other.map(|(_, dense)| own.minus(dense, seed));
                [
                    within(Some(own.divergence(seed))),
                    within(minus.map(|(divergence, _)| divergence)),
                    within(Some(own.right(seed))),
                    within(minus.map(|(_, right)| right)),
                ]
            }
        };
        cells(leading(&run.trial).into_iter().chain(figures).collect())
    });
    let against = dense.map_or("none of its rates".into(), |(dense, _)| dense.trial.rate_name());
    Told {
        heading: KEPT,
        prose: format!(
            "Where each task's held-out loss reaches its target, mean over the tasks that are compared: the divergence from the original on what it wrote itself, nats a token, \
             and how many more of the items are answered rightly than by the original, as a share. *Minus dense*: paired, against dense fine-tuning at {against}, where it \
             forgets least. 95 % intervals over documents and over items, of one seed. A method that does not reach all targets has no figures."
        ),
        table: Table { columns: columns.map(Column::text).to_vec(), rows: rows.collect() },
    }
}

/// What the study says in short: Surprise Min-K first, then each other method at its best rate.
pub(super) fn in_short(outcome: &Outcome, config: &StudyConfig) -> Vec<String> {
    let Some((reference, other)) = dense(outcome) else {
        let said = "At no rate that was tried does dense fine-tuning make both figures worse beyond their intervals: no forgetting here.";
        return vec![if outcome.screen.is_empty() {
            "Nothing was run: nothing is decided.".into()
        } else {
            said.into()
        }];
    };
    let mut methods = config.methods();
    methods.retain(|method| *method != Method::DENSE);
    methods.sort_by_key(|method| method.name() != "smk");
    let line = |method: &Method| {
        let name = method.name();
        let best = outcome.best(*method)?;
        let rate = best.trial.rate_name();
        let Some(own) = &best.matched.kept else {
            return Some(format!("`{name}` learns not as far as dense fine-tuning at any rate that was tried."));
        };
        let (divergence, right) = own.minus(other, config.screen_seed);
        let verdict = |low: f64, high: f64| match (low, high) {
            (_, high) if high < 0.0 => "less",
            (low, _) if low > 0.0 => "more",
            _ => "not surely less or more",
        };
        Some(format!(
            "`{name}` at {rate} forgets {} by divergence ({} nats a token) and {} by right answers ({}) than dense fine-tuning at {}, at equal learning.",
            verdict(divergence.low, divergence.high),
            within(Some(divergence)),
            verdict(-right.high, -right.low),
            within(Some(right)),
            reference.trial.rate_name()
        ))
    };
    methods.iter().filter_map(line).collect()
}
