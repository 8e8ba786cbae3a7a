//! A table as it is told in RESULTS.md and on the page, and how its numbers are written.

pub(super) use crate::frontier::times;
use crate::report::Table;
use tinyonn::metrics::Interval;

/// A table with its heading and what it shows.
pub(super) struct Told {
    pub(super) heading: String,
    pub(super) prose: String,
    pub(super) table: Table,
}

/// `mean over 3 seeds`; of a single one, `one seed`.
pub(super) fn over_seeds(count: usize) -> String {
    if count == 1 { "one seed".into() } else { format!("mean over {count} seeds") }
}

/// `2.286 2.315 2.183`.
pub(super) fn each(seeds: &[f64]) -> String {
    seeds.iter().map(|loss| format!("{loss:.3}")).collect::<Vec<_>>().join(" ")
}

pub(super) fn signed(delta: Option<Interval>) -> String {
    delta.map_or("–".into(), |delta| format!("{:+.3} [{:+.3}, {:+.3}]", delta.mean, delta.low, delta.high))
}

pub(super) fn share(recovery: Option<Interval>) -> String {
    let percent = |x: f64| 100.0 * x;
    recovery.map_or("–".into(), |r| format!("{:.1} [{:.1}, {:.1}]", percent(r.mean), percent(r.low), percent(r.high)))
}
