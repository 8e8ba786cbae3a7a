//! The tables of the study.

use std::fmt::Write as _;

use tinyonn::benchmark::TaskFigures;
use tinyonn::metrics::Interval;

use super::bars::bars;
use super::compared::rise;
use super::{BesideDense, Cell, CellRecord, EvidenceConfig, EvidenceOutcome, Method, Speed, TaskAnswers};
use crate::report::{Column, Table, TableCell};

/// A table with its heading and what it shows.
pub(super) struct Told {
    pub(super) heading: &'static str,
    pub(super) prose: String,
    pub(super) table: Table,
}

pub(super) const BARS: &str = "The bars";
pub(super) const FINALS: &str = "Finalists on text and benchmarks";
pub(super) const KINDS: &str = "By kind of text";
pub(super) const TASKS: &str = "By benchmark";
pub(super) const CELLS: &str = "Every cell on validation text";

const NONE: &str = "–";
const LEADING: [&str; 5] = ["method", "share", "changed", "steps of KL", "seed"];

fn within(interval: Option<Interval>) -> String {
    interval.map_or(NONE.into(), |i| format!("{:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high))
}

fn table(leading: &[&str], columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let columns = leading.iter().chain(columns).map(|name| Column::text(name)).collect();
    let rows = rows.into_iter().map(|row| row.into_iter().map(TableCell::from).collect()).collect();
    Table { columns, rows }
}

/// All tables, in the order in which they are told.
pub(super) fn tables(outcome: &EvidenceOutcome, config: &EvidenceConfig) -> Vec<Told> {
    let finals: Vec<&CellRecord> = outcome
        .cells
        .iter()
        .filter(|(cell, _)| config.is_final(cell))
        .filter_map(|(_, record)| record.as_ref())
        .collect();
    vec![
        told_bars(outcome, config),
        told_finals(outcome, &finals),
        told_kinds(outcome, &finals, config.seed),
        told_tasks(outcome, &finals, config),
        told_cells(outcome),
    ]
}

fn told_bars(outcome: &EvidenceOutcome, config: &EvidenceConfig) -> Told {
    let columns = ["closed form: bar", "found", "after KL: bar", "found"];
    Told {
        heading: BARS,
        prose: format!(
            "Each token by its own gates, at equal counted operations, on the test split; 95 % intervals, documents of a kind and items of a benchmark drawn in pairs. A bar of KL was set for 1,000 \
             steps; found is what {} steps reach. \"Pruning\" has the same calibration, shares by layer, repair and KL. \"Kept\" is Σ (accuracy − floor) over the benchmarks that carry signal, as a part of the \
             dense model's.",
            config.distil.steps
        ),
        table: table(&["what", "share"], &columns, bars().iter().map(|bar| bar.row(outcome, config))),
    }
}

fn told_finals(outcome: &EvidenceOutcome, finals: &[&CellRecord]) -> Told {
    let columns = [
        "operations",
        "perplexity ÷ dense",
        "pruning's",
        "KL to dense",
        "pruning's",
        "never calibrated on",
        "pruning's",
        "kept",
        "pruning's",
        "numbers beside",
        "seconds",
        "prefill, tokens/s",
        "decode, tokens/s",
        "MLP's time ÷ dense",
    ];
    let row = |own: &&CellRecord| {
        let pruned = outcome.pruned(&own.cell).filter(|_| own.cell.method != Method::Dense);
        let both =
            |figure: &dyn Fn(&CellRecord) -> Option<Interval>| [within(figure(own)), within(pruned.and_then(figure))];
        let mut row = own.cell.leading();
        row.push(format!("{:.1} %", 100.0 * own.operations));
        row.extend(both(&|record| outcome.ratio(record)));
        row.extend(both(&|record| outcome.divergence(record)));
        row.extend(both(&|record| outcome.unseen_ratio(record)));
        row.extend(both(&|record| outcome.kept(record)));
        row.extend([own.added.to_string(), format!("{:.0}", own.seconds.values().sum::<f64>())]);
        let speed = outcome.speed(&own.cell);
        let beside = |of: fn(&Speed) -> BesideDense| {
            speed.map(of).map_or(NONE.into(), |found| format!("{:.1} (dense {:.1})", found.own, found.dense))
        };
        row.extend([beside(|speed| speed.prefill), beside(|speed| speed.decode), within(speed.map(|speed| speed.mlp))]);
        row
    };
    Told {
        heading: FINALS,
        prose: "Named before anything was run. Perplexity ratios are exp of the mean over kinds of the loss's rise; KL is of the next token, on the same text, nats: what tells models apart that learnt on text of these kinds, where the loss comes to lie below the dense model's; operations are the MLPs' on validation text, routers counted in; seconds are wall-clock, \
                beside other cells on the same machine. Tokens a second at batch 1 and the MLPs' time for a token are of a processor, in f32, medians of rounds beside the dense model, of the closed form, calibrated on little text (`--time`); \
                carved experts are computed by masks, which are as slow as the dense model."
            .into(),
        table: table(&LEADING, &columns, finals.iter().map(row)),
    }
}

fn told_kinds(outcome: &EvidenceOutcome, finals: &[&CellRecord], seed: u64) -> Told {
    let Some(first) = finals.first() else {
        return Told { heading: KINDS, prose: "Nothing was made yet.".into(), table: table(&LEADING, &[], []) };
    };
    let names: Vec<&str> = first.test.iter().chain(&first.unseen).map(|kind| kind.kind.as_str()).collect();
    let row = |own: &&CellRecord| {
        let mut row = own.cell.leading();
        let dense = outcome.dense(&own.cell);
        for (at, kind) in own.test.iter().chain(&own.unseen).enumerate() {
            let beside = dense.and_then(|dense| dense.test.iter().chain(&dense.unseen).nth(at));
            let rise = beside.and_then(|beside| rise(std::slice::from_ref(kind), std::slice::from_ref(beside), seed));
            row.push(if own.cell.method == Method::Dense { format!("{:.3}", kind.mean()) } else { within(rise) });
        }
        row
    };
    let unseen: Vec<&str> = first.unseen.iter().map(|kind| kind.kind.as_str()).collect();
    Told {
        heading: KINDS,
        prose: format!(
            "Of the dense model the loss, nats a token; of others how much it rises. Nothing is calibrated on {}.",
            unseen.join(" and ")
        ),
        table: table(&LEADING, &names, finals.iter().map(row)),
    }
}

fn told_tasks(outcome: &EvidenceOutcome, finals: &[&CellRecord], config: &EvidenceConfig) -> Told {
    let Some(dense) = outcome.tasks(&Cell::of(Method::Dense, 100, config.seed)) else {
        return Told { heading: TASKS, prose: "Nothing was answered yet.".into(), table: table(&LEADING, &[], []) };
    };
    let name = |answers: &TaskAnswers| {
        let TaskFigures { task, items, floor, signal, .. } = &answers.figures;
        if *signal {
            format!("{task}, {items} items (floor {floor:.3})")
        } else {
            format!("{task}, {items} items, bits a byte")
        }
    };
    let names: Vec<String> = dense.iter().map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let row = |own: &&CellRecord| {
        let value = |(at, dense): (usize, &TaskAnswers)| {
            let figures = outcome.tasks(&own.cell).and_then(|tasks| Some(&tasks.get(at)?.figures));
            within(figures.map(|own| if dense.figures.signal { own.accuracy } else { own.bits_per_byte }))
        };
        own.cell.leading().into_iter().chain(dense.iter().enumerate().map(value)).collect()
    };
    let mut prose = "Accuracy on benchmarks whose lower 95 % bound of the dense model's lies above the floor, the greater of chance and the best constant answer; of others bits a byte of the right choice.".to_owned();
    let away = outcome.made_again();
    if away > 0.0 {
        let _ = write!(
            prose,
            " Some models were made once more to answer: their validation losses lie at most {away:.4} nats from those of their records."
        );
    }
    Told { heading: TASKS, prose, table: table(&LEADING, &names, finals.iter().map(row)) }
}

fn told_cells(outcome: &EvidenceOutcome) -> Told {
    let columns = ["operations", "nats above dense", "above pruning", "bit-equal all active", "tokens repaired on"];
    let rows = outcome.cells.iter().filter_map(|(cell, record)| {
        let own = record.as_ref()?;
        let mut row = cell.leading();
        row.push(format!("{:.1} %", 100.0 * own.operations));
        let rise = if cell.method == Method::Dense { None } else { outcome.validation_rise(own) };
        row.push(within(rise));
        row.push(within(outcome.above_pruned(own).filter(|_| cell.method != Method::Pruned || cell.change.is_some())));
        let equal = own.bit_equal.map_or(NONE, |equal| if equal { "yes" } else { "no" });
        row.extend([equal.into(), own.repaired_on.to_string()]);
        Some(row)
    });
    Told {
        heading: CELLS,
        prose: "Mean over kinds of the validation loss's rise, nats a token. `oracle` and `shared_N` are counted in the neurons taken, which no program can reach: to choose them all is computed first. \
                `teal`, `cats` and `cmoe_N` are rebuilt here after their papers and repaired like the rest, with the same share in each layer. Settings are chosen by this split; the test split chooses nothing."
            .into(),
        table: table(&LEADING, &columns, rows),
    }
}
