//! The tables and the answer of the study of a pretrained model.

use tinyonn::metrics::Interval;
use tinyonn::phases::Method;
use tinyonn::train::UpdateRule;

use super::matched::forgets_over;
use super::tables::{GATE, NONE, NOTHING, Told, cells, leading, within};
use super::{Kept, Matched, Outcome, Screened, StudyConfig};
use crate::report::{Column, Table};

pub(super) const BENCHMARKS: &str = "What is asked";
pub(super) const KEPT: &str = "What is still known at equal learning";
pub(super) const ANY_RATE: &str = "The same at every rate";
pub(super) const BY_TASK: &str = "Each task by itself";

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

/// Each task by itself at equal learning, at every rate, whether it is compared or not: all runs begin alike in the first one alone.
pub(super) fn by_task(outcome: &Outcome, config: &StudyConfig) -> Told {
    let at: At = |run| &run.at_any_rate;
    let tasks = config.orders.first().map(Vec::as_slice).unwrap_or_default();
    let (seed, dense) = (config.screen_seed, dense(outcome, at));
    let against = dense.map_or("none of its rates".into(), |(dense, _)| dense.trial.rate_name());
    let mut columns = ["method", "optimizer", "rate"].map(Column::text).to_vec();
    for task in tasks {
        columns.extend(
            ["steps", "divergence", "minus dense"].map(|what| Column::text(&format!("{}: {what}", task.name()))),
        );
    }
    let kept = |run: &Screened, task: usize| {
        let own: Vec<bool> = (0..tasks.len()).map(|other| other == task).collect();
        Kept::new(&run.record, &at(run).reached, &own)
    };
    let rows = outcome.screen.iter().map(|run| {
        let of = |task: usize| match (at(run).reached.get(task).copied().flatten(), kept(run, task)) {
            (Some(reached), Some(own)) => {
                let other =
                    dense.filter(|(dense, _)| dense.trial != run.trial).and_then(|(dense, _)| kept(dense, task));
                let minus = other.map(|other| own.minus(&other, seed).0);
                [format!("{:.1}", reached.step), within(Some(own.divergence(seed))), within(minus)]
            }
            _ => [NONE; 3].map(str::to_owned),
        };
        cells(leading(&run.trial).into_iter().chain((0..tasks.len()).flat_map(of)).collect())
    });
    Told {
        heading: BY_TASK,
        prose: format!(
            "The divergence where a task's held-out loss reaches its target, each task by itself, whether it is compared or not. All runs begin alike in the first task; \
             into a later one each brings what its steps of the tasks before have made of the weights, however far it learnt these. *Minus dense* is against dense \
             fine-tuning at {against}."
        ),
        table: Table { columns, rows: rows.collect() },
    }
}

/// The tasks that the targets' rate lets into the comparison.
fn compared(outcome: &Outcome, config: &StudyConfig) -> String {
    let names = config.orders.first().into_iter().flatten().map(|task| task.name());
    let flags = outcome.screen.first().map(|run| run.at_any_rate.compared.clone()).unwrap_or_default();
    let names: Vec<String> =
        names.zip(flags).filter(|(_, compared)| *compared).map(|(name, _)| format!("`{name}`")).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Which of a trial's figures at equal learning are meant.
type At = fn(&Screened) -> &Matched;

/// Dense fine-tuning at the rate at which it forgets least.
fn dense(outcome: &Outcome, at: At) -> Option<(&Screened, &Kept)> {
    best(outcome, Method::DENSE, at)
}

/// A method at the rate of AdamW at which it forgets least, of those that reach the targets.
fn best(outcome: &Outcome, method: Method, at: At) -> Option<(&Screened, &Kept)> {
    let own = outcome.screen.iter().filter(|run| run.trial.method == method && run.trial.rule == UpdateRule::Adamw);
    let learnt = own.filter_map(|run| Some((at(run).rise()?, run, at(run).kept.as_ref()?)));
    learnt.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, run, kept)| (run, kept))
}

/// Each trial at equal learning, against dense fine-tuning at its best.
pub(super) fn kept(outcome: &Outcome, config: &StudyConfig) -> Told {
    let at: At = |run| &run.matched;
    let against = dense(outcome, at).map_or("none of its rates".into(), |(dense, _)| dense.trial.rate_name());
    let (tasks, every) = (compared(outcome, config), config.knowledge.as_ref().map_or(0, |known| known.every));
    Told {
        heading: KEPT,
        prose: format!(
            "Where each task's held-out loss reaches its target, mean over the tasks that are compared ({tasks}): the divergence from the original on what it wrote itself, nats a \
             token, and how many more of the items are answered rightly than by the original, as a share, linear between questions, which are asked every {every} steps. *Minus dense*: paired, against dense fine-tuning at {against}, where it \
             forgets least. 95 % intervals over documents and over items, of one seed. A method that does not reach all targets has no figures."
        ),
        table: at_equal_learning(outcome, config, at),
    }
}

/// The same of every rate, whether dense fine-tuning forgets at it or not.
pub(super) fn at_any_rate(outcome: &Outcome, config: &StudyConfig) -> Told {
    let at: At = |run| &run.at_any_rate;
    let against = dense(outcome, at).map_or("none of its rates".into(), |(dense, _)| dense.trial.rate_name());
    Told {
        heading: ANY_RATE,
        prose: format!(
            "The same figures of all rates, over the tasks over which dense fine-tuning forgets at the rate that sets the targets. *Minus dense* is against dense fine-tuning at \
             {against} here. Methods are at their best at different rates, so that this table shows what the rule above leaves out; where dense fine-tuning forgets nothing \
             beyond its intervals, a difference says little."
        ),
        table: at_equal_learning(outcome, config, at),
    }
}

fn at_equal_learning(outcome: &Outcome, config: &StudyConfig, at: At) -> Table {
    let columns = [
        "method",
        "optimizer",
        "rate",
        "steps",
        "divergence",
        "minus dense",
        "right answers",
        "minus dense, right answers",
    ];
    let dense = dense(outcome, at);
    let seed = config.screen_seed;
    let rows = outcome.screen.iter().map(|run| {
        let figures = match &at(run).kept {
            _ if at(run).is_without_forgetting() => [NOTHING, NONE, NONE, NONE, NONE].map(str::to_owned),
            None => [NONE; 5].map(str::to_owned),
            Some(own) => {
                let other = dense.filter(|(dense, _)| dense.trial != run.trial);
                let minus = other.map(|(_, dense)| own.minus(dense, seed));
                [
                    at(run).steps().map_or(NONE.into(), |steps| format!("{steps:.1}")),
                    within(Some(own.divergence(seed))),
                    within(minus.map(|(divergence, _)| divergence)),
                    within(Some(own.right(seed))),
                    within(minus.map(|(_, right)| right)),
                ]
            }
        };
        cells(leading(&run.trial).into_iter().chain(figures).collect())
    });
    Table { columns: columns.map(Column::text).to_vec(), rows: rows.collect() }
}

/// What the study says in short: Surprise Min-K first, then each other method at its best rate.
pub(super) fn in_short(outcome: &Outcome, config: &StudyConfig) -> Vec<String> {
    let Some((reference, other)) = dense(outcome, |run| &run.matched) else {
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
            return Some(if best.matched.is_without_forgetting() {
                format!(
                    "`{name}` is not compared: over no task does dense fine-tuning at {rate} make both figures worse beyond their intervals."
                )
            } else {
                format!("`{name}` learns not as far as dense fine-tuning at any rate that was tried.")
            });
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
    methods.iter().filter_map(line).chain(in_short_at_any_rate(outcome, config, &methods)).collect()
}

/// Each of `methods` at its own best rate against dense fine-tuning at its own, by divergence.
fn in_short_at_any_rate(outcome: &Outcome, config: &StudyConfig, methods: &[Method]) -> Option<String> {
    let at: At = |run| &run.at_any_rate;
    let (reference, other) = dense(outcome, at)?;
    let of = |method: &Method| {
        let (run, own) = best(outcome, *method, at)?;
        let (divergence, _) = own.minus(other, config.screen_seed);
        Some(format!("`{}` at {} {}", method.name(), run.trial.rate_name(), within(Some(divergence))))
    };
    let each: Vec<String> = methods.iter().filter_map(of).collect();
    (!each.is_empty()).then(|| {
        format!(
            "Each method at the rate at which it forgets least, against dense fine-tuning at the rate at which that does ({}), whether it forgets beyond its intervals there or not, nats a \
             token of divergence at equal learning: {}.",
            reference.trial.rate_name(),
            each.join(", ")
        )
    })
}
