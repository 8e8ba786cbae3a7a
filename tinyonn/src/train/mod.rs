//! Training: the optimizer, dense pretraining, router fitting, Surprise Min-K, evaluation.

pub mod optimizer;

pub use optimizer::{AdamW, AdamwConfig};
