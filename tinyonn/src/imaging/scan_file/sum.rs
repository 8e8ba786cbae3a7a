//! The sum of scans in files of their own, which does not depend on the order in which they are named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::{ScanPart, StoredScan, missing};
use crate::checkpoint::{MappedSafetensors, recorded};
use crate::ranks::Collective;
use crate::{Error, Result};

impl StoredScan {
    /// The sum of scans, each with the file that it lies in. They are added up by text and shard, in whatever order they are given: to the same bytes. `mixed`
    /// lets those be added up that were computed in several types, or on several kinds of device.
    ///
    /// ```no_run
    /// use std::path::PathBuf;
    /// use tinyonn::imaging::StoredScan;
    ///
    /// let read = |name: &str| Ok::<_, tinyonn::Error>((PathBuf::from(name), StoredScan::load(name)?));
    /// let [a, b] = ["half.safetensors", "other-half.safetensors"];
    /// let (one, other) = (StoredScan::sum(vec![read(a)?, read(b)?], false)?, StoredScan::sum(vec![read(b)?, read(a)?], false)?);
    /// assert_eq!(one, other);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// No scan; as of [`merge`](Self::merge), and the file is named; several texts of which one is there in part: shards are of one text.
    pub fn sum(mut scans: Vec<(PathBuf, Self)>, mixed: bool) -> Result<Self> {
        scans.sort_by_cached_key(|(_, scan)| scan.parts.iter().map(place).collect::<Vec<_>>());
        refuse_shards_of_several_texts(&scans)?;
        if mixed {
            say_all_that_they_are(&mut scans);
        }
        let mut scans = scans.into_iter();
        let Some((_, mut sum)) = scans.next() else {
            return Err(Error::setting("merge", "no file is given", "name one stored scan or more"));
        };
        for (path, scan) in scans {
            sum.merge(&scan).map_err(|e| Error::file(path, e.to_string(), "or leave this file out"))?;
        }
        Ok(sum)
    }

    /// The [sum](Self::sum) of what all ranks have scanned, at rank 0; nothing at the others. It is that of their files, bit for bit.
    ///
    /// ```
    /// use candle_core::Device;
    /// use tinyonn::Result;
    /// use tinyonn::imaging::{Shard, StoredScan};
    /// use tinyonn::ranks::Collective;
    ///
    /// /// The whole, at rank 0, where every rank has scanned its own shard.
    /// fn whole(ranks: &dyn Collective, scan: impl Fn(Shard) -> Result<StoredScan>, device: &Device) -> Result<Option<StoredScan>> {
    ///     scan(Shard::of_rank(ranks))?.over_ranks(ranks, device)
    /// }
    /// ```
    ///
    /// # Errors
    /// As of [`sum`](Self::sum), a rank in the place of a file; a rank that is lost.
    pub fn over_ranks(self, ranks: &dyn Collective, device: &Device) -> Result<Option<Self>> {
        let own = self.bytes(Path::new("a rank's scan"))?;
        drop(self);
        let Some(files) = recorded::of_ranks(ranks, own, device)? else { return Ok(None) };
        let read = |file: MappedSafetensors| Ok((file.path().to_path_buf(), Self::finished(file)?));
        Self::sum(files.into_iter().map(read).collect::<Result<_>>()?, false).map(Some)
    }
}

/// Where a part stands among others.
fn place(part: &ScanPart) -> (String, String, [usize; 5]) {
    let (options, shard) = (part.options, part.shard);
    let numbers = [options.length, options.batch, options.tokens_per_task, shard.of, shard.index];
    (part.corpus.clone(), part.text.clone(), numbers)
}

/// Whole scans of several texts add up; a shard of one text is no part of another.
fn refuse_shards_of_several_texts(scans: &[(PathBuf, StoredScan)]) -> Result<()> {
    let parts = || scans.iter().flat_map(|(path, scan)| scan.parts.iter().map(move |part| (path, part)));
    let Some((first, of_first)) = parts().next() else { return Ok(()) };
    let Some((other, of_other)) = parts().find(|(_, part)| !part.is_of_the_text_of(of_first)) else { return Ok(()) };
    let incomplete = |part: &ScanPart| {
        let own: Vec<&ScanPart> = parts().map(|(_, own)| own).filter(|own| own.is_of_the_text_of(part)).collect();
        missing(&own)
    };
    let Some((path, part, missing)) = parts().find_map(|(path, part)| {
        let missing = incomplete(part);
        (!missing.is_empty()).then_some((path, part, missing))
    }) else {
        return Ok(());
    };
    let beside = if part.is_of_the_text_of(of_first) { (other, of_other) } else { (first, of_first) };
    let what = match (beside.1.corpus == part.corpus, beside.1.options == part.options) {
        (false, _) => "of another text or seed",
        (true, false) => "of the same read otherwise",
        (true, true) => "of other tokens of the same: of another seed or tokenizer",
    };
    let problem = format!(
        "holds shard {} of a text whose shard {} is not here, and {} is {what}",
        part.shard,
        missing[0],
        beside.0.display()
    );
    Err(Error::file(path, problem, "merge all shards of one text; texts that are whole may then be merged"))
}

/// Has each scan say of all of them what was computed in and on.
fn say_all_that_they_are(scans: &mut [(PathBuf, StoredScan)]) {
    let dtypes: BTreeSet<String> =
        scans.iter().flat_map(|(_, scan)| scan.dtype.split('+').map(str::to_owned).collect::<Vec<_>>()).collect();
    let dtype = dtypes.into_iter().collect::<Vec<_>>().join("+");
    let devices: BTreeSet<String> = scans.iter().flat_map(|(_, scan)| scan.devices.clone()).collect();
    for (_, scan) in scans {
        (scan.dtype, scan.devices) = (dtype.clone(), devices.clone());
    }
}
