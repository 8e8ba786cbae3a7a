//! What growth buys: one model goes on as it is, others grow at half of the training, and all see the same tokens.

mod arm;
mod config;
mod record;
#[cfg(feature = "pictures")]
mod results;
mod subject;

pub use arm::Arm;
pub use config::GrowthConfig;
pub use record::{Record, records};
#[cfg(feature = "pictures")]
pub use results::write_results;
pub use subject::run_subject;
