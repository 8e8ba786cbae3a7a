//! Digital fMRI: what each neuron and expert does, and learns, on each task.
//!
//! One pseudo-dense pass over a task's text ([`fn@scan`]) gives every neuron's activation and *surprise*, the norm of each token's
//! contribution to the gradient of its weights. SPS is the one minus the other, each standardised; integrated over a task it is
//! ∫SPS ([`sps`]). From ∫SPS come each task's optimal computation path ([`labels`]) and, if asked, the partition of neurons into
//! experts itself ([`partition`]); from a token's own SPS, in a second pass, that token's path ([`mod@token_labels`]).

pub mod dump;
pub mod inputs;
pub mod labels;
pub mod partition;
pub mod row_labels;
pub mod scan;
pub mod sps;
pub mod token_labels;

pub use dump::{Dump, dump};
pub use inputs::RouterInputs;
pub use labels::Labels;
pub use partition::Partition;
pub use row_labels::RowLabels;
pub use scan::{NeuronScan, ScanOptions, scan};
pub use sps::{Integral, Score};
pub use token_labels::{TokenScore, token_labels};
