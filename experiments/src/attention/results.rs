//! What the study found, written from its records and by nobody's hand; a fragment of `RESULTS.md`.

use std::fmt::Write as _;

use tinyonn::Result;
use tinyonn::moe::Prefill;

use super::grid::METHODS;
use super::tables::{tables, within};
use super::{AttentionConfig, AttentionOutcome, Cell};
use crate::fragments::{self, ATTENTION};
use crate::results_file::check_results_file;

/// The share that is told in short.
const SHARE: f64 = 0.125;

/// Writes the results of `outcome`, with how to come by them (`provenance`: lines of name and value), and what they must hold beside them ([`fragments`]).
/// Returns what it says in short.
///
/// # Errors
/// A file of results that nobody's study wrote; what the system reports.
pub fn write_results(
    outcome: &AttentionOutcome,
    config: &AttentionConfig,
    provenance: &[(String, String)],
) -> Result<Vec<String>> {
    check_results_file(&config.results_file(), false)?;
    let said: Vec<String> = config.texts.iter().map(|texts| in_short(outcome, texts.length)).collect();
    let mut page = format!("# {}\n\n", ATTENTION.title);
    for line in &said {
        let _ = writeln!(page, "- {line}");
    }
    let _ = write!(page, "\n{}\n\n", fragments::mark(&ATTENTION));
    for (name, value) in provenance {
        let _ = writeln!(page, "- {name}: {value}");
    }
    for texts in &config.texts {
        if let Some(own) = outcome.made().find(|own| own.cell.length == texts.length) {
            let sha256 = own.material_sha256.get(..16).unwrap_or_default();
            let _ = writeln!(page, "- texts of {} tokens: SHA-256 {sha256}…", texts.length);
        }
    }
    let seconds: f64 = outcome.made().map(|own| own.seconds).sum();
    let _ = writeln!(page, "- seconds of all cells, added up: {seconds:.0}");
    for told in tables(outcome, config) {
        let _ = write!(page, "\n## {}\n\n{}\n\n{}", told.heading, told.prose, told.table.markdown()?);
    }
    fragments::write(&config.results_file(), &page, config.declared(), outcome.left())?;
    Ok(said)
}

/// What an eighth of the keys costs by each method, at a length.
fn in_short(outcome: &AttentionOutcome, length: usize) -> String {
    let of = |method| {
        let own = outcome.of(&Cell { method, share: SHARE, prefill: Prefill::Sparse, length })?;
        let (text, facts) = (outcome.text_rise(own), outcome.facts_rise(own));
        Some(format!("{} {}; {}", method.name(), within(text), within(facts)))
    };
    let found: Vec<String> = METHODS.into_iter().filter_map(of).collect();
    let found = if found.is_empty() { "nothing was made yet".to_owned() } else { found.join(" | ") };
    format!("{length} tokens, an eighth of the keys, nats above dense a token of text; a digit of facts: {found}.")
}
