//! The study of attention: what is lost where a query attends to a share of its keys, by each way to choose them.
//!
//! A [`Cell`] is a [`Method`] at a share, read at a length behind a prefill. It is measured on whole documents past a quarter of their tokens, and on facts that are asked again
//! later. All methods go one way: tiles of queries score the keys (`scores`), the best are kept (`kept`) and attended to (`masked`), so that they differ in nothing but their
//! scores; that these choose what the library's indices choose is tested. What others publish and the library has not, is here alone.

#[cfg(feature = "pictures")]
mod bars;
mod cell;
mod config;
#[cfg(feature = "pictures")]
mod declared;
mod eight_bits;
mod facts;
mod grid;
mod heavy_hitters;
mod kept;
mod masked;
mod material;
mod method;
#[cfg(feature = "pictures")]
mod outcome;
mod reader;
mod record;
#[cfg(feature = "pictures")]
mod results;
mod runner;
mod scores;
mod shared_text;
mod store;
mod subject;
#[cfg(feature = "pictures")]
mod tables;

pub use cell::Cell;
pub use config::{AttentionConfig, Texts};
pub use masked::{Counted, attend};
pub use method::Method;
#[cfg(feature = "pictures")]
pub use outcome::AttentionOutcome;
pub use record::{Asked, AttentionRecord};
#[cfg(feature = "pictures")]
pub use results::write_results;
pub use runner::{PlannedCell, run_cells};
pub use store::AttentionStore;
