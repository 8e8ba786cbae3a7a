//! What the study found, written from its runs and by nobody's hand; a fragment of `RESULTS.md`, and its page.

use std::fmt::Write as _;

use tinyonn::phases::Method;
use tinyonn::{Result, train::UpdateRule};

use super::knowledge_tables;
use super::pictures::figures;
use super::tables::{tables, within};
use super::{Final, Outcome, StudyConfig};
use crate::fragments;
use crate::report::{Figure, Page, Section};
use crate::results_file::check_results_file;

/// Writes the results of `outcome`, with how to come by them (`provenance`: lines of name and value), what they must hold beside them ([`fragments`]), and
/// the page `report.html` with its figures. Returns what it says in short.
///
/// # Errors
/// A file of results that nobody's study wrote; what the system reports.
pub fn write_results(outcome: &Outcome, config: &StudyConfig, provenance: &[(String, String)]) -> Result<Vec<String>> {
    check_results_file(&config.results_file(), false)?;
    let said = in_short(outcome, config);
    let part = config.part();
    let mut page = format!("# {}\n\n", part.title);
    for (at, line) in said.iter().enumerate() {
        let _ = if at == 0 { writeln!(page, "**{line}**\n") } else { writeln!(page, "- {line}") };
    }
    let _ = write!(page, "\n{}\n\n", fragments::mark(part));
    for (name, value) in provenance {
        let _ = writeln!(page, "- {name}: {value}");
    }
    let texts: Vec<String> =
        outcome.texts.iter().map(|(seed, text)| format!("{}… (seed {seed})", text.get(..16).unwrap_or(""))).collect();
    let _ = writeln!(page, "- old text: SHA-256 {}", texts.join(", "));
    let runs = outcome.screen.iter().map(|run| &run.record);
    let finals = outcome.finals.iter().flat_map(|finalist| finalist.runs.iter().flatten()).map(|run| &run.0);
    let seconds: f64 = runs.chain(finals).map(|record| record.seconds).sum();
    let _ = writeln!(page, "- seconds of all runs, added up, without pretraining: {seconds:.0}");
    let drawn = figures(outcome, config)?;
    let names: Vec<String> =
        fragments::write_figures(&config.results_file(), &drawn)?.iter().map(|name| format!("`{name}`")).collect();
    let _ = writeln!(page, "- drawn: {}", if names.is_empty() { "nothing yet".into() } else { names.join(", ") });
    let told = tables(outcome, config);
    for told in &told {
        let _ = write!(page, "\n## {}\n\n{}\n\n{}", told.heading, told.prose, told.table.markdown()?);
    }
    fragments::write(&config.results_file(), &page, config.declared(), outcome.left())?;
    let mut sections = vec![Section {
        heading: "In pictures".into(),
        prose: vec!["Old text against new learning; lower and further left is better.".into()],
        figures: drawn,
    }];
    for told in told {
        sections.push(Section {
            heading: told.heading.into(),
            prose: Vec::new(),
            // A page has no emphasis.
            figures: vec![Figure::table(&told.table, told.prose.replace('*', ""))?],
        });
    }
    let facts = provenance.to_vec();
    Page { title: part.title.into(), lead: said.clone(), facts, sections }.write(&config.out)?;
    Ok(said)
}

/// The answer, and what else is to be said in figures.
fn in_short(outcome: &Outcome, config: &StudyConfig) -> Vec<String> {
    let mut said =
        if config.knowledge.is_some() { knowledge_tables::in_short(outcome, config) } else { vec![answer(outcome)] };
    let dense = outcome.finals.iter().find(|finalist| finalist.trial.method == Method::DENSE);
    for finalist in outcome.finals.iter().filter(|finalist| finalist.trial.method != Method::DENSE) {
        let Some(dense) = dense else { continue };
        let difference = finalist.against(dense);
        let (better, all) = finalist.better_in(dense);
        said.push(match difference {
            Some(_) => format!(
                "`{}` at {}: {} nats of the old text against dense fine-tuning at equal learning, better in {better} of {all} runs.",
                finalist.trial.method.name(),
                finalist.trial.rate_name(),
                within(difference)
            ),
            None => format!(
                "`{}` at {} does not learn all tasks as far as dense fine-tuning does in enough runs to be compared ({all}).",
                finalist.trial.method.name(),
                finalist.trial.rate_name()
            ),
        });
    }
    let rate = |method| match outcome.highest_rate(method, UpdateRule::Adamw) {
        Some((rate, true)) => format!("{rate:e}"),
        Some((rate, false)) => format!("{rate:e} or more"),
        None => "none that was tried".into(),
    };
    let methods = if config.knowledge.is_some() { &config.methods() } else { &config.finalists };
    let rates: Vec<String> = methods.iter().map(|m| format!("`{}` {}", m.name(), rate(*m))).collect();
    said.push(format!("The highest constant rate of AdamW that still learns every task: {}.", rates.join(", ")));
    said
}

/// Whether Surprise Min-K forgets less than each other finalist, dense fine-tuning first.
fn answer(outcome: &Outcome) -> String {
    let named = |name: &str| outcome.finals.iter().find(|finalist| finalist.trial.method.name() == name);
    let (Some(smk), Some(dense)) = (named("smk"), named("dense")) else {
        return "The finals were not run: nothing is decided.".into();
    };
    let verdict = |other: &Final| {
        let than = if other.trial == dense.trial {
            "dense fine-tuning".to_owned()
        } else {
            format!("`{}`", other.trial.method.name())
        };
        let Some(difference) = smk.against(other) else { return format!("not comparably with {than}") };
        let word = match (difference.low, difference.high) {
            (_, high) if high < 0.0 => "less than",
            (low, _) if low > 0.0 => "more than",
            _ => "not surely less or more than",
        };
        format!("{word} {than} ({})", within(Some(difference)))
    };
    let others = outcome.finals.iter().filter(|other| ![smk.trial, dense.trial].contains(&other.trial));
    let verdicts: Vec<String> = std::iter::once(dense).chain(others).map(verdict).collect();
    format!(
        "At equal learning Surprise Min-K forgets {}; nats of the old text, paired by seed, 95 % intervals.",
        verdicts.join(", ")
    )
}
