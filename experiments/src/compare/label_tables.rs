//! What each source of labels is worth, along its paths and without routers: by source, partition, share and form of the image.

use std::collections::BTreeMap;

use super::claim::{RIVALS, Trial, settings};
use super::default_grid::PARTITIONS;
use super::outcome::{Finished, Outcome, Via, mean};
use super::subject::ORACLE_SEQUENCES;
use super::told::{Told, each, over_seeds, share, signed, times};
use super::{Cell, CompareConfig};
use crate::report::{Column, Table};
use tinyonn::imaging::{Form, How, LabelSource, LabelStatistics, Score};
use tinyonn::ops::GradSite;

impl Outcome {
    /// What labels are worth in the best setting, a sentence a text.
    pub(super) fn in_short(&self, config: &CompareConfig, trials: &[Trial]) -> Vec<String> {
        let best = Cell { routed: false, ..config.best.clone() };
        let of = |(name, corpus): &(String, Vec<Finished>)| {
            let loss = |labels: LabelSource| {
                let seeds = self.by_seed(corpus, &Cell { labels, ..best.clone() }, Via::Paths);
                (!seeds.is_empty()).then(|| mean(&seeds))
            };
            let sources = RIVALS.into_iter().chain([LabelSource::SPS, LabelSource::ACTIVATION_PLUS_SURPRISE]);
            let sources = sources.chain([LabelSource::Random, LabelSource::Oracle]);
            let mut losses: Vec<(f64, LabelSource)> =
                sources.filter_map(|source| Some((loss(source)?, source))).collect();
            losses.sort_by(|a, b| a.0.total_cmp(&b.0));
            let said: Vec<String> = losses.iter().map(|(loss, source)| format!("`{source}` {loss:.3}")).collect();
            let dense: Vec<f64> = corpus.iter().map(|finished| finished.subject.dense.mean).collect();
            format!(
                "On `{name}` text with {} of {} experts active, `{}` partition, nats a token along the paths of each source of labels, {}: {}; dense {:.3}.",
                best.active_experts(),
                best.experts(),
                best.partition,
                over_seeds(corpus.len()),
                said.join(", "),
                mean(&dense),
            )
        };
        self.corpora.iter().map(of).chain(self.winners(trials)).collect()
    }

    /// In how many settings each score labels best.
    fn winners(&self, trials: &[Trial]) -> Option<String> {
        let mut won: BTreeMap<&str, usize> = BTreeMap::new();
        for trial in trials {
            let corpus = self.corpora.iter().find(|(name, _)| *name == trial.corpus).map(|(_, corpus)| corpus)?;
            let loss = |score: &Score| {
                let cell = Cell { labels: LabelSource::By(*score, How::Best), ..trial.cell.clone() };
                let seeds = self.by_seed(corpus, &cell, Via::Paths);
                (!seeds.is_empty()).then(|| (mean(&seeds), score.name()))
            };
            let best = Score::ALL.iter().filter_map(loss).min_by(|a, b| a.0.total_cmp(&b.0))?;
            *won.entry(best.1).or_default() += 1;
        }
        let mut won: Vec<(usize, &str)> = won.into_iter().map(|(score, count)| (count, score)).collect();
        won.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let said: Vec<String> = won.iter().map(|(count, score)| format!("`{score}` in {count}")).collect();
        (!said.is_empty()).then(|| {
            format!(
                "The score whose labels lose least, by its mean over seeds: {} of {}.",
                said.join(", "),
                settings(trials.len())
            )
        })
    }

    /// Sources of labels in the best setting.
    pub(super) fn sources(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let sps = Cell { labels: LabelSource::SPS, ..best.clone() };
        let same = |cell: &&Cell| {
            let cell = Cell { labels: best.labels, contrast: best.contrast, ..(*cell).clone() };
            cell.id() == best.id()
        };
        let mut rows: Vec<(f64, Vec<crate::report::TableCell>)> = Vec::new();
        let cells = config.cells();
        for cell in cells.iter().filter(same) {
            let seeds = self.by_seed(corpus, cell, Via::Paths);
            if seeds.is_empty() {
                continue;
            }
            let delta = self.paired(corpus, (cell, Via::Paths), (&sps, Via::Paths));
            let recovery = self.recovery(corpus, cell, Via::Paths);
            let said = corpus.iter().filter_map(|finished| Some(&finished.cell(cell)?.labels));
            let said: Vec<&LabelStatistics> = said.collect();
            let of_labels =
                |f: fn(&LabelStatistics) -> f64| mean(&said.iter().map(|labels| f(labels)).collect::<Vec<_>>());
            let label = cell.labels_in_words();
            rows.push((
                mean(&seeds),
                vec![
                    label.into(),
                    mean(&seeds).into(),
                    each(&seeds).into(),
                    share(recovery).into(),
                    signed(delta).into(),
                    of_labels(|labels| labels.distinct_paths as f64).into(),
                    of_labels(|labels| labels.entropy).into(),
                    of_labels(|labels| labels.overlap).into(),
                ],
            ));
        }
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let dense: Vec<f64> = corpus.iter().map(|finished| finished.subject.dense.mean).collect();
        let without: Vec<f64> = corpus.iter().map(|finished| finished.subject.without.mean).collect();
        Told {
            heading: format!("Whose image knows the path? ({name})"),
            prose: format!(
                "Loss along the paths of each source of labels, the task known, no router between: `{}`, `{}` partition, k = {}. Dense {:.3} nats a token ({}), without any MLP {:.3} \
                 ({}). Seeds one by one; recovery of what the MLPs are worth and the difference to ∫SPS with 95 % intervals. Of the labels, mean over seeds (of drawn ones, the first \
                 draw): different paths among the {} tasks; the entropy of the choice of an expert over tasks, mean over layers, {:.2} if all tasks shared one path and {:.2} if they \
                 used all experts alike; |A ∩ B| / |A ∪ B| of two tasks' experts. `oracle` is a greedy search, expert by expert, for the lowest loss on {} training tokens a task: \
                 what measuring finds, no bound.",
                best.variant,
                best.partition,
                times(&best.top_k),
                mean(&dense),
                each(&dense),
                mean(&without),
                each(&without),
                corpus.first().map_or(0, |finished| finished.subject.tasks.len()),
                (best.active_experts() as f64).ln(),
                (best.experts() as f64).ln(),
                ORACLE_SEQUENCES * config.length,
            ),
            table: Table {
                columns: vec![
                    Column::text("labels by"),
                    Column::lowest("loss", 3),
                    Column::text("by seed"),
                    Column::text("recovery, %"),
                    Column::text("loss − loss along ∫SPS"),
                    Column::number("different paths", 1),
                    Column::number("entropy", 2),
                    Column::number("overlap", 2),
                ],
                rows: rows.into_iter().map(|(_, row)| row).collect(),
            },
        }
    }

    /// Sources by partition.
    pub(super) fn partitions(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let cells: Vec<Cell> = config
            .cells()
            .into_iter()
            .filter(|cell| Cell { labels: best.labels, partition: best.partition, ..cell.clone() }.id() == best.id())
            .collect();
        let columns = PARTITIONS;
        let of = |source: LabelSource, partition| Cell { labels: source, partition, ..best.clone() };
        Told {
            heading: format!("On every partition ({name})"),
            prose: format!(
                "The same by partition of neurons into experts, mean loss over seeds; k = {}.",
                times(&best.top_k)
            ),
            table: self.crossed(corpus, &cells, &columns.map(|partition| (partition.to_string(), partition)), of),
        }
    }

    /// Sources by share.
    pub(super) fn shares(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let cells: Vec<Cell> = config
            .cells()
            .into_iter()
            .filter(|cell| Cell { labels: best.labels, top_k: best.top_k.clone(), ..cell.clone() }.id() == best.id())
            .collect();
        let mut shares: Vec<Vec<usize>> = cells.iter().map(|cell| cell.top_k.clone()).collect();
        shares.sort_by_key(|k| k.iter().product::<usize>());
        shares.dedup();
        let columns: Vec<(String, Vec<usize>)> = shares.into_iter().map(|k| (format!("k {}", times(&k)), k)).collect();
        let of = |source: LabelSource, top_k: Vec<usize>| Cell { labels: source, top_k, ..best.clone() };
        Told {
            heading: format!("At every share ({name})"),
            prose: format!(
                "The same by number of groups and of experts in each, `{}` partition, mean loss over seeds.",
                best.partition
            ),
            table: self.crossed(corpus, &cells, &columns, of),
        }
    }

    /// Sources by form of the image.
    pub(super) fn images(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let plain = |cell: &Cell| Cell { form: best.form, grad_site: best.grad_site, ..cell.clone() };
        let of_image = |cell: &Cell| Cell { labels: best.labels, ..plain(cell) }.id() == best.id();
        let cells: Vec<Cell> = config.cells().into_iter().filter(of_image).collect();
        let mut columns: Vec<(String, (Form, GradSite))> = Vec::new();
        for cell in &cells {
            if columns.iter().all(|(name, _)| *name != cell.image()) {
                columns.push((cell.image(), (cell.form, cell.grad_site)));
            }
        }
        if columns.len() < 2 {
            columns.clear();
        }
        let of = |source: LabelSource, (form, grad_site)| Cell { labels: source, form, grad_site, ..best.clone() };
        let read = |cell: &Cell| {
            let formed = matches!(cell.labels, LabelSource::By(score, _) if score.is_standardised());
            let known = |image| !self.by_seed(corpus, &of(cell.labels, image), Via::Paths).is_empty();
            formed && columns.iter().all(|(_, image)| known(*image))
        };
        let cells: Vec<Cell> = cells.into_iter().filter(read).collect();
        Told {
            heading: format!("In every form of the image ({name})"),
            prose: format!(
                "The same by what z standardises over (`layer`, `global`, `log1p`), of neurons or of experts' norms (`_by_expert`), and by the \
                 gradient whose norm surprise is (weights', `_at_input`, `_at_output`: there every unit has the same surprise); k = {}, `{}` partition, \
                 mean loss over seeds.",
                times(&best.top_k),
                best.partition
            ),
            table: self.crossed(corpus, &cells, &columns, of),
        }
    }

    fn crossed<T: Clone>(
        &self,
        corpus: &[Finished],
        cells: &[Cell],
        columns: &[(String, T)],
        of: impl Fn(LabelSource, T) -> Cell,
    ) -> Table {
        let mut sources: Vec<LabelSource> = Vec::new();
        for cell in cells {
            if !sources.contains(&cell.labels) {
                sources.push(cell.labels);
            }
        }
        let loss = |source: LabelSource, column: &T| {
            let seeds = self.by_seed(corpus, &of(source, column.clone()), Via::Paths);
            if seeds.is_empty() { f64::NAN } else { mean(&seeds) }
        };
        let values: Vec<(LabelSource, Vec<f64>)> = sources
            .into_iter()
            .map(|source| (source, columns.iter().map(|(_, column)| loss(source, column)).collect()))
            .collect();
        let kept: Vec<usize> =
            (0..columns.len()).filter(|at| values.iter().any(|(_, row)| row[*at].is_finite())).collect();
        let mut heads = vec![Column::text("labels by")];
        heads.extend(kept.iter().map(|at| Column::lowest(&columns[*at].0, 3)));
        let row = |(source, row): &(LabelSource, Vec<f64>)| {
            let numbers = kept.iter().map(|at| crate::report::TableCell::Number(row[*at]));
            std::iter::once(source.to_string().into()).chain(numbers).collect()
        };
        Table {
            columns: heads,
            rows: values.iter().filter(|(_, row)| row.iter().any(|x| x.is_finite())).map(row).collect(),
        }
    }
}

/// Every setting that the claim is tested in.
pub(super) fn settings_table(trials: &[Trial]) -> Told {
    let row = |trial: &Trial| {
        let against = trial.against.iter().map(|delta| {
            let mark = if delta.is_below() {
                "better"
            } else if delta.is_above() {
                "worse"
            } else {
                "undecided"
            };
            let half = delta.over_models().map_or("–".into(), |models| format!("{:.3}", models.high - models.mean));
            format!("{} ± {half} {mark}", signed(Some(delta.interval))).into()
        });
        let Cell { partition, top_k, .. } = &trial.cell;
        let setting = [trial.corpus.clone(), partition.to_string(), times(top_k), trial.cell.image_in_words()];
        setting.map(Into::into).into_iter().chain(against).collect()
    };
    let rivals = RIVALS.iter().map(|rival| Column::text(&format!("∫SPS − {rival}")));
    Told {
        heading: "Every setting".into(),
        prose: "Loss along ∫SPS paths minus loss along each rival's, nats a token; its 95 % interval over documents and, behind ±, half of that over models. Better and \
                worse: both intervals."
            .into(),
        table: Table {
            columns: ["text", "partition", "k", "image"].map(Column::text).into_iter().chain(rivals).collect(),
            rows: trials.iter().map(row).collect(),
        },
    }
}
