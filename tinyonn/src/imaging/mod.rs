//! Digital fMRI: what each neuron and expert does, and learns, on each task.
//!
//! One pseudo-dense pass over a task's text ([`fn@scan`]) gives every neuron's activation and *surprise*, the norm of each token's
//! contribution to the gradient of its weights. SPS is the one minus the other, each standardised; integrated over a task it is
//! ∫SPS ([`sps`]). Scans are kept in files, continued and merged ([`scan_file`]). From ∫SPS come each task's optimal computation path
//! ([`labels`]) and, if asked, the partition of neurons into experts itself ([`partition`]); from a token's own SPS, in a second pass,
//! that token's path ([`mod@token_labels`]).

mod balanced_k_means;
pub mod choice_calibration;
pub mod coactivation;
pub mod dump;
pub mod greedy;
pub mod inputs;
mod label_balance;
pub mod label_source;
pub mod label_statistics;
pub mod labels;
pub mod neuron_calibration;
pub mod neuron_damage;
pub mod neuron_marks;
pub mod neuron_scan;
pub mod partition;
pub mod row_labels;
pub mod scan;
pub mod scan_file;
pub mod score;
pub mod sps;
pub mod token_labels;

pub use choice_calibration::{ChoiceCalibration, calibrate_choices};
pub use coactivation::coactivation;
pub use dump::{Dump, dump};
pub use greedy::GreedyOptions;
pub use inputs::RouterInputs;
pub use label_balance::{LabelBalance, Prices};
pub use label_source::{How, LabelInputs, LabelSource};
pub use label_statistics::{LabelStatistics, LayerStatistics};
pub use labels::Labels;
pub use neuron_calibration::{
    Choose, GateCalibration, calibrate_gate, calibrate_pruned, least_hidden, least_input, threshold,
};
pub use neuron_damage::{Cut, DamageOptions, LayerDamage, cuts_by_layer, neuron_damage, sensitivity};
pub use neuron_marks::{NeuronMarks, neuron_marks};
pub use neuron_scan::{NeuronScan, Units};
pub use partition::{Partition, PartitionSources};
pub use row_labels::RowLabels;
pub use scan::{Log1p, ScanOptions, ScanRequest, Shard, scan, scan_batches, scan_with};
pub use scan_file::{ScanFile, ScanPart, StoredScan};
pub use score::{ExpertForm, Form, Norm, Score};
pub use sps::Integral;
pub use token_labels::{TokenPass, TokenScore, token_labels, token_prices};
