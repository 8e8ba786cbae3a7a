//! What the comparison found, written from its records and by nobody's hand; a fragment of `RESULTS.md`.

use std::fmt::Write as _;

use super::claim::{Trial, verdict};
use super::label_tables::settings_table;
use super::outcome::Outcome;
use super::router_table::loads;
use super::told::Told;
use super::{CompareConfig, causal};
use crate::fragments;
use tinyonn::Result;

impl Outcome {
    /// All tables, in the order in which they are told.
    pub(super) fn tables(&self, config: &CompareConfig, trials: &[Trial]) -> Vec<Told> {
        let mut told = vec![settings_table(trials)];
        for (name, corpus) in &self.corpora {
            told.push(self.sources(config, name, corpus));
            told.push(self.partitions(config, name, corpus));
            told.push(self.shares(config, name, corpus));
            told.push(self.images(config, name, corpus));
            told.push(self.routers(config, name, corpus));
            told.push(loads(config, name, corpus));
            told.push(causal::table(name, corpus));
        }
        told.retain(|told| !told.table.rows.is_empty());
        told
    }
}

/// Writes the results of `outcome` and its `trials`, with how to come by them: `provenance`, lines of name and value. Beside it what they must hold
/// ([`fragments`]).
///
/// # Errors
/// What the system reports.
pub fn write_results(
    outcome: &Outcome,
    trials: &[Trial],
    config: &CompareConfig,
    provenance: &[(String, String)],
) -> Result<()> {
    let mut page = format!("# {}\n\n", config.study().title);
    let mut said = verdict(trials).into_iter();
    if let Some(answer) = said.next() {
        let _ = writeln!(page, "**{answer}**\n");
    }
    let needed = outcome.corpora.iter().filter_map(|(name, corpus)| causal::in_short(name, corpus));
    outcome.in_short(config, trials).into_iter().chain(said).chain(needed).for_each(|line| {
        let _ = writeln!(page, "- {line}");
    });
    let _ = write!(page, "\n{}\n\n", fragments::mark(config.study()));
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
    for told in outcome.tables(config, trials) {
        let _ = write!(page, "\n## {}\n\n{}\n\n{}", told.heading, told.prose, told.table.markdown()?);
    }
    fragments::write(&config.results_file(), &page, config.declared(), outcome.not_run(config))
}
