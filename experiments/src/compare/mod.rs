//! The comparison: does ∫SPS route better than anything else? A grid of cells over dense models of several seeds and texts, ending in one table
//! with intervals, and in `RESULTS.md`.
//!
//! Every figure that is compared is held-out loss, paired by seed and document. Records are kept cell by cell; what is there is not run again.

#[cfg(feature = "pictures")]
mod causal;
mod cell;
mod claim;
#[cfg(feature = "pictures")]
mod declared;
mod default_grid;
mod grid;
#[cfg(feature = "pictures")]
mod label_tables;
mod outcome;
#[cfg(feature = "pictures")]
mod pictures;
pub mod record;
#[cfg(feature = "pictures")]
mod results;
#[cfg(feature = "pictures")]
mod router_table;
mod shards;
mod subject;
#[cfg(feature = "pictures")]
mod told;

pub use cell::Cell;
pub use claim::{Difference, RIVALS, Trial, verdict};
pub use grid::{CompareConfig, CorpusConfig, Product, is_begun};
pub use outcome::{Finished, Outcome, Via};
#[cfg(feature = "pictures")]
pub use pictures::write_report;
#[cfg(feature = "pictures")]
pub use results::write_results;
pub use shards::Part;
pub(crate) use shards::shards_of;
pub use subject::run_subject;
