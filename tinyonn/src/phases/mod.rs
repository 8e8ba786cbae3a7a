//! The two phases, whole: what a user's ten-line `main` calls; and their stages, for programs that ask more of a run.
//!
//! Phases return what they found and write what goes on from it: checkpoints, `summary.json`, logs. They draw nothing.
//!
//! ```no_run
//! use tinyonn::phases::{RunConfig, phase2};
//!
//! let summary = phase2(&RunConfig::quick(), None)?;
//! println!("dense {:.3}, routed {:.3} nats a token", summary.phase1.loss.dense, summary.smk.routed);
//! # Ok::<(), tinyonn::Error>(())
//! ```
//!
//! A study is a program on a [`Run`], of which it asks what it needs:
//!
//! ```no_run
//! use tinyonn::decoder::Pass;
//! use tinyonn::metrics::Stopwatch;
//! use tinyonn::phases::{Prepared, RunConfig};
//!
//! let (config, mut watch) = (RunConfig::quick(), Stopwatch::new());
//! let prepared = Prepared::new(&config, &mut watch, None)?;
//! let run = prepared.run(&config);
//! let found = run.phase1(&mut watch)?;
//! let all_active = run.evaluate(run.model(&found.store)?.lm(), &Pass::all())?;
//! println!("all active {:.3}, routed {:.3}", all_active.mean, found.before.routed.mean);
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod alike;
pub mod config;
mod continuation;
mod dealt_rows;
pub mod dense;
pub mod device;
mod figures;
mod fitting;
pub mod forgetting;
pub mod image;
mod inputs;
mod loss_passes;
mod lossless;
mod pass_file;
mod pass_record;
pub mod phase1;
pub mod phase2;
pub mod plan;
mod prepared;
mod refit_passes;
mod room;
mod row_passes;
mod run;
mod scan;
mod sparse_layers;
mod sparse_routers;
pub mod sparsify;
pub mod sparsify_config;
mod sparsify_from;
pub mod summary;
pub mod text;
mod weights;

pub use config::{DenseShape, LabelUnit, RunConfig};
pub use continuation::LeftByPhase1;
pub use dense::Dense;
pub use device::DeviceName;
pub use fitting::{Fits, LabelSet, TokenRows};
pub use forgetting::{
    Asked, Crossing, ForgettingConfig, ForgettingRecord, KnowledgeRecord, Look, Method, OldKnowledge, forgetting,
};
pub use image::{Image, ImageConfig, Imaging, MergeConfig, TextConfig, image, merge_scans};
pub use inputs::{HeldInputs, SplitInputs};
pub use lossless::LosslessFigures;
pub use pass_file::PassFile;
pub use pass_record::RowPass;
pub use phase1::{Phase1, phase1};
pub use phase2::{Phase2, phase2, phase2_beside, phase2_from};
pub use plan::{Plan, PlannedTraining, Stages, plan};
pub use prepared::Prepared;
pub use room::check_room;
pub use row_passes::Passed;
pub use run::{LossesNow, METRICS, Run, active_share};
pub use sparse_layers::SparseModel;
pub use sparsify::{SparsifySummary, sparsify, sparsify_from};
pub use sparsify_config::{Shares, SparsifyConfig, Worth};
pub use summary::{Phase1Summary, Summary};
pub use text::{Text, Tokens};
