//! The tables of the study.

use std::collections::BTreeSet;

use tinyonn::metrics::Interval;

use super::bars::{bars, rivals};
use super::outcome::at_distance;
use super::{AttentionConfig, AttentionOutcome, AttentionRecord, Method};
use crate::report::{Column, Table, TableCell};

/// A table with its heading and what it shows.
pub(super) struct Told {
    pub(super) heading: &'static str,
    pub(super) prose: String,
    pub(super) table: Table,
}

pub(super) const BARS: &str = "The bars";
pub(super) const RIVALS: &str = "Beside others";
pub(super) const TEXT: &str = "Documents";
pub(super) const KINDS: &str = "By kind of text";
pub(super) const FACTS: &str = "Facts asked again";
pub(super) const DISTANCES: &str = "Facts by distance";

const NONE: &str = "–";
const LEADING: [&str; 4] = ["tokens", "method", "share", "prefill"];
/// Parts of a length that facts are told apart by.
const PARTS: usize = 4;

pub(super) fn within(interval: Option<Interval>) -> String {
    interval.map_or(NONE.into(), |i| format!("{:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high))
}

fn table(leading: &[&str], columns: &[String], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let names = leading.iter().map(|name| (*name).to_owned()).chain(columns.iter().cloned());
    let columns = names.map(|name| Column::text(&name)).collect();
    let rows = rows.into_iter().map(|row| row.into_iter().map(TableCell::from).collect()).collect();
    Table { columns, rows }
}

/// A row a record: its leading cells and those that `f` says.
fn by_cell(outcome: &AttentionOutcome, columns: &[&str], f: impl Fn(&AttentionRecord) -> Vec<String>) -> Table {
    let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
    let rows = outcome.made().map(|own| own.cell.leading().into_iter().chain(f(own)).collect());
    table(&LEADING, &columns, rows)
}

/// All tables, in the order in which they are told.
pub(super) fn tables(outcome: &AttentionOutcome, config: &AttentionConfig) -> Vec<Told> {
    vec![
        told_bars(outcome, config),
        told_rivals(outcome, config),
        told_text(outcome),
        told_kinds(outcome),
        told_facts(outcome),
        told_distances(outcome),
    ]
}

fn told_bars(outcome: &AttentionOutcome, config: &AttentionConfig) -> Told {
    let columns = ["rises of the trial's rows", "bar", "aim", "found", "of which row"].map(str::to_owned);
    Told {
        heading: BARS,
        prose: "At 12.5 % of the keys. The trial's two rows, components by head and directions by key head, are measured here anew, and the better one is the measure: a bar is its rise and a tenth, the aim \
                0.7 of it on text and half of it on facts. Found is the least rise of a choice that the library makes and whose heads share their rows."
            .into(),
        table: table(&["what", "tokens", "prefill"], &columns, bars(config).iter().map(|bar| bar.row(outcome))),
    }
}

fn told_rivals(outcome: &AttentionOutcome, config: &AttentionConfig) -> Told {
    let columns = ["text: directions less it", "facts: directions less it", "ahead"].map(str::to_owned);
    Told {
        heading: RIVALS,
        prose: "The 16 main directions by key head less another at the same share, each position choosing: nats a token of text and a digit of facts, 95 % intervals of pairs; beside the cache of 8 bits at the share that \
                reads as many bytes. Ahead: below zero up to the upper end."
            .into(),
        table: table(&["tokens", "method", "share"], &columns, rivals(config).iter().map(|rival| rival.row(outcome))),
    }
}

fn told_text(outcome: &AttentionOutcome) -> Told {
    let columns = ["pairs kept", "rows read", "bytes read", "rise, nats a token", "documents", "seconds"];
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    Told {
        heading: TEXT,
        prose: "Positions past a quarter of each document, mean over kinds; documents of a kind are drawn in pairs. Dense: its loss. Bytes are those of index and rows of a dense cache's; rows read are the union over the heads of a \
                key head. With a dense prefill the first quarter attends to all."
            .into(),
        table: by_cell(outcome, &columns, |own| {
            let mean = own.text.iter().map(crate::evidence::KindLosses::mean).sum::<f64>() / own.text.len().max(1) as f64;
            let rise = if own.cell.method == Method::Dense { format!("{mean:.3}") } else { within(outcome.text_rise(own)) };
            let documents: usize = own.text.iter().map(|kind| kind.documents.len()).sum();
            vec![percent(own.kept), percent(own.read), percent(own.bytes), rise, documents.to_string(), format!("{:.0}", own.seconds)]
        }),
    }
}

fn told_kinds(outcome: &AttentionOutcome) -> Told {
    let kinds: BTreeSet<&str> = outcome.made().flat_map(|own| own.text.iter().map(|kind| kind.kind.as_str())).collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    let counted = |kind: &&str| {
        let of = |own: &AttentionRecord| {
            let found = own.text.iter().find(|own| own.kind == *kind)?;
            Some(format!("{} of {}", found.documents.len(), own.cell.length))
        };
        let found: BTreeSet<String> = outcome.made().filter_map(of).collect();
        format!("{kind}: {}", found.into_iter().collect::<Vec<_>>().join(", "))
    };
    Told {
        heading: KINDS,
        prose: format!(
            "As above, of each kind; documents of so many tokens: {}.",
            kinds.iter().map(counted).collect::<Vec<_>>().join("; ")
        ),
        table: by_cell(outcome, &kinds, |own| {
            let of = |kind: &&str| match own.text.iter().find(|own| own.kind == *kind) {
                Some(found) if own.cell.method == Method::Dense => format!("{:.3}", found.mean()),
                _ => within(outcome.kind_rise(own, kind)),
            };
            kinds.iter().map(of).collect()
        }),
    }
}

fn told_facts(outcome: &AttentionOutcome) -> Told {
    let columns = ["nats a digit", "rise", "answered right", "facts"];
    Told {
        heading: FACTS,
        prose: "Numbers of five digits that are told, and each asked once behind all of them, in another order; digits are given as they are right. Answered right: each digit is the most probable, so that greedy writing answers so. \
                Texts are drawn whole. With a dense prefill what is told attends to all."
            .into(),
        table: by_cell(outcome, &columns, |own| {
            let count: usize = own.facts.iter().map(Vec::len).sum();
            let Some((nats, right)) = at_distance(own, 0, usize::MAX) else { return vec![NONE.into(); 4] };
            let rise = if own.cell.method == Method::Dense { NONE.into() } else { within(outcome.facts_rise(own)) };
            vec![format!("{nats:.3}"), rise, format!("{:.1} %", 100.0 * right), count.to_string()]
        }),
    }
}

fn told_distances(outcome: &AttentionOutcome) -> Told {
    let columns = ["first quarter", "second", "third", "last"];
    Told {
        heading: DISTANCES,
        prose: "Nats a digit and answers right, by how far before it was told what is asked, in quarters of the text's length.".into(),
        table: by_cell(outcome, &columns, |own| {
            let edge = |part: usize| own.cell.length * part / PARTS;
            let of = |part: usize| match at_distance(own, edge(part), edge(part + 1)) {
                Some((nats, right)) => format!("{nats:.3}, {:.1} %", 100.0 * right),
                None => NONE.into(),
            };
            (0..PARTS).map(of).collect()
        }),
    }
}
