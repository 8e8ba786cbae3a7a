//! Training: one loop and its state, dense pretraining, router fitting (phase 1), Surprise Min-K (phase 2), and evaluation.

pub mod checkpoints;
pub mod evaluate;
pub mod gda;
pub mod held_out;
pub mod language;
pub mod memory;
pub mod optimizer;
pub mod pretrain;
pub mod projection;
mod repair;
pub mod router_accuracy;
pub mod router_fit;
pub mod router_refit;
mod router_targets;
mod router_tuning;
pub mod schedule;
pub mod smk;
pub mod state;
pub mod trainer;

pub use checkpoints::{Checkpoints, Saving};
pub use evaluate::{DocumentLoss, Losses, evaluate};
pub use held_out::HeldOut;
pub use language::TextGradient;
pub use memory::{Memory, Precision};
pub use optimizer::{OptimizerConfig, UpdateRule};
pub use pretrain::{PretrainConfig, pretrain};
pub use projection::Projection;
pub use repair::{Repair, RepairSums};
pub use router_accuracy::{LevelAccuracy, RouterAccuracy, router_accuracy, row_accuracy};
pub use router_fit::{FitBy, RouterFitConfig, RouterFitter};
pub use router_refit::refit;
pub use router_tuning::Model;
pub use schedule::Schedule;
pub use smk::{SmkConfig, train_smk};
pub use state::{Slot, TrainState};
pub use trainer::{Adjust, Descend, Gradient, Rule, Said, Verdict, Watch, train};
