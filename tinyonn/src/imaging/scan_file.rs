//! A scan on disk: a safetensors file of all its f64 sums, with what it was made from, so that it can be trusted, continued and
//! merged with others.
//!
//! `loss` `[tasks]`; by layer `i` `layers.{i}.neurons.*` `[tasks, width]` (the sums of [`NeuronSums`]), and where they were asked
//! for `layers.{i}.neuron_expert` `[width]` u32 with `layers.{i}.experts.*` `[tasks, experts]` (those of [`UnitSums`]),
//! `layers.{i}.log1p.neurons.*`, `layers.{i}.log1p.experts.*` and `log1p.scales` `[layers, 2]`. The metadata `tinyonn.scan` is JSON:
//! the record and a SHA-256 over record and tensors. Files are written whole or not at all.

mod keeper;
mod sum;
mod tensors;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use candle_core::DType;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

pub(super) use self::keeper::Keeper;
pub(crate) use self::keeper::name_of;
use self::tensors::Contents;
use super::{NeuronScan, ScanOptions, Shard};
use crate::checkpoint::MappedSafetensors;
use crate::checkpoint::recorded::{self, Recorded, StoredTensor};
use crate::files::{self, Digest};
use crate::ops::{GradSite, NeuronSums, UnitSums};
use crate::{Error, Result};

/// The metadata's key.
const KEY: &str = "tinyonn.scan";
/// The versions of the file format that are read and written: in the second a record names the sources that scanned, in the last one the devices too.
const FIRST: u64 = 1;
const WITH_SOURCES: u64 = 2;
const LAST: u64 = 3;
const DAMAGED: &str = "the file is damaged: scan again, or copy it again";
/// More tokens, and more shards in all parts together, than any scan has: sums of several files stay within their types, and a list of the
/// shards that are missing within memory.
const MOST_TOKENS: u64 = 1 << 53;
const MOST_SHARDS: usize = 1 << 20;

/// Where a scan is kept as it goes, and what it is of.
#[derive(Clone, Copy, Debug)]
pub struct ScanFile<'a> {
    /// The file.
    pub path: &'a Path,
    /// The SHA-256 of the corpus, [`Corpus::sha256`](crate::data::Corpus::sha256).
    pub corpus: &'a str,
    /// The SHA-256 of the model, [`ModelFolder::sha256`](crate::checkpoint::ModelFolder::sha256).
    pub model: &'a str,
    /// At most this long what was scanned is in memory alone.
    pub every: Duration,
}

/// One reading of one text, or of a shard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ScanPart {
    /// The SHA-256 of the corpus.
    pub corpus: String,
    /// The SHA-256 of the tokens that were read, all shards together.
    pub text: String,
    /// How they were read.
    pub options: ScanOptions,
    /// The shard.
    #[serde(rename = "share")]
    pub shard: Shard,
    /// Batches read so far.
    pub done: usize,
    /// Batches of the shard.
    pub batches: usize,
}

/// What a scan was made from and with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u64,
    version: String,
    /// SHA-256 of the library's sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sources: Option<String>,
    model: String,
    /// What passes computed in; of the first files f32, which no file says.
    #[serde(default = "f32_in_words", skip_serializing_if = "is_f32")]
    dtype: String,
    /// What passes computed on, by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    devices: BTreeSet<String>,
    grad_site: GradSite,
    log1p: String,
    /// SHA-256 of the neurons' experts, and their number.
    partition: Option<(String, usize)>,
    tasks: Vec<String>,
    tokens: Vec<u64>,
    parts: Vec<ScanPart>,
}

fn f32_in_words() -> String {
    DType::F32.as_str().to_owned()
}

fn is_f32(dtype: &str) -> bool {
    dtype == DType::F32.as_str()
}

/// A scan with what it was made from.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::imaging::{ScanFile, ScanOptions, ScanPart, ScanRequest, Shard, StoredScan, scan_with};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let task = TaskTokens { name: "t".into(), tokens: (0..64).collect(), documents: vec![0; 64] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
/// let options = ScanOptions { length: 16, batch: 1, tokens_per_task: 64 };
/// # let dir = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let path = dir.path().join("scan.safetensors");
///
/// // Two halves of a text, as two machines would scan them.
/// let half = |index| {
///     let request = ScanRequest { shard: Shard { index, of: 2 }, ..ScanRequest::new(options) };
///     let path = path.with_extension(index.to_string());
///     let every = std::time::Duration::from_secs(60);
///     let file = ScanFile { path: &path, corpus: "of the text", model: "of the model", every };
///     scan_with(&model, &set, &request, &Device::Cpu, Some(&file))?;
///     StoredScan::load(&path)
/// };
/// let mut whole = half(0)?;
/// assert_eq!(whole.missing(), [Shard { index: 1, of: 2 }]);
/// let read: &ScanPart = &whole.parts[0];
/// assert_eq!((read.done, read.batches), (2, 2));
/// whole.merge(&half(1)?)?;
/// assert!(whole.missing().is_empty());
/// assert!(whole.merge(&half(1)?).is_err()); // it is there already
///
/// whole.save(&path)?;
/// assert_eq!(StoredScan::load(&path)?.parts, whole.parts);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredScan {
    /// The sums.
    pub scan: NeuronScan,
    /// The version of this library that scanned.
    pub version: String,
    /// The SHA-256 of the model.
    pub model: String,
    /// What was read; several once scans are merged.
    pub parts: Vec<ScanPart>,
    /// What passes computed in.
    pub(super) dtype: String,
    /// What passes computed on, a card by its name; of files that do not say, nothing.
    devices: BTreeSet<String>,
    /// `off`, `measured` or `given`: where the scales of log1p come from.
    pub(super) log1p: String,
    /// SHA-256 of the sources that scanned, where one set of them did and said so.
    sources: Option<String>,
}

impl StoredScan {
    /// Reads a finished scan.
    ///
    /// # Errors
    /// A file that is none, is damaged, of another format, or not finished.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::finished(MappedSafetensors::open(path)?)
    }

    fn finished(file: MappedSafetensors) -> Result<Self> {
        let path = file.path().to_path_buf();
        let stored = Self::read(file)?;
        match stored.parts.iter().find(|part| part.done < part.batches) {
            None => Ok(stored),
            Some(part) => {
                let problem = format!("is not finished: {} of {} batches are read", part.done, part.batches);
                Err(Error::file(path, problem, "continue it: give the same command its --scan-file again"))
            }
        }
    }

    /// Writes the scan, whole or not at all.
    ///
    /// # Errors
    /// What the system reports.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write(path.as_ref(), self.bytes(path.as_ref())?)
    }

    /// What is written at `path`.
    fn bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let record = serde_json::to_value(self.record());
        let record = record.map_err(|e| Error::file(path, e.to_string(), "report this as a defect"))?;
        recorded::bytes(path, KEY, &record, self.tensors())
    }

    /// Adds a scan of another text, or of another shard of the same, through the same model.
    ///
    /// # Errors
    /// Another model, other tasks or measures; a text of which both hold batches; scans that are not finished.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let refused = |problem: String, remedy: &str| Err(Error::setting("merge", problem, remedy));
        if self.model != other.model {
            let remedy = "merge scans of one model, byte for byte";
            return refused(format!("the scans are of different models ({} and {})", self.model, other.model), remedy);
        }
        if self.dtype != other.dtype {
            let problem = format!("the scans' passes computed in {} and {}", self.dtype, other.dtype);
            return refused(problem, "scan all parts with one --dtype, or say that they are --mixed");
        }
        if self.devices != other.devices && !self.devices.is_empty() && !other.devices.is_empty() {
            let [own, others] =
                [self, other].map(|scan| scan.devices.iter().cloned().collect::<Vec<_>>().join(" and "));
            let problem =
                format!("the scans' passes ran on {own} and on {others}, whose sums differ in their last digits");
            return refused(problem, "scan all parts on one kind of device, or say that they are --mixed");
        }
        if self.version != other.version {
            let problem = format!("the scans were made by versions {} and {}", self.version, other.version);
            return refused(problem, "scan all parts with one version");
        }
        if self.parts.iter().chain(&other.parts).any(|part| part.done < part.batches) {
            return refused("one of the scans is not finished".into(), "continue it with --scan-file first");
        }
        let both = |a: &ScanPart| other.parts.iter().find(|b| a.overlaps(b)).map(|b| (a.shard, b.shard));
        if let Some((a, b)) = self.parts.iter().find_map(both) {
            let problem = format!("two scans hold batches of the same text (shards {a} and {b})");
            return refused(problem, "merge each shard I/N of one N once");
        }
        self.scan.merge(&other.scan)?;
        self.parts.extend(other.parts.iter().cloned());
        self.sources.take_if(|sources| other.sources.as_ref() != Some(sources));
        self.devices.extend(other.devices.iter().cloned());
        Ok(())
    }

    /// The shards of texts that were read in part and are not here.
    #[must_use]
    pub fn missing(&self) -> Vec<Shard> {
        missing(&self.parts.iter().collect::<Vec<_>>())
    }

    /// Refuses a scan that is not the whole of the one that `file` names, of tokens of the SHA-256 `text` read as `options` say by passes in `dtype`.
    pub(crate) fn refuse_other(
        &self,
        file: &ScanFile<'_>,
        (text, options): (&str, ScanOptions),
        dtype: DType,
    ) -> Result<()> {
        let other = |what: String, remedy: &str| Err(Error::file(file.path, what, remedy));
        let alike = "give a scan of this model, text and settings";
        if self.model != file.model {
            return other("holds a scan of another model".into(), alike);
        }
        if self.parts.iter().any(|part| part.corpus != file.corpus) {
            return other("holds a scan of another text".into(), alike);
        }
        if self.parts.iter().any(|part| part.options != options || part.text != text) {
            return other("holds a scan of other tokens of this text: of another seed, split or length".into(), alike);
        }
        if self.dtype.split('+').all(|own| own != dtype.as_str()) {
            return other(
                format!("holds a scan by passes in {}, and this run computes in {}", self.dtype, dtype.as_str()),
                alike,
            );
        }
        if self.version != env!("CARGO_PKG_VERSION") {
            return other(format!("holds a scan of another version of this program ({})", self.version), alike);
        }
        if self.scan.grad_site != GradSite::Weight {
            return other("holds a scan of another grad_site than weight".into(), alike);
        }
        match self.missing().first() {
            Some(shard) => other(format!("lacks shard {shard}"), "add up all shards with --merge"),
            None => Ok(()),
        }
    }

    fn record(&self) -> Record {
        let partition = self.scan.experts.as_ref().map(|experts| {
            let mut digest = Digest::new();
            experts.units.neuron_expert.iter().for_each(|layer| digest.words(layer));
            (digest.hex(), experts.units.count)
        });
        Record {
            // What does not say more is a file of an earlier format, or several merged, and a copy of it stays one.
            format: match (self.devices.is_empty(), &self.sources) {
                (false, _) => LAST,
                (true, Some(_)) => WITH_SOURCES,
                (true, None) => FIRST,
            },
            version: self.version.clone(),
            sources: self.sources.clone(),
            model: self.model.clone(),
            dtype: self.dtype.clone(),
            devices: self.devices.clone(),
            grad_site: self.scan.grad_site,
            log1p: self.log1p.clone(),
            partition,
            tasks: self.scan.tasks.clone(),
            tokens: self.scan.tokens.clone(),
            parts: self.parts.clone(),
        }
    }

    /// As [`finished`](Self::finished), or not.
    fn read(file: MappedSafetensors) -> Result<Self> {
        let path = &file.path().to_path_buf();
        let foreign = |problem: Option<String>| {
            let problem = problem.map_or("holds no scan".into(), |problem| format!("holds no scan: {problem}"));
            Error::file(path, problem, "give a file that --scan-file or a run of exp_scan wrote (scan.safetensors)")
        };
        let stored = Recorded::of(file, KEY).map_err(foreign)?;
        let record = &stored.record;
        if !record["format"].as_u64().is_some_and(|format| (FIRST..=LAST).contains(&format)) {
            let problem = format!(
                "holds a scan of format {} by version {}, this version reads {FIRST} to {LAST}",
                record["format"],
                record["version"].as_str().unwrap_or("unknown")
            );
            return Err(Error::file(path, problem, "read it with the program that wrote it, or scan again"));
        }
        if !stored.check()? {
            return Err(Error::file(path, "its sums are not those that were written", DAMAGED));
        }
        let record: Record =
            serde_json::from_value(record.clone()).map_err(|e| Error::file(path, e.to_string(), DAMAGED))?;
        let scan = Contents { file: stored.file(), path, tasks: record.tasks.len() }.scan(&record)?;
        let Record { version, sources, model, dtype, devices, log1p, parts, .. } = record;
        Ok(Self { scan, version, model, parts, dtype, devices, log1p, sources })
    }

    fn tensors(&self) -> Vec<StoredTensor> {
        let scan = &self.scan;
        let mut tensors = vec![StoredTensor::values("loss".into(), &scan.loss)];
        let mut of_units = |at: String, sums: &[UnitSums]| {
            let each: Vec<[&Vec<f64>; 4]> = sums.iter().map(UnitSums::each).collect();
            for (which, name) in UnitSums::NAMES.into_iter().enumerate() {
                let rows: Vec<&[f64]> = each.iter().map(|sums| sums[which].as_slice()).collect();
                tensors.push(StoredTensor::rows(format!("{at}.{name}"), &rows));
            }
        };
        for layer in 0..scan.sums.len() {
            let at = format!("layers.{layer}");
            if let Some(experts) = &scan.experts {
                of_units(format!("{at}.experts"), &experts.sums[layer]);
            }
            if let Some(log1p) = &scan.log1p {
                of_units(format!("{at}.log1p.neurons"), &log1p.neurons[layer]);
                if let Some(experts) = &log1p.experts {
                    of_units(format!("{at}.log1p.experts"), &experts[layer]);
                }
            }
        }
        for (layer, sums) in scan.sums.iter().enumerate() {
            let each: Vec<[&Vec<f64>; 7]> = sums.iter().map(NeuronSums::each).collect();
            for (which, name) in NeuronSums::NAMES.into_iter().enumerate() {
                let rows: Vec<&[f64]> = each.iter().map(|sums| sums[which].as_slice()).collect();
                tensors.push(StoredTensor::rows(format!("layers.{layer}.neurons.{name}"), &rows));
            }
        }
        if let Some(experts) = &scan.experts {
            for (layer, units) in experts.units.neuron_expert.iter().enumerate() {
                tensors.push(StoredTensor::words(format!("layers.{layer}.neuron_expert"), units));
            }
        }
        if let Some(log1p) = &scan.log1p {
            let rows: Vec<Vec<f64>> = log1p.scales.iter().map(|scale| vec![scale.activation, scale.surprise]).collect();
            tensors
                .push(StoredTensor::rows("log1p.scales".into(), &rows.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        }
        tensors
    }
}

impl Record {
    /// Whether it could be of a scan: tasks and their tokens, which add up, and parts, each a shard of not too many.
    fn is_possible(&self) -> bool {
        let tokens = self.tokens.iter().try_fold(0u64, |sum, tokens| sum.checked_add(*tokens));
        let shards = self.parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.shard.of));
        let is_one = |shard: Shard| shard.check().is_ok();
        !self.tasks.is_empty()
            && self.tokens.len() == self.tasks.len()
            && tokens.is_some_and(|tokens| tokens <= MOST_TOKENS)
            && !self.parts.is_empty()
            && self.parts.iter().all(|part| is_one(part.shard))
            && shards.is_some_and(|shards| shards <= MOST_SHARDS)
    }
}

/// The shards of texts that these parts were dealt from and that are not among them.
fn missing(parts: &[&ScanPart]) -> Vec<Shard> {
    let mut missing = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let same = |other: &&&ScanPart| other.is_of_the_text_of(part);
        if parts[..at].iter().any(|other| same(&other)) {
            continue;
        }
        let of = part.shard.of;
        let here = |index: &usize| parts.iter().filter(same).any(|other| other.shard.index == *index);
        missing.extend((0..of).filter(|index| !here(index)).map(|index| Shard { index, of }));
    }
    missing
}

impl ScanPart {
    fn is_of_the_text_of(&self, other: &Self) -> bool {
        self.text == other.text && self.options == other.options
    }

    /// Whether both hold a batch, or may. Of one text, read alike and dealt into as many shards, different shards have none in common.
    fn overlaps(&self, other: &Self) -> bool {
        let dealt_alike = self.options == other.options && self.shard.of == other.shard.of;
        self.text == other.text && !(dealt_alike && self.shard.index != other.shard.index)
    }
}

/// The type of sums.
const SUMS: Dtype = Dtype::F64;
