//! The study of evidence: how much of a pretrained model each way to take part of its MLPs keeps, at which share of their operations.
//!
//! A [`Cell`] is a [`Method`] at a share, with one thing changed at most ([`Change`]), in closed form or distilled behind it. All are measured on validation text; finalists,
//! which are named before anything is run, on the test split, on kinds of text that nothing was calibrated on, and by benchmarks. A record holds losses by document, what lies beside it answers by
//! item, so that any two cells are compared in pairs. The library makes its own variants; what others do is rebuilt here (`carved`, `cmoe`), with the same repair.

mod answers;
#[cfg(feature = "pictures")]
mod bars;
mod carved;
mod cell;
mod choice;
mod chosen_mlp;
mod cmoe;
#[cfg(feature = "pictures")]
mod compared;
mod config;
#[cfg(feature = "pictures")]
mod declared;
mod grid;
mod method;
#[cfg(feature = "pictures")]
mod outcome;
mod record;
#[cfg(feature = "pictures")]
mod results;
mod runner;
mod speed;
mod store;
mod subject;
#[cfg(feature = "pictures")]
mod tables;

pub use answers::{CellAnswers, Items, TaskAnswers};
pub use cell::{Cell, Change};
#[cfg(feature = "pictures")]
pub(crate) use compared::rise;
pub use config::EvidenceConfig;
pub use method::Method;
#[cfg(feature = "pictures")]
pub use outcome::EvidenceOutcome;
pub use record::{CellRecord, KindLosses};
#[cfg(feature = "pictures")]
pub use results::write_results;
pub use runner::{PlannedCell, run_cells};
pub use speed::{BesideDense, Speed, time_cells};
pub use store::{EvidenceStore, Lacking};
pub use subject::{Found, Subject};
