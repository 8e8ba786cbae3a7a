//! Differentiable operations, one a file: a forward and a backward written by hand.
//!
//! Each operation computes its value from detached tensors and records one node on candle's tape ([`tape`]), so that
//! frozen weights form no gradients, saved tensors are chosen and not implied, and a kernel can replace the inside of a
//! file without a caller knowing. An operation has two insides that must agree: a fused one for f32 on the CPU, and a
//! composition of candle's plain operations for every other dtype and for CUDA.
//!
//! Losses are differentiated with [`backward`], not with `Tensor::backward`: gradients of leaf variables are collected
//! beside the tape, where three inputs an operation and candle's copies of leaf gradients are no limit.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tinyonn::ops;
//!
//! let x = Var::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let w = Var::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let frozen = w.as_detached_tensor();
//! let grads = ops::backward(&ops::linear(&x, &frozen, None)?.sqr()?.sum_all()?)?;
//! assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
//! # Ok::<(), candle_core::Error>(())
//! ```

pub mod activation;
pub mod adamw;
pub mod attention;
mod block_sparse;
pub mod class_sums;
pub mod cross_entropy;
pub mod dispatch_mlp;
pub mod embedding;
pub mod expert_neurons;
pub mod gaussian_density;
pub mod glu_mlp;
pub mod grad_site;
pub mod image_sums;
mod lanes;
pub mod linear;
pub mod merged_mlp;
mod mlp_pass;
pub mod neuron_moments;
pub mod replica_dispatch;
pub mod replicas;
pub mod rms_norm;
pub mod rope;
pub mod runs;
pub mod shared_mlp;
mod sum_of_rows;
pub mod tape;

pub use activation::{Activation, ActivationEntry, Gelu, Silu, activation, activations};
pub use adamw::{AdamwStep, adamw};
pub use attention::causal_attention;
pub use class_sums::ClassSums;
pub use cross_entropy::head_cross_entropy;
pub use dispatch_mlp::dispatch_mlp;
pub use embedding::embedding;
pub use expert_neurons::ExpertNeurons;
pub use gaussian_density::gaussian_density;
pub use glu_mlp::{MlpBackward, MlpGate, MlpProbe, MlpWeights, WeightGrads, glu_mlp};
pub use grad_site::GradSite;
pub use image_sums::{ImageSums, NeuronSums, UnitSums};
pub use linear::linear;
pub use merged_mlp::merged_mlp;
pub use neuron_moments::{Imaging, Scale, activation_and_surprise, image_moments, neuron_moments};
pub use replica_dispatch::replica_dispatch;
pub use replicas::Replicas;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use runs::Run;
pub use shared_mlp::shared_mlp;
pub use tape::backward;
