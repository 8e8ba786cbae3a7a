//! Keeps a scan in its file as it goes, and finds it there again.

use std::path::Path;
use std::time::{Instant, SystemTime};

use candle_core::{DType, Device};

use super::{Record, ScanFile, ScanPart, StoredScan};
use crate::checkpoint::MappedSafetensors;
use crate::imaging::{Log1p, NeuronScan, ScanRequest};
use crate::{Error, Result, SOURCES_SHA256};

/// What stands in the file, and when it was written last.
pub(crate) struct Keeper<'a> {
    file: &'a ScanFile<'a>,
    part: ScanPart,
    dtype: &'static str,
    device: String,
    log1p: &'static str,
    begun: Option<NeuronScan>,
    written: Instant,
    /// Of the file as this scan knows it.
    stamp: Option<Stamp>,
}

/// Size and time of a file: another one when somebody else has written it.
#[derive(PartialEq, Eq)]
struct Stamp(u64, SystemTime);

impl Stamp {
    /// `None` where there is no file.
    fn of(path: &Path) -> Result<Option<Self>> {
        match std::fs::metadata(path).and_then(|found| Ok(Self(found.len(), found.modified()?))) {
            Ok(stamp) => Ok(Some(stamp)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path, e)),
        }
    }
}

impl<'a> Keeper<'a> {
    /// For a scan of `request` by passes in `dtype` on `device` over tokens of the SHA-256 `text`, the part that is read, of so many `batches` in its shard.
    ///
    /// # Errors
    /// A file that is damaged, or of another scan; no folder to write it into.
    pub(crate) fn open(
        file: &'a ScanFile<'a>,
        (request, dtype, device): (&ScanRequest, DType, &Device),
        (text, batches): (String, usize),
    ) -> Result<Self> {
        let part = ScanPart {
            corpus: file.corpus.to_owned(),
            text,
            options: request.options,
            shard: request.shard,
            done: 0,
            batches,
        };
        let log1p = match request.log1p {
            Log1p::Off => "off",
            Log1p::Measured => "measured",
            Log1p::Given(_) => "given",
        };
        let stamp = Stamp::of(file.path)?;
        let (dtype, device, written) = (dtype.as_str(), name_of(device)?, Instant::now());
        let mut keeper = Self { file, part, dtype, device, log1p, begun: None, written, stamp };
        if file.path.exists() {
            let stored = StoredScan::read(MappedSafetensors::open(file.path)?)?;
            keeper.check(&stored, request)?;
            keeper.part.done = stored.parts.first().map_or(0, |part| part.done);
            keeper.begun = Some(stored.scan);
        } else if let Some(folder) =
            file.path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        {
            return Err(Error::file(folder, "is not a folder", "make it first, or name another place"));
        }
        Ok(keeper)
    }

    /// What was scanned before, and how many batches that is.
    pub(crate) fn take(&mut self) -> Option<(NeuronScan, usize)> {
        Some((self.begun.take()?, self.part.done))
    }

    /// Whether it is time to write after `done` batches; the last one is [`finish`](Self::finish)'s.
    pub(crate) fn is_due(&self, done: usize) -> bool {
        self.written.elapsed() >= self.file.every && done < self.part.batches
    }

    /// Writes what was seen after `done` batches.
    ///
    /// # Errors
    /// A file that somebody else has written meanwhile; what the system reports.
    pub(crate) fn keep(&mut self, scan: &NeuronScan, done: usize) -> Result<()> {
        self.write(scan, done)
    }

    /// After the last batch: writes, unless the file was finished before.
    ///
    /// # Errors
    /// A file that somebody else has written meanwhile; what the system reports.
    pub(crate) fn finish(&mut self, scan: &NeuronScan) -> Result<()> {
        if self.part.done == self.part.batches && self.file.path.exists() {
            return Ok(());
        }
        self.write(scan, self.part.batches)
    }

    fn write(&mut self, scan: &NeuronScan, done: usize) -> Result<()> {
        // One that was removed meanwhile is written anew.
        if Stamp::of(self.file.path)?.is_some_and(|found| Some(found) != self.stamp) {
            let problem = "was written by another scan while this one ran";
            let remedy = "let one scan at a time write it, or name another file with --scan-file";
            return Err(Error::file(self.file.path, problem, remedy));
        }
        self.part.done = done;
        self.stored(scan.clone()).save(self.file.path)?;
        (self.written, self.stamp) = (Instant::now(), Stamp::of(self.file.path)?);
        Ok(())
    }

    fn stored(&self, scan: NeuronScan) -> StoredScan {
        StoredScan {
            scan,
            version: env!("CARGO_PKG_VERSION").into(),
            sources: Some(SOURCES_SHA256.into()),
            model: self.file.model.to_owned(),
            parts: vec![self.part.clone()],
            dtype: self.dtype.into(),
            devices: [self.device.clone()].into(),
            log1p: self.log1p.into(),
        }
    }

    /// Refuses a file of another scan, and says what is other.
    fn check(&self, stored: &StoredScan, request: &ScanRequest) -> Result<()> {
        let other = |what: &str| {
            let remedy = "name another file for this scan, or repeat the command that began that one";
            Err(Error::file(self.file.path, format!("holds a scan of {what}"), remedy))
        };
        let [part] = stored.parts.as_slice() else { return other("several parts, merged") };
        let (found, scan) = (stored.record(), &stored.scan);
        if found.model != self.file.model {
            return other("another model");
        }
        if found.dtype != self.dtype {
            return other(&format!("passes in another dtype ({})", found.dtype));
        }
        if found.devices.iter().any(|device| *device != self.device) {
            let devices: Vec<&str> = found.devices.iter().map(String::as_str).collect();
            return other(&format!("passes on another device ({})", devices.join(" and ")));
        }
        if part.corpus != self.part.corpus {
            return other("another corpus");
        }
        if part.options != self.part.options {
            let was = part.options;
            let how =
                format!("rows of {}, {} a batch, at most {} tokens a task", was.length, was.batch, was.tokens_per_task);
            return other(&format!("text read otherwise ({how})"));
        }
        if part.shard != self.part.shard {
            return other(&format!("another shard ({})", part.shard));
        }
        if (&part.text, part.batches) != (&self.part.text, self.part.batches) {
            return other("other tokens: the text or the tokenizer has changed");
        }
        if found.version != env!("CARGO_PKG_VERSION") {
            return other(&format!("another version of this program ({})", found.version));
        }
        // A finished one is taken as it is; half of one would be gone on with by other code.
        if part.done < part.batches && found.sources.as_deref() != Some(SOURCES_SHA256) {
            let problem = format!(
                "holds {} of {} batches, scanned by version {} from other sources of the library",
                part.done, part.batches, found.version
            );
            let remedy = "finish it with the program that began it, or remove the file";
            return Err(Error::file(self.file.path, problem, remedy));
        }
        self.check_measures(&found, scan, request, &other)
    }

    fn check_measures(
        &self,
        found: &Record,
        scan: &NeuronScan,
        request: &ScanRequest,
        other: &impl Fn(&str) -> Result<()>,
    ) -> Result<()> {
        if scan.grad_site != request.grad_site {
            return other("another grad_site");
        }
        if scan.experts.as_ref().map(|experts| &experts.units) != request.units.as_ref() {
            return other("another partition");
        }
        let scales = scan.log1p.as_ref().map(|log1p| &log1p.scales);
        let given = |given| matches!(&request.log1p, Log1p::Given(scales) if Some(scales) != given);
        if found.log1p != self.log1p || given(scales) {
            return other("other log1p values");
        }
        Ok(())
    }
}

/// A card by its own name: sums of two kinds of cards differ in their last digits.
// Only the driver can fail to tell.
#[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps))]
pub(crate) fn name_of(device: &Device) -> Result<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => crate::ops::nccl::card_name(device),
        Device::Cpu => Ok("cpu".to_owned()),
        other => Ok(format!("{:?}", other.location())),
    }
}
