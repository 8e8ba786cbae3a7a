//! The two phases, whole: what the `exp_*` binaries and a user's ten-line `main` call.
//!
//! ```no_run
//! use tinyonn::phases::{RunConfig, phase2};
//!
//! let summary = phase2(&RunConfig::quick(), None)?;
//! println!("dense {:.3}, routed {:.3} nats a token", summary.phase1.loss.dense, summary.smk.routed);
//! # Ok::<(), tinyonn::Error>(())
//! ```

pub mod causal;
mod causal_page;
pub mod compare;
pub mod config;
mod continuation;
pub mod dense;
pub mod device;
mod figures;
mod fitting;
pub mod frontier;
mod frontier_page;
pub mod image;
mod label_sources;
mod page;
pub mod phase1;
pub mod phase2;
mod pictures;
pub mod plan;
mod prepared;
mod run;
pub mod summary;
pub mod text;

pub use config::{DenseShape, LabelUnit, RunConfig};
pub use dense::Dense;
pub use device::DeviceName;
pub use image::{ImageConfig, MergeConfig, TextConfig, image, merge_scans};
pub use phase1::phase1;
pub use phase2::{phase2, phase2_from};
pub use plan::{Plan, PlannedTraining, Stages, plan};
pub use summary::{Phase1Summary, Summary};
pub use text::Text;
