//! The comparison's page: the same tables, and the curves and matrices behind them.

use super::CompareConfig;
use super::claim::verdict;
use super::outcome::Outcome;
use crate::Result;
use crate::report::{Figure, Page, Section};

/// Writes `report.html` into the comparison's folder.
///
/// # Errors
/// What the system reports.
pub fn write_report(outcome: &Outcome, config: &CompareConfig) -> Result<()> {
    let mut sections = Vec::new();
    for told in outcome.tables(config) {
        sections.push(Section {
            heading: told.heading,
            prose: Vec::new(),
            figures: vec![Figure::table(&told.table, told.prose)?],
        });
    }
    let page = Page {
        title: "Does ∫SPS route better than anything else?".into(),
        lead: verdict(&outcome.trials(config)),
        facts: Vec::new(),
        sections,
    };
    page.write(&config.out)
}
