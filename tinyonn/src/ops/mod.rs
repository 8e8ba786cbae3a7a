//! Differentiable operations, one a file: pairs of functions written by hand.
//!
//! `forward(inputs) -> (output, saved)`, and `backward(saved, d_output) -> d_inputs`, which puts weight gradients where they belong
//! ([`Grads`]); a weight without a place there is frozen, and its gradient is not formed. Who composes operations composes their
//! backwards in the opposite order; nothing is recorded.
//!
//! Each operation has a *plain form*, composed of candle's operations, which runs in every dtype and on every device and is what the others
//! must equal; where it pays, a fused form for f32 on the CPU stands beside it, behind one dispatch.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tinyonn::ops::{Grads, linear};
//!
//! let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let w = Var::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let y = linear::forward(&x, &w, None)?;
//! let mut grads = Grads::new([(w.as_tensor(), 0)])?;
//! let dx = linear::backward(&x, &w, None, &(y * 2.0)?, true, &mut grads)?; // of Σ y²
//! assert!(dx.is_some() && grads.get(&w).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```

pub mod activation;
pub mod adamw;
#[cfg(feature = "cuda")]
mod adamw_kernel;
pub mod attention;
#[cfg(feature = "cuda")]
mod attention_hopper;
#[cfg(feature = "cuda")]
mod attention_kernel;
mod block_sparse;
#[cfg(feature = "cuda")]
pub mod card;
#[cfg(feature = "cuda")]
mod causal_softmax;
pub mod chosen_neurons;
mod chosen_rows;
pub mod class_scatter;
mod class_sums;
#[cfg(feature = "cuda")]
mod collective_watchdog;
mod columns;
pub(crate) mod copies;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub(crate) mod decode_attention;
pub mod dispatch_mlp;
pub mod distillation;
pub mod elementwise;
pub mod embedding;
#[cfg(feature = "cuda")]
mod expert_hopper;
pub mod expert_neurons;
#[cfg(feature = "cuda")]
mod expert_products;
#[cfg(feature = "cuda")]
mod expert_rows;
mod few_queries;
#[cfg(feature = "cuda")]
pub mod gated_mlp;
#[cfg(feature = "cuda")]
mod gather_kernel;
pub mod gaussian_density;
#[cfg(feature = "cuda")]
pub(crate) mod gaussian_gates;
pub mod gaussian_routing;
#[cfg(feature = "cuda")]
pub(crate) mod gemv;
pub mod glu_mlp;
mod grad_norm;
mod grad_site;
pub mod grads;
#[cfg(feature = "cuda")]
pub(crate) mod graph;
#[cfg(feature = "cuda")]
pub mod grouped_mlp;
mod head_matrix;
pub mod hierarchy;
pub mod host;
#[cfg(feature = "cuda")]
mod image_kernel;
pub mod image_sums;
#[cfg(feature = "cuda")]
mod kernel;
mod lanes;
pub mod learners;
pub mod linear;
pub mod lion;
pub mod low_rank_mlp;
pub mod merged_mlp;
pub mod min_k;
mod mlp_values;
#[cfg(feature = "cuda")]
pub mod nccl;
pub mod neuron_moments;
#[cfg(feature = "cuda")]
pub(crate) mod next_token;
pub mod norm_rope;
mod open_gates;
pub(crate) mod packed_rows;
mod product;
#[cfg(any(feature = "cuda", test))]
mod ptx_cache;
pub mod rank;
pub mod removal;
pub mod replica_dispatch;
pub mod replicas;
pub mod rms_norm;
pub mod rope;
mod row_tiles;
mod rows_apart;
pub mod runs;
pub mod segment_means;
#[cfg(feature = "cuda")]
pub mod segment_mlp;
pub mod sgd;
pub mod share_loss;
pub mod shared_mlp;
#[cfg(feature = "cuda")]
mod silu_kernel;
pub mod sparse_attention;
mod sum_of_rows;
#[cfg(feature = "cuda")]
mod tensor_map;
pub mod token_scores;
pub mod update_table;
pub mod workspace;

pub use activation::{Activation, ActivationEntry, Gelu, Silu, activation, activations};
pub use adamw::{AdamwStep, adamw};
pub use chosen_neurons::{ByChannel, NeuronChoice, ReadInputs, Take};
pub use class_scatter::{ClassScatter, Weigh};
pub use class_sums::ClassSums;
pub use expert_neurons::ExpertNeurons;
pub use gaussian_routing::GaussianRouting;
pub use glu_mlp::{MlpGate, MlpWeights, SlicedMlp};
pub(crate) use grad_norm::grad_norm;
pub use grad_site::GradSite;
pub(crate) use grad_site::wide;
pub use grads::Grads;
pub use hierarchy::Hierarchy;
pub use image_sums::{ImageSums, ImageTensors, NeuronSums, UnitSums};
pub use learners::{Learners, LearningNeurons};
pub use lion::{LionStep, lion};
pub use low_rank_mlp::LowRank;
pub use min_k::MinK;
pub use mlp_values::MlpBackward;
pub use neuron_moments::{Imaging, Log1pScale, activation_and_surprise, image_moments};
pub use open_gates::open_gates;
pub use rank::ranks;
pub use removal::{KeptSet, Removal, squared_removal, squared_sensitivity};
pub use replicas::Replicas;
pub use runs::RowRun;
pub use sgd::{SgdStep, sgd};
pub use token_scores::{ScoreTerms, TokenScores, ZTerm};
pub use update_table::{Descriptor, UpdateTable};
pub use workspace::Workspace;
