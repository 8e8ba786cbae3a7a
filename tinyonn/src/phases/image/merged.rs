//! Stored scans, added up and seen without their model.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Image, Owners, SCAN, refuse_replicas};
use crate::imaging::{Form, Partition, PartitionSources, StoredScan, partition};
use crate::moe::{MoeSpec, variant};
use crate::{Error, Result};

/// Stored scans, and how they are seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfig {
    /// The scans' files, one or more.
    pub files: Vec<PathBuf>,
    /// The declared variant whose experts the neurons are seen as.
    pub variant: String,
    /// How neurons are given to experts, where the scans do not know it; without it as the variant declares, or else in runs.
    pub partition: Option<Partition>,
    /// Decides the partition.
    pub seed: u64,
    /// How ∫SPS is formed.
    pub form: Form,
    /// Whether scans may be of several kinds of device, or computed in several types.
    #[serde(default)]
    pub mixed: bool,
    /// The folder of the results, which exists.
    pub out: PathBuf,
}

/// Merges stored scans and writes what [`image()`](super::image()) does of their sum, without a model or its text.
///
/// # Errors
/// Files that are no finished scans, or not of one model and kind; shards of several texts; a variant of other experts; a form whose sums they do not hold.
pub fn merge_scans(config: &MergeConfig) -> Result<Image> {
    let read = |path: &PathBuf| Ok((path.clone(), StoredScan::load(path)?));
    let stored = StoredScan::sum(config.files.iter().map(read).collect::<Result<_>>()?, config.mixed)?;
    stored.scan.check_gradients()?;
    let spec = &variant(&config.variant)?.spec;
    refuse_replicas(spec)?;
    let (owners, strategy) = owners(&stored, spec, config)?;
    let units = owners.units(&stored.scan, spec, config.seed, || Ok(Vec::new()), || Ok(Vec::new()))?;
    let image = Image::new(stored, (spec, strategy), config.form, &units, &config.out)?;
    image.stored.save(config.out.join(SCAN))?;
    Ok(image)
}

/// The experts of the scans' neurons, as they know them or else as the configuration says.
fn owners(stored: &StoredScan, spec: &MoeSpec, config: &MergeConfig) -> Result<(Owners, String)> {
    let scan = &stored.scan;
    match &scan.experts {
        Some(_) if config.partition.is_some() => {
            let problem = "the scans know the experts of their neurons";
            Err(Error::setting("partition", problem, "leave it out, or scan with another"))
        }
        Some(experts) if experts.units.count != spec.experts() => {
            let (count, declared) = (experts.units.count, spec.experts());
            let problem = format!("has {declared} experts, the scans are of {count}");
            Err(Error::variant(spec.name.clone(), problem, "name the variant that was scanned with --variant"))
        }
        Some(experts) => Ok((Owners::Known(experts.units.neuron_expert.clone()), "as scanned".to_owned())),
        None => {
            let partition = partition::choose(config.partition, spec, Partition::Contiguous)?;
            let shape = (scan.sums.len(), scan.width());
            let owners = if partition::profile(partition).is_some() {
                Owners::Clustered(partition)
            } else {
                // What needs the model or its text besides says so.
                Owners::Known(partition::assign(partition, spec, shape, PartitionSources::default(), config.seed)?)
            };
            Ok((owners, partition.to_string()))
        }
    }
}
