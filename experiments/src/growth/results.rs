//! What the study found, written from its records and by nobody's hand; a fragment of `RESULTS.md`.

use std::fmt::Write as _;

use tinyonn::Result;
use tinyonn::metrics::mean_interval;

use super::config::HEADING;
use super::{Arm, GrowthConfig, Record, records};
use crate::fragments::{self, GROWTH};
use crate::report::{Column, Table};

/// An arm's records, a seed each.
type Found = (Arm, Vec<Option<Record>>);

/// Writes the results, with how to come by them: `provenance`, lines of name and value. Beside it what they must hold ([`fragments`]).
///
/// # Errors
/// What the system reports.
pub fn write_results(config: &GrowthConfig, provenance: &[(String, String)]) -> Result<()> {
    let found = records(config)?;
    let mut page = format!("# {}\n\n", GROWTH.title);
    for line in answers(&found) {
        let _ = writeln!(page, "- {line}");
    }
    let _ = write!(page, "\n{}\n\n", fragments::mark(&GROWTH));
    for (name, value) in provenance {
        let _ = writeln!(page, "- {name}: {value}");
    }
    let hashes: Vec<String> =
        found.iter().take(1).flat_map(|(_, records)| records.iter().flatten()).map(short).collect();
    let _ = writeln!(page, "- text: SHA-256 {}…", hashes.join("…, "));
    let half = config.run.smk.steps / 2;
    let tokens = config.run.smk.batch * config.run.length;
    let _ = write!(
        page,
        "\n## {HEADING}\n\n`{}` grows into `{}`. All begin with the same model and see the same batches: {half} steps of {tokens} tokens, then growth, then {half} more, everything \
         that is active learning. Routers are fitted anew, where they are, behind half of those. Operations are multiply-adds a token in feed-forwards and routers, in millions; losses are nats a \
         token of the test split, means over seeds; differences are from no growth, paired by seed, with 95 % intervals of Student.\n\n{}",
        config.run.variant,
        config.grown,
        table(&found).markdown()?
    );
    let not_run = found.iter().flat_map(|(arm, records)| {
        let seeds = config.seeds.iter().zip(records).filter(|(_, record)| record.is_none());
        seeds.map(|(seed, _)| format!("{} of seed {seed}", arm.name))
    });
    fragments::write(&config.results_file(), &page, config.declared(), not_run.collect())
}

fn short(record: &Record) -> String {
    record.corpus_sha256.chars().take(16).collect()
}

fn mean(records: &[Option<Record>], of: impl Fn(&Record) -> f64) -> f64 {
    let values: Vec<f64> = records.iter().flatten().map(of).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// The losses of `one` less those of `other`, a seed each that both have.
fn apart(one: &[Option<Record>], other: &[Option<Record>]) -> Vec<f64> {
    let both = one.iter().zip(other).filter_map(|(one, other)| Some((one.as_ref()?, other.as_ref()?)));
    both.map(|(one, other)| one.at_end - other.at_end).collect()
}

fn interval(differences: &[f64]) -> String {
    match mean_interval(differences) {
        Some(found) => format!("{:+.3} [{:+.3}, {:+.3}]", found.mean, found.low, found.high),
        None => differences.first().map_or("–".into(), |only| format!("{only:+.3}, one seed")),
    }
}

fn table(found: &[Found]) -> Table {
    let columns = vec![
        Column::text("model"),
        Column::number("neurons of a layer", 0),
        Column::number("taken", 0),
        Column::number("operations", 3),
        Column::number("loss at half", 3),
        Column::lowest("at the end", 3),
        Column::text("from no growth"),
    ];
    let none = found.first().map(|(_, records)| records.as_slice()).unwrap_or_default();
    let row = |(arm, records): &Found| {
        vec![
            arm.name.into(),
            mean(records, |record| record.neurons as f64).into(),
            mean(records, |record| record.taken).into(),
            mean(records, |record| record.operations / 1e6).into(),
            mean(records, |record| record.at_half).into(),
            mean(records, |record| record.at_end).into(),
            if arm.key == "none" { "".into() } else { interval(&apart(records, none)).into() },
        ]
    };
    Table { columns, rows: found.iter().map(row).collect() }
}

/// What the table says, in sentences.
fn answers(found: &[Found]) -> Vec<String> {
    let of = |key: &str| found.iter().find(|(arm, _)| arm.key == key).map(|(_, records)| records.as_slice());
    let asked = [
        (
            "Children that share, fitted anew, against no growth, fitted anew, at equal operations",
            "shared-fitted",
            "none-fitted",
        ),
        ("New neurons that ride, against no growth", "wider", "none"),
        ("New neurons, routed, against a dense model of about equal operations a token", "wider", "dense-equal"),
        ("New neurons, routed, against a dense model as much wider", "wider", "dense-wider"),
    ];
    let line = |(what, one, other): (&str, &str, &str)| {
        let differences = apart(of(one)?, of(other)?);
        let said = match mean_interval(&differences) {
            Some(found) if found.high < 0.0 => "lower",
            Some(found) if found.low > 0.0 => "higher",
            _ => "no difference that these seeds tell",
        };
        Some(format!("{what}: {} nats a token ({said}).", interval(&differences)))
    };
    asked.into_iter().filter_map(line).collect()
}
