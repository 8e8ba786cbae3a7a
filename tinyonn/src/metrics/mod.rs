//! Values measured while a model trains, where they go (a file of one JSON object a line, TensorBoard's events beside it, a progress bar, a stopwatch), and how sure their
//! means are ([`interval()`], [`mean_interval()`]).
//!
//! ```
//! # fn main() -> tinyonn::Result<()> {
//! # let folder = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
//! # let path = folder.path().join("metrics.jsonl");
//! use tinyonn::metrics::{MetricsLog, read, series};
//!
//! let mut log = MetricsLog::create(&path)?;
//! log.log(0, "pretrain", &[("loss", 5.5), ("rate", 1e-3)])?;
//! log.log(1, "pretrain", &[("loss", 5.25), ("rate", 1e-3)])?;
//!
//! assert_eq!(series(&read(&path)?, "pretrain", "loss"), [(0.0, 5.5), (1.0, 5.25)]);
//! # Ok(())
//! # }
//! ```

mod bootstrap;
mod finite;
mod jsonl;
mod memory;
mod pace;
mod progress;
mod stopwatch;
mod student;
mod tensorboard;
mod value;

pub use bootstrap::{Interval, by_cluster, interval};
pub(crate) use finite::{Stage, check_loss};
pub use jsonl::{MetricsLog, read};
pub use memory::{peak_bytes, resident_bytes};
pub use pace::size;
pub use progress::Progress;
pub use stopwatch::Stopwatch;
pub use student::mean_interval;
pub use value::{Record, series};
