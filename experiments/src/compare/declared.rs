//! Which rows the tables of a comparison must have, by its grid alone: what [`write_results`](super::write_results) leaves beside the results.

use std::collections::BTreeSet;

use super::claim::{RIVALS, is_asked};
use super::{Cell, CompareConfig};
use crate::causal;
use crate::fragments::{COMPARE, COMPARE_LARGE, Declared, DeclaredTable, Study};
use crate::frontier::times;
use crate::pages::causal::chosen_by;
use serde_json::Value;
use tinyonn::imaging::{Form, LabelSource};
use tinyonn::ops::GradSite;

impl CompareConfig {
    /// Its part of the results: another of models whose shape is [`large`](Self::large)'s.
    pub(super) fn study(&self) -> &'static Study {
        if self.dense == Self::large().dense { &COMPARE_LARGE } else { &COMPARE }
    }

    /// What its results must hold once all of it has run.
    #[must_use]
    pub fn declared(&self) -> Declared {
        let cells = self.cells();
        let grid = Grid { config: self, ids: cells.iter().map(Cell::id).collect(), cells };
        let mut tables = vec![table("Every setting".into(), grid.settings())];
        for corpus in &self.corpora {
            let name = &corpus.name;
            let single = |rows: Vec<String>| rows.into_iter().map(|row| vec![row]).collect::<Vec<_>>();
            tables.extend([
                table(format!("Whose image knows the path? ({name})"), single(grid.sources())),
                table(format!("On every partition ({name})"), single(grid.partitions())),
                table(format!("At every share ({name})"), single(grid.shares())),
                table(format!("In every form of the image ({name})"), single(grid.images())),
                table(format!("Through routers ({name})"), single(grid.routed())),
                table(format!("What each expert is given to do ({name})"), single(grid.routed())),
                table(format!("Does a task need what its image points at? ({name})"), interventions()),
            ]);
        }
        tables.retain(|table| !table.rows.is_empty());
        Declared { study: self.study().name.into(), seeds: self.seeds.clone(), settings: self.deciding(), tables }
    }
}

impl CompareConfig {
    /// The settings that decide what is found, but for the seeds: not where it is kept, where it is computed, nor where text lies, which is known by
    /// its SHA-256.
    fn deciding(&self) -> Value {
        let mut named = self.clone();
        for source in named.corpora.iter_mut().flat_map(|corpus| &mut corpus.data) {
            source.truncate(source.find('=').unwrap_or(source.len()));
        }
        let all = serde_json::to_value(named).unwrap_or_default();
        let Value::Object(mut all) = all else { return all };
        all.retain(|key, _| !matches!(key.as_str(), "out" | "results" | "cache" | "device" | "seeds"));
        Value::Object(all)
    }
}

fn table(heading: String, rows: Vec<Vec<String>>) -> DeclaredTable {
    DeclaredTable { heading, rows }
}

/// What is ablated, by unit and by what chose it.
fn interventions() -> Vec<Vec<String>> {
    let of = |unit: &str| {
        causal::chosen().into_iter().map(move |source| vec![format!("{unit}s"), chosen_by(&source)]).collect::<Vec<_>>()
    };
    ["expert", "neuron"].into_iter().flat_map(of).collect()
}

/// The cells of a grid and their names.
struct Grid<'a> {
    config: &'a CompareConfig,
    cells: Vec<Cell>,
    ids: BTreeSet<String>,
}

impl Grid<'_> {
    fn has(&self, cell: &Cell) -> bool {
        self.ids.contains(&cell.canonical().id())
    }

    /// The reference, along its paths.
    fn best(&self) -> Cell {
        Cell { routed: false, ..self.config.best.clone() }
    }

    fn settings(&self) -> Vec<Vec<String>> {
        let asked: Vec<&Cell> = self.cells.iter().filter(|cell| is_asked(cell)).collect();
        let all_rivals =
            |cell: &&&Cell| RIVALS.iter().all(|rival| self.has(&Cell { labels: *rival, ..(**cell).clone() }));
        let row = |corpus: &str, cell: &Cell| {
            vec![corpus.to_owned(), cell.partition.to_string(), times(&cell.top_k), cell.image_in_words()]
        };
        let of = |corpus: &super::CorpusConfig| {
            asked.iter().filter(all_rivals).map(|cell| row(&corpus.name, cell)).collect::<Vec<_>>()
        };
        self.config.corpora.iter().flat_map(of).collect()
    }

    fn sources(&self) -> Vec<String> {
        let best = self.best();
        let same =
            |cell: &&Cell| Cell { labels: best.labels, contrast: best.contrast, ..(*cell).clone() }.id() == best.id();
        self.cells.iter().filter(same).map(Cell::labels_in_words).collect()
    }

    fn partitions(&self) -> Vec<String> {
        let best = self.best();
        self.labels(|cell| Cell { labels: best.labels, partition: best.partition, ..cell.clone() }.id() == best.id())
    }

    fn shares(&self) -> Vec<String> {
        let best = self.best();
        self.labels(|cell| Cell { labels: best.labels, top_k: best.top_k.clone(), ..cell.clone() }.id() == best.id())
    }

    fn images(&self) -> Vec<String> {
        let best = self.best();
        let plain = |cell: &Cell| Cell { form: best.form, grad_site: best.grad_site, ..cell.clone() };
        let of_image = |cell: &Cell| Cell { labels: best.labels, ..plain(cell) }.id() == best.id();
        let mut images: Vec<(String, (Form, GradSite))> = Vec::new();
        for cell in self.cells.iter().filter(|cell| of_image(cell)) {
            if images.iter().all(|(name, _)| *name != cell.image()) {
                images.push((cell.image(), (cell.form, cell.grad_site)));
            }
        }
        if images.len() < 2 {
            return Vec::new();
        }
        let in_all = |labels: LabelSource| {
            images.iter().all(|(_, (form, grad_site))| {
                self.has(&Cell { labels, form: *form, grad_site: *grad_site, ..best.clone() })
            })
        };
        let formed = |labels| matches!(labels, LabelSource::By(score, _) if score.is_standardised());
        self.labels(|cell| of_image(cell) && formed(cell.labels) && in_all(cell.labels))
    }

    fn routed(&self) -> Vec<String> {
        let routed = self.cells.iter().filter(|cell| cell.routed);
        routed.map(|cell| cell.differs_from(&self.config.best)).collect()
    }

    /// The sources of labels of these cells, each once.
    fn labels(&self, of: impl Fn(&Cell) -> bool) -> Vec<String> {
        let mut sources: Vec<LabelSource> = Vec::new();
        for cell in self.cells.iter().filter(|cell| of(cell)) {
            if !sources.contains(&cell.labels) {
                sources.push(cell.labels);
            }
        }
        sources.into_iter().map(|source| source.to_string()).collect()
    }
}
