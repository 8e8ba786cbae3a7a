//! Training: one loop and its state, dense pretraining, router fitting (phase 1), Surprise Min-K (phase 2), and evaluation.

pub mod checkpoints;
pub mod evaluate;
pub mod gda;
pub mod optimizer;
pub mod pretrain;
pub mod projection;
pub mod router_accuracy;
pub mod router_fit;
pub mod router_refit;
mod router_targets;
mod router_tuning;
pub mod smk;
pub mod state;
pub mod trainer;

pub use checkpoints::{Checkpoints, Saving};
pub use evaluate::{DocumentLoss, Losses, evaluate};
pub use optimizer::AdamwConfig;
pub use pretrain::{PretrainConfig, pretrain};
pub use projection::Projection;
pub use router_accuracy::{LevelAccuracy, RouterAccuracy, router_accuracy, row_accuracy};
pub use router_fit::{FitBy, RouterFitConfig, RouterFitter};
pub use router_refit::refit;
pub use router_tuning::Model;
pub use smk::{SmkConfig, train_smk};
pub use state::{Slot, TrainState};
pub use trainer::{Rule, Said, train};
