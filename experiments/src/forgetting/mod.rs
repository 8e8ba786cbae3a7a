//! The study of forgetting: does Surprise Min-K forget less at equal learning than dense fine-tuning, LoRA, and choices that know nothing?
//!
//! A *trial* is a method, an optimizer's rule and a constant rate ([`StudyConfig::trials`]). In the *screen* every trial runs once, on one seed and the
//! first order of tasks, so that one thing differs from the default at a time. In the *finals* a few methods, each at the rate that did best in the
//! screen, run on seeds that nothing was chosen by, in every order. A run is one file, and is not run again. Of a pretrained model there is the screen alone
//! ([`StudyConfig::pretrained`]).

#[cfg(feature = "pictures")]
mod declared;
mod kept;
#[cfg(feature = "pictures")]
mod knowledge_tables;
mod matched;
mod outcome;
mod own_text;
#[cfg(feature = "pictures")]
mod pictures;
#[cfg(feature = "pictures")]
mod results;
mod runner;
mod store;
mod study;
#[cfg(feature = "pictures")]
mod tables;

pub use kept::Kept;
pub use matched::{Matched, Targets};
pub use outcome::{Final, Outcome, Screened};
pub use own_text::own_text;
#[cfg(feature = "pictures")]
pub use results::write_results;
pub use runner::{Planned, dealt, run_shard};
pub use store::{RunRecord, Store};
pub use study::{KnowledgeConfig, RunKey, Stage, StudyConfig, Trial, Trials};
