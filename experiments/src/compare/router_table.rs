//! What routers make of labels: one factor at a time around the reference.

use super::outcome::{Finished, Outcome, Via, mean};
use super::record::RoutedRecord;
use super::told::{Told, each, signed, times};
use super::{Cell, CompareConfig};
use crate::report::{Column, Table};
use tinyonn::imaging::LabelBalance;
use tinyonn::moe::{LayerLoad, Taken};
use tinyonn::phases::LabelUnit;

impl Outcome {
    /// Through routers, one factor at a time.
    pub(super) fn routers(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = &config.best;
        let mut rows = Vec::new();
        for cell in config.cells().iter().filter(|cell| cell.routed) {
            let seeds = self.by_seed(corpus, cell, Via::Routers);
            if seeds.is_empty() {
                continue;
            }
            let over_seeds = |f: &dyn Fn(&RoutedRecord) -> f64| mean(&routed(corpus, cell).map(f).collect::<Vec<_>>());
            let accuracy =
                |level: usize| 100.0 * over_seeds(&|routed| routed.accuracy.get(level).map_or(f64::NAN, |a| a.0));
            rows.push(vec![
                cell.differs_from(best).into(),
                mean(&seeds).into(),
                each(&seeds).into(),
                signed(self.paired(corpus, (cell, Via::Routers), (best, Via::Routers))).into(),
                signed(self.paired(corpus, (cell, Via::Routers), (cell, Via::RoutersLabels))).into(),
                (100.0 * over_seeds(&|routed| routed.active_share)).into(),
                accuracy(0).into(),
                accuracy(cell.top_k.len().saturating_sub(1)).into(),
            ]);
        }
        Told {
            heading: format!("Through routers ({name})"),
            prose: format!(
                "Each row says in what it differs from the reference: `{}`, k = {}, `{}` partition, labels by `{}`, routers `{}`. Routers are fitted to the first of three draws, where labels are drawn.",
                best.variant,
                times(&best.top_k),
                best.partition,
                best.labels,
                best.router.id(),
            ),
            table: Table {
                columns: vec![
                    Column::text("what differs"),
                    Column::lowest("loss", 3),
                    Column::text("by seed"),
                    Column::text("loss − reference's"),
                    Column::text("loss − loss along its labels"),
                    Column::number("active, %", 1),
                    Column::number("groups found, %", 1),
                    Column::number("experts found, %", 1),
                ],
                rows,
            },
        }
    }
}

/// The load of the experts under each routed cell.
pub(super) fn loads(config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
    let row = |cell: &Cell| {
        let over_seeds = |f: &dyn Fn(&RoutedRecord) -> f64| mean(&routed(corpus, cell).map(f).collect::<Vec<_>>());
        let layers = |routed: &RoutedRecord| routed.load.layers.len().max(1) as f64;
        vec![
            cell.differs_from(&config.best).into(),
            over_seeds(&|routed| routed.load.max_over_mean()).into(),
            over_seeds(&|routed| routed.load.dead()).into(),
            over_seeds(&|routed| routed.load.layers.iter().map(LayerLoad::spread).sum::<f64>() / layers(routed)).into(),
            over_seeds(&|routed| routed.load.evenness()).into(),
            taken(corpus, cell).into(),
            over_seeds(&|routed| routed.collapsed.len() as f64).into(),
        ]
    };
    let cells: Vec<Cell> =
        config.cells().into_iter().filter(|cell| routed(corpus, cell).count() == corpus.len()).collect();
    Told {
        heading: format!("What each expert is given to do ({name})"),
        prose: "The load on the test split, mean over seeds: the most loaded expert's tokens over the mean expert's, in the most uneven layer; experts that no \
                token took, a layer; exp H, the number of experts that the load is spread over, and H / ln N; how many experts a token takes, where their number \
                is not always the same from the fewest to the most; layers of a model that have collapsed beside what their labels ask for."
            .into(),
        table: Table {
            columns: vec![
                Column::text("what differs"),
                Column::number("max / mean", 1),
                Column::number("dead experts", 1),
                Column::number("spread over", 1),
                Column::number("evenness", 3),
                Column::text("experts a token"),
                Column::number("collapsed layers", 1),
            ],
            rows: cells.iter().map(row).collect(),
        },
    }
}

/// How many experts tokens take, `49` or `40 to 49`.
fn taken(corpus: &[Finished], cell: &Cell) -> String {
    let taken: Vec<Taken> = routed(corpus, cell).filter_map(|routed| routed.load.taken()).collect();
    let ends = taken.iter().map(|taken| taken.fewest).min().zip(taken.iter().map(|taken| taken.most).max());
    match ends {
        Some((fewest, most)) if fewest < most => format!("{fewest} to {most}"),
        Some((always, _)) => always.to_string(),
        None => "–".into(),
    }
}

/// What routers made of it, seed by seed.
fn routed<'a>(corpus: &'a [Finished], cell: &'a Cell) -> impl Iterator<Item = &'a RoutedRecord> {
    corpus.iter().filter_map(|finished| finished.cell(cell)?.routed.as_ref())
}

impl Cell {
    /// In words, where it is not as `best`.
    pub(super) fn differs_from(&self, best: &Self) -> String {
        let mut said = Vec::new();
        let mut differs = |different: bool, words: String| {
            if different {
                said.push(words);
            }
        };
        differs(self.variant != best.variant, self.variant.clone());
        differs(self.top_k != best.top_k, format!("k = {}", times(&self.top_k)));
        differs(self.partition != best.partition, format!("`{}` partition", self.partition));
        differs(self.labels != best.labels, format!("labels by `{}`", self.labels));
        differs(
            self.label != best.label,
            if self.label == LabelUnit::Token { "tokens' own labels" } else { "tasks' labels" }.into(),
        );
        let even = self.label_balance == LabelBalance::Sinkhorn;
        differs(
            self.label_balance != best.label_balance,
            if even { "labels balanced" } else { "labels not balanced" }.into(),
        );
        differs(self.image() != best.image(), format!("image `{}`", self.image()));
        differs(self.contrast != best.contrast, if self.contrast { "contrasted" } else { "not contrasted" }.into());
        differs(self.router != best.router, format!("routers `{}`", self.router.id()));
        if said.is_empty() { "(the reference)".into() } else { said.join(", ") }
    }
}
