//! What a shard of a pass over a run's text has made, on disk ([`PassFile`]): rows, each of a batch of the text, and of the rows that routers are fitted to how
//! more of them scatter; with what they were made from, so that files of one text, model and settings add up to what one process makes, and no others do.
//!
//! A safetensors file: by split and kind of rows `{split}.{kind}.batches` `[n, 1]` u32 and columns `[n, ..]`, f32 or u32; by layer `scatter.{i}.rows`, `.means`
//! and `.products`, f64. The metadata `tinyonn.pass` is JSON: the record ([`Record`]) and a SHA-256 over record and tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::Device;
use safetensors::Dtype;

use super::dealt_rows::DealtRows;
use super::pass_record::{FORMAT, Record, RowPass};
use crate::checkpoint::MappedSafetensors;
use crate::checkpoint::recorded::{self, Recorded, StoredTensor};
use crate::imaging::Shard;
use crate::ops::{ClassScatter, Weigh};
use crate::ranks::Collective;
use crate::{Error, Result, files};

/// The metadata's key.
const KEY: &str = "tinyonn.pass";
const DAMAGED: &str = "the file is damaged: make the pass again, or copy the file again";

/// What a shard of a pass has made, or several shards together.
///
/// ```no_run
/// use std::path::PathBuf;
/// use tinyonn::imaging::Shard;
/// use tinyonn::metrics::Stopwatch;
/// use tinyonn::phases::{Passed, PassFile, Prepared, RowPass, Run, RunConfig};
///
/// let (config, mut watch) = (RunConfig::quick(), Stopwatch::new());
/// let prepared = Prepared::new(&config, &mut watch, None)?;
/// // On two machines, each a half.
/// let half = |index: usize| -> tinyonn::Result<(PathBuf, PassFile)> {
///     let made = prepared.run(&config).rows_shard(RowPass::Inputs, Shard { index, of: 2 })?;
///     let path = PathBuf::from(format!("half-{index}.safetensors"));
///     made.save(&path)?;
///     Ok((path.clone(), PassFile::load(&path)?))
/// };
/// let whole = PassFile::sum(vec![half(0)?, half(1)?], false)?;
/// assert!(whole.missing().is_empty() && whole.pass() == RowPass::Inputs && whole.rows() > 0);
/// whole.save("whole.safetensors")?;
/// assert_eq!(PassFile::pass_of("whole.safetensors")?, Some(RowPass::Inputs));
/// // And from there on one, which does not read the training text for them again.
/// let rows = [PathBuf::from("whole.safetensors")];
/// let run = Run { passed: Passed { rows: &rows, ..Passed::default() }, ..prepared.run(&config) };
/// println!("{:.3} nats a token", run.phase1(&mut watch)?.before.routed.mean);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PassFile {
    pub(super) record: Record,
    /// By split and kind.
    pub(super) tables: BTreeMap<String, DealtRows>,
    /// By layer, where it is summed up.
    pub(super) scatter: Vec<ClassScatter>,
}

impl PassFile {
    /// Nothing made yet.
    pub(super) fn new(record: Record) -> Self {
        Self { record, tables: BTreeMap::new(), scatter: Vec::new() }
    }

    /// Which pass made the file, as it says; `None` of a scan, and of whatever else is no such file. Nothing but its header is read.
    ///
    /// # Errors
    /// What is no safetensors file.
    pub fn pass_of(path: impl AsRef<Path>) -> Result<Option<RowPass>> {
        let stored = Recorded::open(path.as_ref(), KEY)?;
        Ok(stored.ok().and_then(|stored| serde_json::from_value(stored.record.get("pass")?.clone()).ok()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that is none, is damaged, or of another format.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::of_some(MappedSafetensors::open(path)?, |_| true)
    }

    /// Of the rows, those of the splits and kinds that are wanted.
    pub(super) fn of_some(file: MappedSafetensors, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let path = &file.path().to_path_buf();
        let damaged = |problem: &str| Error::file(path, problem.to_owned(), DAMAGED);
        let stored = Recorded::of(file, KEY).map_err(|problem| Self::foreign(path, problem))?;
        if stored.record["format"] != FORMAT {
            let problem = format!("holds a pass of format {}, this version reads {FORMAT}", stored.record["format"]);
            return Err(Error::file(path, problem, "read it with the program that wrote it, or make the pass again"));
        }
        if !stored.check()? {
            return Err(damaged("its rows are not those that were written"));
        }
        let record: Record = serde_json::from_value(stored.record.clone()).map_err(|e| damaged(&e.to_string()))?;
        let file = stored.file();
        let names: BTreeSet<String> =
            file.names().filter_map(table_of).filter(|table| wanted(table)).map(str::to_owned).collect();
        let table = |name: String| {
            let rows = DealtRows::read(file, &name).ok_or_else(|| damaged("its rows contradict each other"))?;
            Ok::<_, Error>((name, rows))
        };
        let tables = names.into_iter().map(table).collect::<Result<_>>()?;
        let weigh = record.by_rows.map(|by_rows| if by_rows { Weigh::Rows } else { Weigh::Classes });
        let scatter = weigh.map(|weigh| scatter(file, weigh).ok_or_else(|| damaged("its scatter contradicts itself")));
        if !record.is_possible() {
            return Err(damaged("its record contradicts itself"));
        }
        Ok(Self { record, tables, scatter: scatter.transpose()?.unwrap_or_default() })
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// What the system reports.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write(path.as_ref(), self.bytes(path.as_ref())?)
    }

    /// What is written at `path`.
    fn bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let mut record = self.record.clone();
        record.by_rows = self.scatter.first().map(|scatter| scatter.weigh() == Weigh::Rows);
        let record =
            serde_json::to_value(record).map_err(|e| Error::file(path, e.to_string(), "report this as a defect"))?;
        let mut tensors: Vec<StoredTensor> = self.tables.iter().flat_map(|(name, rows)| rows.tensors(name)).collect();
        for (layer, scatter) in self.scatter.iter().enumerate() {
            let ([here, elsewhere], means, products) = scatter.parts();
            let at = |what: &str| format!("{SCATTER}.{layer}.{what}");
            let means: Vec<&[f64]> =
                if scatter.width() == 0 { Vec::new() } else { means.chunks_exact(scatter.width()).collect() };
            tensors.push(StoredTensor::rows(at("rows"), &[here, elsewhere]));
            tensors.push(StoredTensor::rows(at("means"), &means));
            tensors.push(StoredTensor::values(at("products"), products));
        }
        recorded::bytes(path, KEY, &record, tensors)
    }

    /// The sum of files, each with where it lies: the same bytes in whatever order they are given. `mixed` lets those be added up that were computed in several
    /// types, or on several kinds of device.
    ///
    /// # Errors
    /// No file; files of another pass, text, model or setting, and the file and what is other are named; a shard that is there twice, or of another number of
    /// them.
    pub fn sum(mut files: Vec<(PathBuf, Self)>, mixed: bool) -> Result<Self> {
        files.sort_by_cached_key(|(_, file)| file.record.shards.iter().map(|shard| (shard.of, shard.index)).min());
        let mut files = files.into_iter();
        let Some((first, mut sum)) = files.next() else {
            return Err(Error::setting("merge", "no file is given", "name one file of a pass or more"));
        };
        for (path, file) in files {
            if let Some(what) = file.record.differs_from(&sum.record, mixed) {
                let problem = format!("is of another {what} than {}", first.display());
                return Err(Error::file(path, problem, "merge the shards of one pass, model, text and settings"));
            }
            let both = |shard: &&Shard| sum.record.shards.iter().any(|own| own.of != shard.of || own == *shard);
            if let Some(shard) = file.record.shards.iter().find(both) {
                let problem = format!("holds shard {shard}, which is here already or was dealt otherwise");
                return Err(Error::file(path, problem, "merge each shard I/N of one N once"));
            }
            sum.add(file).map_err(|()| Error::file(path, "its rows are none of the other files'", DAMAGED))?;
        }
        sum.record.shards.sort_by_key(|shard| shard.index);
        sum.tables = sum.tables.into_iter().map(|(name, rows)| (name, rows.into_order())).collect();
        Ok(sum)
    }

    /// The [sum](Self::sum) of what all ranks have made, at rank 0; nothing at the others. It is that of their files, bit for bit.
    ///
    /// ```
    /// use tinyonn::imaging::Shard;
    /// use tinyonn::phases::{PassFile, RowPass, Run};
    /// use tinyonn::ranks::Collective;
    ///
    /// /// What routers see, at rank 0, of which every rank has read its own shard.
    /// fn inputs(run: &Run<'_>, ranks: &dyn Collective) -> tinyonn::Result<Option<PassFile>> {
    ///     run.rows_shard(RowPass::Inputs, Shard::of_rank(ranks))?.over_ranks(ranks, &run.device)
    /// }
    /// ```
    ///
    /// # Errors
    /// As of [`sum`](Self::sum), a rank in the place of a file; a rank that is lost.
    pub fn over_ranks(self, ranks: &dyn Collective, device: &Device) -> Result<Option<Self>> {
        let own = self.bytes(Path::new("a rank's rows"))?;
        drop(self);
        let Some(files) = recorded::of_ranks(ranks, own, device)? else { return Ok(None) };
        let read = |file: MappedSafetensors| Ok((file.path().to_path_buf(), Self::of_some(file, |_| true)?));
        Self::sum(files.into_iter().map(read).collect::<Result<_>>()?, false).map(Some)
    }

    fn add(&mut self, other: Self) -> Result<(), ()> {
        if self.tables.len() != other.tables.len() || self.scatter.len() != other.scatter.len() {
            return Err(());
        }
        for ((name, own), (others_name, others)) in self.tables.iter_mut().zip(other.tables) {
            if *name != others_name || !own.append(others) {
                return Err(());
            }
        }
        self.scatter.iter_mut().zip(&other.scatter).try_for_each(|(own, other)| own.merge(other)).map_err(drop)?;
        self.record.shards.extend(other.record.shards);
        self.record.devices.extend(other.record.devices);
        for dtype in other.record.dtype.split('+') {
            if self.record.dtype.split('+').all(|own| own != dtype) {
                self.record.dtype = format!("{}+{dtype}", self.record.dtype);
            }
        }
        Ok(())
    }

    /// Which pass.
    #[must_use]
    pub fn pass(&self) -> RowPass {
        self.record.pass
    }

    /// The pass that the run makes next, by the word for it, if there is one.
    ///
    /// ```
    /// use tinyonn::phases::PassFile;
    ///
    /// fn next(made: &PassFile) -> String {
    ///     made.then().map_or("the rest".into(), |pass| format!("--pass {pass}"))
    /// }
    /// ```
    #[must_use]
    pub fn then(&self) -> Option<&str> {
        self.record.then.as_deref()
    }

    /// How many shards the batches were dealt to.
    ///
    /// ```
    /// use tinyonn::phases::PassFile;
    ///
    /// fn is_whole(made: &PassFile) -> bool {
    ///     made.shards() == 1 || made.missing().is_empty()
    /// }
    /// ```
    #[must_use]
    pub fn shards(&self) -> usize {
        self.record.shards.first().map_or(0, |shard| shard.of)
    }

    /// Rows in all.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tables.values().map(DealtRows::count).sum()
    }

    /// The shards that are not here.
    #[must_use]
    pub fn missing(&self) -> Vec<Shard> {
        self.record.missing()
    }

    /// Refuses a file, which lies at `path`, that is not the whole of what `own` would have made.
    pub(super) fn refuse_other(&self, path: &Path, own: &Record) -> Result<()> {
        if let Some(what) = self.record.differs_from(own, true) {
            let problem = format!("holds what a pass made of another {what}");
            return Err(Error::file(path, problem, "give what a pass of this model, text and settings made"));
        }
        if self.record.dtype.split('+').all(|dtype| dtype != own.dtype) {
            let problem =
                format!("was made by passes in {}, and this run computes in {}", self.record.dtype, own.dtype);
            return Err(Error::file(path, problem, "give what passes of this --dtype made"));
        }
        match self.missing().first() {
            Some(shard) => Err(Error::file(path, format!("lacks shard {shard}"), "add up all shards with --merge")),
            None => Ok(()),
        }
    }

    /// Takes the rows of a split and kind out.
    pub(super) fn take(&mut self, path: &Path, table: &str) -> Result<DealtRows> {
        self.tables.remove(table).ok_or_else(|| Error::file(path, format!("has no rows `{table}`"), DAMAGED))
    }

    /// The record of a file, and the SHA-256 of it and of the tensors, as the file says them: who loads the file checks that.
    pub(super) fn claims(path: &Path) -> Result<(Record, String)> {
        let stored = Recorded::open(path, KEY)?.map_err(|problem| Self::foreign(path, problem))?;
        let record = serde_json::from_value(stored.record.clone());
        Ok((record.map_err(|e| Error::file(path, e.to_string(), DAMAGED))?, stored.sha256().to_owned()))
    }

    /// That a file holds no pass, and why, where it says anything.
    pub(super) fn foreign(path: &Path, problem: Option<String>) -> Error {
        let problem = problem.map_or("holds no pass".into(), |problem| format!("holds no pass: {problem}"));
        Error::file(path, problem, "give a file that --pass or --merge wrote")
    }

    /// That a column is missing or not as the model has it.
    pub(super) fn contradicts(path: &Path) -> Error {
        Error::file(path, "its rows are not those of this model", DAMAGED)
    }
}

const SCATTER: &str = "scatter";

/// The split and kind of rows that a tensor belongs to.
fn table_of(name: &str) -> Option<&str> {
    let (end, _) = name.match_indices('.').nth(1)?;
    (!name.starts_with(SCATTER)).then_some(&name[..end])
}

/// The scatter of every layer that the file has; `None` where it cannot have been written.
fn scatter(file: &MappedSafetensors, weigh: Weigh) -> Option<Vec<ClassScatter>> {
    let layers = (0..).take_while(|layer| file.info(&format!("{SCATTER}.{layer}.rows")).is_some());
    layers
        .map(|layer| {
            let values = |what: &str| {
                let name = format!("{SCATTER}.{layer}.{what}");
                let info = file.info(&name).filter(|info| info.dtype == Dtype::F64)?;
                let (words, _) = file.bytes(&name).ok()?.as_chunks::<8>();
                Some((info.shape.clone(), words.iter().map(|word| f64::from_le_bytes(*word)).collect::<Vec<_>>()))
            };
            let ((_, rows), (shape, means), (_, products)) = (values("rows")?, values("means")?, values("products")?);
            let width = shape.get(1).copied().unwrap_or(0);
            let (here, elsewhere) = rows.split_at(rows.len() / 2);
            ClassScatter::of_parts((weigh, width), [here.to_vec(), elsewhere.to_vec()], &means, products)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with rows of a batch of its own.
    fn file(index: usize, device: &str, dtype: &str) -> (PathBuf, PassFile) {
        let record = Record::new(RowPass::Losses, BTreeMap::new(), (dtype, device.into(), Shard { index, of: 3 }));
        let mut made = PassFile::new(record);
        let mut rows = DealtRows::new(vec![index as u32; 2]);
        rows.add_doubles("losses".into(), &[index as f64 + 0.5, 1.0 / 3.0]);
        made.tables.insert("own.losses".into(), rows);
        (PathBuf::from(format!("part-{index}")), made)
    }

    /// What was computed on several kinds of device, or in several types, adds up where that is asked for, and says so; the same bytes in whatever order.
    #[test]
    fn what_is_mixed_wants_a_word() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("a folder", e))?;
        let path = dir.path().join("sum");
        let files = || [file(0, "cpu", "f32"), file(1, "H200", "f32"), file(2, "cpu", "bf16")];
        let said = |kept: [usize; 2]| {
            let [a, b] = kept.map(|at| files()[at].clone());
            PassFile::sum(vec![a, b], false).map_err(|e| e.to_string()).err()
        };
        assert!(
            said([0, 1]).is_some_and(|said| said.contains("part-1") && said.contains("another device (H200 and cpu)"))
        );
        assert!(
            said([2, 0]).is_some_and(|said| said.contains("part-2") && said.contains("another dtype (bf16 and f32)"))
        );
        let mut bytes = Vec::new();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let sum = PassFile::sum(order.map(|at| files()[at].clone()).into(), true)?;
            assert!(sum.missing().is_empty() && sum.rows() == 6);
            sum.save(&path)?;
            bytes.push(std::fs::read(&path).map_err(|e| Error::io(&path, e))?);
            assert_eq!(sum.record.dtype, "f32+bf16");
        }
        assert!(bytes.iter().all(|other| *other == bytes[0]));
        Ok(())
    }
}
