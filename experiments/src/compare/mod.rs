//! The comparison: does ∫SPS route better than anything else? A grid of cells over dense models of several seeds and texts, ending in one table
//! with intervals, and in `RESULTS.md`.
//!
//! Every figure that is compared is held-out loss, paired by seed and document. Records are kept cell by cell; what is there is not run again.

mod causal;
mod cell;
mod claim;
mod default_grid;
mod grid;
mod label_tables;
mod outcome;
mod pictures;
pub mod record;
mod results;
mod router_table;
mod subject;
mod told;

pub use cell::Cell;
pub use claim::{Difference, RIVALS, Trial, verdict};
pub use grid::{CompareConfig, CorpusConfig, Product};
pub use outcome::{Finished, Outcome, Via};
pub use pictures::write_report;
pub use results::{check_results_file, write_results};
pub use subject::run_subject;
