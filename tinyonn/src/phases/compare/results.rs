//! `RESULTS.md`: what the comparison found, written from its records and by nobody's hand.

use std::fmt::Write as _;

use super::claim::{RIVALS, verdict};
use super::outcome::{Finished, Outcome, Via, mean};
use super::{Cell, CompareConfig, LabelSource};
use crate::imaging::LabelBalance;
use crate::metrics::Interval;
use crate::phases::LabelUnit;
use crate::report::{Best, Column, Kind, Table};
use crate::{Result, files};

/// A table with its heading and what it shows.
pub(super) struct Told {
    pub(super) heading: String,
    pub(super) prose: String,
    pub(super) table: Table,
}

impl Outcome {
    /// All tables, in the order in which they are told.
    pub(super) fn tables(&self, config: &CompareConfig) -> Vec<Told> {
        let mut told = vec![self.settings(config)];
        for (name, corpus) in &self.corpora {
            told.push(self.sources(config, name, corpus));
            told.push(self.partitions(config, name, corpus));
            told.push(self.shares(config, name, corpus));
            told.push(self.routers(config, name, corpus));
            told.push(specificity(name, corpus));
        }
        told.retain(|told| !told.table.rows.is_empty());
        told
    }

    /// What labels are worth in the best setting, a sentence a text.
    fn in_short(&self, config: &CompareConfig) -> Vec<String> {
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
                "On `{name}` text with {} of {} experts active, `{}` partition, nats a token along the paths of each source of labels, mean over {} seeds: {}; dense {:.3}.",
                best.active_experts(),
                best.experts(),
                best.partition,
                corpus.len(),
                said.join(", "),
                mean(&dense),
            )
        };
        self.corpora.iter().map(of).collect()
    }

    /// Every setting that the claim is tested in.
    fn settings(&self, config: &CompareConfig) -> Told {
        let row = |trial: &super::Trial| {
            let against = trial.against.iter().map(|delta| {
                let mark = if delta.is_below() {
                    "better"
                } else if delta.is_above() {
                    "worse"
                } else {
                    "undecided"
                };
                format!("{} {mark}", signed(Some(delta.interval))).into()
            });
            let setting = [trial.corpus.clone(), trial.cell.partition.to_string(), times(&trial.cell.top_k)];
            setting.map(Into::into).into_iter().chain(against).collect()
        };
        let rivals = RIVALS.iter().map(|rival| text(&format!("∫SPS − {rival}")));
        Told {
            heading: "Every setting".into(),
            prose: "Loss along ∫SPS paths minus loss along each rival's, nats a token. Better and worse: the interval, and every seed by itself.".into(),
            table: Table {
                columns: ["text", "partition", "k"].map(text).into_iter().chain(rivals).collect(),
                rows: self.trials(config).iter().map(row).collect(),
            },
        }
    }

    /// Sources of labels in the best setting.
    fn sources(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let sps = Cell { labels: LabelSource::SPS, ..best.clone() };
        let same = |cell: &&Cell| {
            !cell.routed && cell.variant == best.variant && cell.top_k == best.top_k && cell.partition == best.partition
        };
        let mut rows: Vec<(f64, Vec<crate::report::Cell>)> = Vec::new();
        let cells = config.cells();
        for cell in cells.iter().filter(same) {
            let seeds = self.by_seed(corpus, cell, Via::Paths);
            if seeds.is_empty() {
                continue;
            }
            let delta = self.paired(corpus, (cell, Via::Paths), (&sps, Via::Paths));
            let recovery = self.recovery(corpus, cell, Via::Paths);
            let label = format!("{}{}", cell.labels, if cell.contrast { ", contrasted" } else { "" });
            rows.push((
                mean(&seeds),
                vec![
                    label.into(),
                    mean(&seeds).into(),
                    each(&seeds).into(),
                    share(recovery).into(),
                    signed(delta).into(),
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
                 ({}). Seeds one by one; recovery of what the MLPs are worth and the difference to ∫SPS with 95 % intervals.",
                best.variant,
                best.partition,
                times(&best.top_k),
                mean(&dense),
                each(&dense),
                mean(&without),
                each(&without),
            ),
            table: Table {
                columns: vec![
                    text("labels by"),
                    nats("loss"),
                    text("by seed"),
                    text("recovery, %"),
                    text("loss − loss along ∫SPS"),
                ],
                rows: rows.into_iter().map(|(_, row)| row).collect(),
            },
        }
    }

    /// Sources by partition.
    fn partitions(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let cells: Vec<Cell> = config
            .cells()
            .into_iter()
            .filter(|cell| !cell.routed && !cell.contrast && cell.variant == best.variant && cell.top_k == best.top_k)
            .collect();
        let columns = crate::imaging::Partition::ALL;
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
    fn shares(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = Cell { routed: false, ..config.best.clone() };
        let cells: Vec<Cell> = config
            .cells()
            .into_iter()
            .filter(|cell| {
                !cell.routed && !cell.contrast && cell.variant == best.variant && cell.partition == best.partition
            })
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
        let mut heads = vec![text("labels by")];
        heads.extend(kept.iter().map(|at| nats(&columns[*at].0)));
        let row = |(source, row): &(LabelSource, Vec<f64>)| {
            let numbers = kept.iter().map(|at| crate::report::Cell::Number(row[*at]));
            std::iter::once(source.to_string().into()).chain(numbers).collect()
        };
        Table {
            columns: heads,
            rows: values.iter().filter(|(_, row)| row.iter().any(|x| x.is_finite())).map(row).collect(),
        }
    }

    /// Through routers, one factor at a time.
    fn routers(&self, config: &CompareConfig, name: &str, corpus: &[Finished]) -> Told {
        let best = &config.best;
        let mut rows = Vec::new();
        for cell in config.cells().iter().filter(|cell| cell.routed) {
            let seeds = self.by_seed(corpus, cell, Via::Routers);
            if seeds.is_empty() {
                continue;
            }
            let over_seeds = |f: &dyn Fn(&super::record::RoutedRecord) -> f64| {
                let found = corpus.iter().filter_map(|finished| finished.cells.get(&cell.id())?.routed.as_ref());
                mean(&found.map(f).collect::<Vec<_>>())
            };
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
        let percent = |name: &str| Column { name: name.into(), kind: Kind::Number { decimals: 1, best: None } };
        Told {
            heading: format!("Through routers ({name})"),
            prose: format!(
                "Each row says in what it differs from the reference: `{}`, k = {}, `{}` partition, labels by `{}`, routers `{}`. Every token decides for itself. Routers are fitted to the first of three draws, where labels are drawn.",
                best.variant,
                times(&best.top_k),
                best.partition,
                best.labels,
                best.router.id(),
            ),
            table: Table {
                columns: vec![
                    text("what differs"),
                    nats("loss"),
                    text("by seed"),
                    text("loss − reference's"),
                    text("loss − loss along its labels"),
                    percent("active, %"),
                    percent("groups found, %"),
                    percent("experts found, %"),
                ],
                rows,
            },
        }
    }
}

/// Causal validation: one row a source and unit, a column a factor.
fn specificity(name: &str, corpus: &[Finished]) -> Told {
    let mut rows = Vec::new();
    let first = corpus.first().map_or(&[][..], |finished| &finished.subject.causal);
    for found in first.iter().filter(|found| found.factor == 0.0) {
        let of = |factor: f64| {
            let same = |other: &&crate::phases::causal::Intervention| {
                other.source == found.source && other.unit == found.unit && other.factor == factor
            };
            corpus.iter().filter_map(|finished| finished.subject.causal.iter().find(same)).collect::<Vec<_>>()
        };
        let specific = |factor| of(factor).iter().map(|found| found.specificity.mean).collect::<Vec<_>>();
        let ablated = of(0.0);
        let over =
            |f: &dyn Fn(&Vec<Vec<f64>>) -> f64| mean(&ablated.iter().map(|found| f(&found.delta)).collect::<Vec<_>>());
        let own = over(&|delta| {
            delta.iter().enumerate().filter_map(|(task, row)| row.get(task)).sum::<f64>() / delta.len() as f64
        });
        let sure = ablated.iter().filter(|found| found.specificity.low > 0.0).count();
        rows.push(vec![
            format!("{}s", found.unit).into(),
            found.source.replace('_', " ").into(),
            mean(&specific(0.0)).into(),
            each(&specific(0.0)).into(),
            format!("{sure} of {}", ablated.len()).into(),
            own.into(),
            mean(&specific(1.5)).into(),
            mean(&ablated.iter().map(|found| found.norm_ratio).collect::<Vec<_>>()).into(),
        ]);
    }
    let number = |name: &str| Column { name: name.into(), kind: Kind::Number { decimals: 3, best: None } };
    Told {
        heading: format!("Does a task need what its image points at? ({name})"),
        prose: "The tenth of every layer's units that scores highest on a task is ablated (× 0) or amplified (× 1.5), all else active. Specificity: what that costs the task itself minus what it costs the other \
                tasks, in nats a token; above zero, the score finds what its own task needs. Output norm: relative to that of the highest ∫SPS; what is larger costs more. On a quarter of the test tokens; experts are those of the reference's partition; random units are one draw a seed."
            .into(),
        table: Table {
            columns: vec![
                text("units"),
                text("chosen by highest"),
                number("specificity, × 0"),
                text("by seed"),
                text("above zero with 95 %"),
                number("cost to the task itself, × 0"),
                number("specificity, × 1.5"),
                number("output norm"),
            ],
            rows,
        },
    }
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
        differs(self.contrast != best.contrast, if self.contrast { "contrasted" } else { "not contrasted" }.into());
        differs(self.router != best.router, format!("routers `{}`", self.router.id()));
        if said.is_empty() { "(the reference)".into() } else { said.join(", ") }
    }
}

/// Writes the results of `outcome`, with how to come by them: `provenance`, lines of name and value.
///
/// # Errors
/// What the system reports.
pub fn write_results(outcome: &Outcome, config: &CompareConfig, provenance: &[(String, String)]) -> Result<()> {
    let mut page = String::from("# Does ∫SPS route better than anything else?\n\n");
    let mut said = verdict(&outcome.trials(config)).into_iter();
    if let Some(answer) = said.next() {
        let _ = writeln!(page, "**{answer}**\n");
    }
    outcome.in_short(config).into_iter().chain(said).for_each(|line| {
        let _ = writeln!(page, "- {line}");
    });
    page.push_str("\nWritten by `exp_compare` from its records; not edited by hand.\n\n");
    for (name, value) in provenance {
        let _ = writeln!(page, "- {name}: {value}");
    }
    let finished = || outcome.corpora.iter().flat_map(|(_, corpus)| corpus);
    let seconds: f64 = finished().map(|f| f.subject.seconds + f.cells.values().map(|c| c.seconds).sum::<f64>()).sum();
    let _ = writeln!(page, "- seconds, without pretraining, added up over subjects: {seconds:.0}");
    for (name, corpus) in &outcome.corpora {
        let hashes: Vec<&str> =
            corpus.iter().map(|finished| finished.subject.corpus_sha256.get(..16).unwrap_or("")).collect();
        let tasks = corpus.first().map_or(String::new(), |finished| finished.subject.tasks.join(", "));
        let of_task = |subject: &super::record::SubjectRecord, task: usize| {
            let own = subject.documents.iter().filter(|(of, tokens)| *of == task && *tokens > 0.0);
            let (count, tokens) = own.fold((0, 0.0), |(count, sum), (_, tokens)| (count + 1, sum + tokens));
            format!("{} {count} ({tokens})", subject.tasks[task])
        };
        let documents: Vec<String> = corpus
            .iter()
            .take(1)
            .flat_map(|finished| (0..finished.subject.tasks.len()).map(|task| of_task(&finished.subject, task)))
            .collect();
        let _ = writeln!(
            page,
            "- text `{name}`: tasks {tasks}; seeds {}; SHA-256 {}…; test documents (and tokens) of the first seed: {}",
            config.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            hashes.join("…, "),
            documents.join(", "),
        );
    }
    for told in outcome.tables(config) {
        let _ = write!(page, "\n## {}\n\n{}\n\n{}", told.heading, told.prose, told.table.markdown()?);
    }
    files::write(&config.results, page)
}

fn text(name: &str) -> Column {
    Column { name: name.into(), kind: Kind::Text }
}

fn nats(name: &str) -> Column {
    Column { name: name.into(), kind: Kind::Number { decimals: 3, best: Some(Best::Lowest) } }
}

/// `2.286 2.315 2.183`.
fn each(seeds: &[f64]) -> String {
    seeds.iter().map(|loss| format!("{loss:.3}")).collect::<Vec<_>>().join(" ")
}

/// `7 × 7`.
pub(super) fn times(top_k: &[usize]) -> String {
    top_k.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ")
}

fn signed(delta: Option<Interval>) -> String {
    delta.map_or("–".into(), |delta| format!("{:+.3} [{:+.3}, {:+.3}]", delta.mean, delta.low, delta.high))
}

fn share(recovery: Option<Interval>) -> String {
    let percent = |x: f64| 100.0 * x;
    recovery.map_or("–".into(), |r| format!("{:.1} [{:.1}, {:.1}]", percent(r.mean), percent(r.low), percent(r.high)))
}
