//! What the study found, written from its records and by nobody's hand; a fragment of `RESULTS.md`.

use std::fmt::Write as _;

use tinyonn::Result;

use super::bars::bars;
use super::tables::tables;
use super::{Cell, EvidenceConfig, EvidenceOutcome, Method};
use crate::fragments::{self, EVIDENCE};
use crate::results_file::check_results_file;

/// Writes the results of `outcome`, with how to come by them (`provenance`: lines of name and value), and what they must hold beside them ([`fragments`]).
/// Returns what it says in short.
///
/// # Errors
/// A file of results that nobody's study wrote; what the system reports.
pub fn write_results(
    outcome: &EvidenceOutcome,
    config: &EvidenceConfig,
    provenance: &[(String, String)],
) -> Result<Vec<String>> {
    check_results_file(&config.results_file(), false)?;
    let said = in_short(outcome, config);
    let mut page = format!("# {}\n\n", EVIDENCE.title);
    for (at, line) in said.iter().enumerate() {
        let _ = if at == 0 { writeln!(page, "**{line}**\n") } else { writeln!(page, "- {line}") };
    }
    let _ = write!(page, "\n{}\n\n", fragments::mark(&EVIDENCE));
    for (name, value) in provenance {
        let _ = writeln!(page, "- {name}: {value}");
    }
    let records = || outcome.cells.iter().filter_map(|(_, record)| record.as_ref());
    if let Some(first) = records().next() {
        let documents: usize = first.test.iter().map(|kind| kind.documents.len()).sum();
        let _ = writeln!(
            page,
            "- text: SHA-256 {}…, {documents} test documents",
            first.corpus_sha256.get(..16).unwrap_or("")
        );
    }
    let answers = outcome.answers.iter().flat_map(|own| own.seconds.values());
    let seconds: f64 = records().flat_map(|record| record.seconds.values()).chain(answers).sum();
    let _ = writeln!(page, "- seconds of all cells, added up: {seconds:.0}");
    for told in tables(outcome, config) {
        let _ = write!(page, "\n## {}\n\n{}\n\n{}", told.heading, told.prose, told.table.markdown()?);
    }
    fragments::write(&config.results_file(), &page, config.declared(), outcome.left())?;
    Ok(said)
}

/// The answer, and what is missed.
fn in_short(outcome: &EvidenceOutcome, config: &EvidenceConfig) -> Vec<String> {
    let mut said = vec![format!("At which share how much is kept: {}.", at_shares(outcome, config))];
    let (mut reached, mut missed, mut open) = (0, Vec::new(), 0);
    for bar in bars() {
        let name = bar.leading().join(" at ");
        for (found, when) in bar.reached(outcome, config).into_iter().zip(["closed form", "after KL"]) {
            match found {
                Some(true) => reached += 1,
                Some(false) => missed.push(format!("{name}, {when}")),
                None => open += 1,
            }
        }
    }
    let of_those = if missed.is_empty() { String::new() } else { format!(": {}", missed.join("; ")) };
    said.push(format!(
        "Of the bars {reached} are reached, {} are not{of_those}; {open} are not set or not measured.",
        missed.len()
    ));
    let ahead = |cell: &Cell| {
        let own = outcome.of(cell)?;
        let above = outcome.above_pruned(own).filter(|above| above.high >= 0.0)?;
        Some(format!("{} ({:+.3} [{:+.3}, {:+.3}])", cell.id(), above.mean, above.low, above.high))
    };
    let own = outcome
        .cells
        .iter()
        .map(|(cell, _)| cell)
        .filter(|cell| cell.method == Method::OwnGate && cell.change.is_none());
    let behind: Vec<String> = own.filter_map(ahead).collect();
    if !behind.is_empty() {
        said.insert(1, format!("Pruning is as good or better, nats of validation text: {}.", behind.join(", ")));
    }
    said
}

/// Perplexity by the token's own gates over the dense model's, at each share.
fn at_shares(outcome: &EvidenceOutcome, config: &EvidenceConfig) -> String {
    let one = |percent: u32| {
        let closed = Cell::of(Method::OwnGate, percent, config.seed);
        let ratio = |cell: &Cell| Some(outcome.ratio(outcome.of(cell)?)?.mean);
        let closed_ratio = ratio(&closed)?;
        let distilled = ratio(&Cell { steps: config.distil.steps, ..closed });
        let pruned = ratio(&Cell { method: Method::Pruned, ..closed });
        let beside = pruned.map_or(String::new(), |pruned| format!(", pruning {pruned:.3}"));
        let after =
            distilled.map_or(String::new(), |found| format!("; {found:.3} after {} steps of KL", config.distil.steps));
        Some(format!(
            "{percent} % of the MLPs' operations {closed_ratio:.3} × the dense model's perplexity in closed form{beside}{after}"
        ))
    };
    let said: Vec<String> = [75, 50, 33, 25].into_iter().filter_map(one).collect();
    if said.is_empty() { "nothing was made yet".into() } else { said.join(". ") }
}
