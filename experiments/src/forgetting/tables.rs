//! The tables of the study.

use tinyonn::metrics::Interval;
use tinyonn::phases::{ForgettingRecord, Method};

use super::{Matched, Outcome, Screened, StudyConfig, Trial, knowledge_tables};
use crate::report::{Column, Table, TableCell};

/// A table with its heading and what it shows.
pub(super) struct Told {
    pub(super) heading: &'static str,
    pub(super) prose: String,
    pub(super) table: Table,
}

pub(super) const GATE: &str = "Where dense fine-tuning forgets";
pub(super) const SCREEN: &str = "Screen: every method and rate, one seed, one order";
pub(super) const RATES: &str = "The highest constant rate that still learns";
pub(super) const FINALS: &str = "Finals: seeds that nothing was chosen by, all orders";
pub(super) const MATRICES: &str = "Matrices of the finals";

/// What stands where there is no forgetting to compare.
pub(super) const NOTHING: &str = "no forgetting here";
pub(super) const NONE: &str = "–";

/// The leading cells of a trial's row.
pub(super) fn leading(trial: &Trial) -> Vec<String> {
    vec![trial.method.name(), trial.rule_name().to_owned(), trial.rate_name()]
}

pub(super) fn cells(words: Vec<String>) -> Vec<TableCell> {
    words.into_iter().map(TableCell::from).collect()
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or(NONE.into(), |value| format!("{value:.decimals$}"))
}

fn signed(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |value| format!("{value:+.3}"))
}

pub(super) fn within(interval: Option<Interval>) -> String {
    interval.map_or(NONE.into(), |i| format!("{:+.3} [{:+.3}, {:+.3}]", i.mean, i.low, i.high))
}

/// All tables, in the order in which they are told.
pub(super) fn tables(outcome: &Outcome, config: &StudyConfig) -> Vec<Told> {
    let [screen, rates] = [screen(outcome, config), rates(outcome, config)];
    if config.knowledge.is_some() {
        let gate = knowledge_tables::gate(outcome, config);
        return vec![
            knowledge_tables::benchmarks(outcome),
            gate,
            knowledge_tables::kept(outcome, config),
            knowledge_tables::at_any_rate(outcome, config),
            knowledge_tables::by_task(outcome, config),
            screen,
            rates,
        ];
    }
    vec![gate(outcome, config), screen, rates, finals(outcome), matrices(outcome)]
}

/// What dense fine-tuning does to the old text over each task, at each rate.
fn gate(outcome: &Outcome, config: &StudyConfig) -> Told {
    let mut columns = vec![Column::text("method"), Column::text("optimizer"), Column::text("rate")];
    let tasks = config.orders.first().map(Vec::as_slice).unwrap_or_default();
    columns.extend(tasks.iter().map(|task| Column::text(task.name())));
    let rows = outcome.screen.iter().filter(|run| run.trial.method == Method::DENSE).map(|run| {
        let of = |task: usize| match run.record.old_rise(task, config.screen_seed) {
            Some(rise) if rise.low > 0.0 => within(Some(rise)),
            Some(rise) => format!("{NOTHING}: {}", within(Some(rise))),
            None => "diverged".into(),
        };
        cells(leading(&run.trial).into_iter().chain((0..tasks.len()).map(of)).collect())
    });
    Told {
        heading: GATE,
        prose: "By how much the old text's held-out loss rises over each task, in the order of the columns, nats a token; 95 % intervals over its documents, paired. \
                A task and rate are compared only where the interval lies above zero, at that rate and at the one that sets the targets."
            .into(),
        table: Table { columns, rows: rows.collect() },
    }
}

fn screen(outcome: &Outcome, config: &StudyConfig) -> Told {
    let columns = [
        "method",
        "optimizer",
        "rate",
        "tasks learnt",
        "old text at equal learning",
        "in the first task",
        "old text at equal ‖Δθ‖ (task's loss)",
        "old text, forgetting at the end",
        "earlier tasks, forgetting",
        "forward transfer",
        "last losses, mean",
        "‖Δθ‖",
        "weights stepped",
        "weights moved",
    ];
    let rows = outcome.screen.iter().map(|run| {
        let Screened { trial, record, matched, .. } = run;
        let equal = if matched.is_without_forgetting() { NOTHING.to_owned() } else { signed(matched.rise()) };
        let distance = matched.at_distance.map_or(NONE.into(), |(old, new)| format!("{old:+.3} ({new:.3})"));
        let figures = vec![
            format!("{} of {}", matched.learnt(), record.tasks.len()),
            equal,
            signed(matched.rises.first().copied().flatten()),
            distance,
            signed(record.old_forgetting()),
            signed(record.forgetting()),
            signed(record.forward_transfer()),
            number(last_losses(record), 3),
            number(record.looks.last().map(|look| look.distance), 2),
            format!("{:.0}", record.stepped),
            record.moved.to_string(),
        ];
        cells(leading(trial).into_iter().chain(figures).collect())
    });
    Told {
        heading: SCREEN,
        prose: format!(
            "Seed {}, first order. A task is learnt where its held-out loss comes within {:.0} % of dense fine-tuning's drop (AdamW at {:e}) of that run's last. *At \
             equal learning*: the old text's loss there minus the dense model's, mean over the tasks that are compared; in the first task all runs begin \
             alike. *At equal ‖Δθ‖*: where the first task has come as far from the dense weights as dense fine-tuning at its target. Weights stepped: of a \
             step, mean.",
            config.screen_seed,
            100.0 * config.margin,
            config.reference_rate
        ),
        table: Table { columns: columns.map(Column::text).to_vec(), rows: rows.collect() },
    }
}

/// The last loss of each task, mean over tasks, each behind its own.
fn last_losses(record: &ForgettingRecord) -> Option<f64> {
    let tasks = record.tasks.len();
    let own = (0..tasks).map(|task| Some(*record.losses.get(task + 1)?.get(task)?)).collect::<Option<Vec<f64>>>()?;
    Some(own.iter().sum::<f64>() / tasks.max(1) as f64)
}

fn rates(outcome: &Outcome, config: &StudyConfig) -> Told {
    let columns = ["method", "optimizer", "highest rate", "rates tried"];
    let rows = config.trials.iter().filter(|trials| !trials.rates.is_empty()).map(|trials| {
        let trial = Trial { method: trials.method, rule: trials.rule, rate: 0.0 };
        let highest = match outcome.highest_rate(trials.method, trials.rule) {
            Some((rate, true)) => format!("{rate:e}"),
            Some((rate, false)) => format!("{rate:e}, the highest tried"),
            None => NONE.into(),
        };
        let tried: Vec<String> = trials.rates.iter().map(|rate| format!("{rate:e}")).collect();
        cells(vec![trials.method.name(), trial.rule_name().into(), highest, tried.join(", ")])
    });
    Told {
        heading: RATES,
        prose: "The highest rate of the screen at which every task is learnt.".into(),
        table: Table { columns: columns.map(Column::text).to_vec(), rows: rows.collect() },
    }
}

fn finals(outcome: &Outcome) -> Told {
    let columns = [
        "method",
        "optimizer",
        "rate",
        "runs that learn all",
        "old text at equal learning",
        "minus dense",
        "better in",
        "old text, forgetting at the end",
        "earlier tasks, forgetting",
        "forward transfer",
        "last losses, mean",
        "‖Δθ‖",
    ];
    let dense = outcome.finals.iter().find(|finalist| finalist.trial.method == Method::DENSE);
    let rows = outcome.finals.iter().map(|finalist| {
        let mean = |figure: &dyn Fn(&(ForgettingRecord, Matched)) -> Option<f64>| {
            let known: Vec<f64> = finalist.by_seed(figure).into_iter().flatten().collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let runs: Vec<_> = finalist.runs.iter().flatten().collect();
        let learns = runs.iter().filter(|run| run.1.learns_all()).count();
        let other = dense.filter(|dense| dense.trial != finalist.trial);
        let better = other.map(|dense| finalist.better_in(dense)).filter(|(_, all)| *all > 0);
        let figures = vec![
            format!("{learns} of {}", runs.len()),
            signed(mean(&|run| run.1.rise())),
            within(other.and_then(|dense| finalist.against(dense))),
            better.map_or(NONE.into(), |(better, all)| format!("{better} of {all}")),
            signed(mean(&|run| run.0.old_forgetting())),
            signed(mean(&|run| run.0.forgetting())),
            signed(mean(&|run| run.0.forward_transfer())),
            number(mean(&|run| last_losses(&run.0)), 3),
            number(mean(&|run| run.0.looks.last().map(|look| look.distance)), 2),
        ];
        cells(leading(&finalist.trial).into_iter().chain(figures).collect())
    });
    Told {
        heading: FINALS,
        prose: "Each method at the rate that did best in the screen; means over seeds, in each over orders. Targets and the tasks that are compared are those of dense \
                fine-tuning in the same seed and order. *Minus dense*: paired, with its 95 % interval over seeds (Student's t)."
            .into(),
        table: Table { columns: columns.map(Column::text).to_vec(), rows: rows.collect() },
    }
}

/// R and O of each finalist, in the first order of the first seed that has it.
fn matrices(outcome: &Outcome) -> Told {
    let tasks =
        outcome.finals.iter().find_map(|finalist| finalist.runs.first()?.first()).map(|run| run.0.tasks.clone());
    let tasks = tasks.unwrap_or_default();
    let mut columns = vec![Column::text("method"), Column::text("behind"), Column::text("old text")];
    columns.extend(tasks.iter().map(|task| Column::text(task)));
    let mut rows = Vec::new();
    for finalist in &outcome.finals {
        let Some((record, _)) = finalist.runs.first().and_then(|runs| runs.first()) else { continue };
        for (stage, (losses, old)) in record.losses.iter().zip(&record.old).enumerate() {
            let behind = stage.checked_sub(1).map_or("–", |task| &record.tasks[task]).to_owned();
            let own = losses.iter().map(|loss| format!("{loss:.3}"));
            rows.push(cells(
                [finalist.trial.method.name(), behind, format!("{old:.3}")].into_iter().chain(own).collect(),
            ));
        }
    }
    Told {
        heading: MATRICES,
        prose: "Held-out losses behind each task, nats a token: the first seed of the finals, the first order.".into(),
        table: Table { columns, rows },
    }
}
