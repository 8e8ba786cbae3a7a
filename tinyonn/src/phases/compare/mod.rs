//! The comparison: does ∫SPS route better than anything else? A grid of cells over dense models of several seeds and texts, ending in one table
//! with intervals, and in `RESULTS.md`.
//!
//! Every figure that is compared is held-out loss, paired by seed and document. Records are kept cell by cell; what is there is not run again.

mod claim;
mod default_grid;
mod grid;
mod label_source;
mod outcome;
mod pictures;
pub mod record;
mod results;
mod subject;

pub use claim::{Difference, RIVALS, Trial, verdict};
pub use grid::{Cell, CompareConfig, CorpusConfig, Product};
pub use label_source::{How, LabelSource};
pub use outcome::{Finished, Outcome, Via};
pub use pictures::write_report;
pub use results::write_results;
pub use subject::run_subject;
