//! Training: the optimizer, dense pretraining, router fitting (phase 1), Surprise Min-K (phase 2), and evaluation.

pub mod evaluate;
pub mod gda;
pub mod optimizer;
pub mod pretrain;
pub mod projection;
pub mod router_accuracy;
pub mod router_fit;
pub mod router_refit;
mod router_targets;
pub mod router_training;
mod router_tuning;
pub mod smk;

pub use evaluate::{DocumentLoss, Losses, evaluate};
pub use optimizer::{AdamW, AdamwConfig};
pub use pretrain::{PretrainConfig, pretrain};
pub use projection::Projection;
pub use router_accuracy::{LevelAccuracy, RouterAccuracy, router_accuracy, row_accuracy};
pub use router_fit::{FitBy, RouterFitConfig, RouterFitter};
pub use router_refit::refit;
pub use router_training::RouterTraining;
pub use router_tuning::Model;
pub use smk::{Smk, SmkConfig, train_smk};
