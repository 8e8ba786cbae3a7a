//! The two phases, whole: what the `exp_*` binaries and a user's ten-line `main` call.
//!
//! ```no_run
//! use tinyonn::phases::{Phase2Config, phase2};
//!
//! let summary = phase2(&Phase2Config::quick())?;
//! println!("dense {:.3}, routed {:.3} nats a token", summary.loss.dense, summary.loss.routed_after);
//! # Ok::<(), tinyonn::Error>(())
//! ```

pub mod config;
pub mod dense;
pub mod device;
pub mod image;
mod label_sources;
mod page;
pub mod phase2;
mod run;
pub mod summary;
pub mod text;

pub use config::{DenseShape, Phase2Config};
pub use dense::Dense;
pub use device::DeviceName;
pub use image::{ImageConfig, MergeConfig, image, merge_scans};
pub use phase2::phase2;
pub use summary::Summary;
pub use text::Text;
