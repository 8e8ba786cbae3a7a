//! A comparison dealt to several machines, each of which runs a shard of the grid into one folder that all of them see.
//!
//! A subject is run by as few shards as there have to be, for each pretrains or waits for its model and scans it: with no more shards than
//! subjects each shard has subjects of its own; with more, the cells of a subject go round its shards.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::ops::Range;

use tinyonn::imaging::Shard;
use tinyonn::{Error, Result};

use super::record::Store;
use super::{Cell, CompareConfig, CorpusConfig};

/// The folder in a comparison's own that has a file for each shard that was begun, `I-of-N`.
const SHARDS: &str = "shards";

/// What a shard runs of a subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its cells.
    pub cells: Vec<Cell>,
    /// Whether it measures the subject itself, which one shard does.
    pub has_record: bool,
}

impl CompareConfig {
    /// Texts and seeds, in the order in which they are dealt.
    pub fn subjects(&self) -> impl Iterator<Item = (&CorpusConfig, u64)> {
        self.corpora.iter().flat_map(|corpus| self.seeds.iter().map(move |seed| (corpus, *seed)))
    }

    /// What `shard` runs of the subject number `subject`; `None` where that is nothing.
    ///
    /// ```
    /// use experiments::compare::CompareConfig;
    /// use tinyonn::imaging::Shard;
    ///
    /// let config = CompareConfig::quick();
    /// let subjects = config.subjects().count();
    /// let cells = |of: usize| -> usize {
    ///     let shards = (0..of).map(|index| Shard { index, of });
    ///     shards.flat_map(|shard| (0..subjects).filter_map(|at| config.part(at, shard)).collect::<Vec<_>>()).map(|part| part.cells.len()).sum()
    /// };
    /// assert!([1, 2, 3, 7].into_iter().all(|of| cells(of) == subjects * config.cells().len()));
    /// ```
    #[must_use]
    pub fn part(&self, subject: usize, shard: Shard) -> Option<Part> {
        let shards = shards_of(subject, self.subjects().count(), shard.of);
        if !shards.contains(&shard.index) {
            return None;
        }
        let at = shard.index - shards.start;
        Some(Part { cells: self.cells().into_iter().skip(at).step_by(shards.len()).collect(), has_record: at == 0 })
    }

    /// Notes that `shard` was begun. Nobody else runs it as long as what is returned lives.
    ///
    /// # Errors
    /// Another process runs it; what the system reports.
    pub fn begin_shard(&self, shard: Shard) -> Result<File> {
        let folder = self.out.join(SHARDS);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let path = folder.join(format!("{}-of-{}", shard.index, shard.of));
        let place = File::options().create(true).truncate(false).write(true).open(&path);
        let place = place.map_err(|e| Error::io(&path, e))?;
        match place.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::file(path, "another process runs this shard", "wait for it")),
            _ => Ok(place),
        }
    }

    /// The shards without all of their records, of every number of shards that the comparison was dealt to; with each how many cells it lacks.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn missing_shards(&self) -> Result<Vec<(Shard, usize)>> {
        let folder = self.out.join(SHARDS);
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| Error::io(&folder, e))?,
        };
        let mut dealt = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(|e| Error::io(&folder, e))?.file_name();
            let of = name.to_str().and_then(|name| name.split_once("-of-")?.1.parse::<usize>().ok());
            dealt.extend(of.filter(|of| (1..=Shard::MOST).contains(of)));
        }
        let shards = dealt.into_iter().flat_map(|of| (0..of).map(move |index| Shard { index, of }));
        Ok(shards.map(|shard| (shard, self.cells_left(shard))).filter(|(_, left)| *left > 0).collect())
    }

    /// The cells of `shard` that have no record, the subjects that it measures counted as one each.
    fn cells_left(&self, shard: Shard) -> usize {
        let store = Store::new(&self.out);
        let of_subject = |(at, (corpus, seed)): (usize, (&CorpusConfig, u64))| {
            let part = self.part(at, shard)?;
            let cells = part.cells.iter().map(|cell| store.cell_file(&corpus.name, seed, cell));
            let own = part.has_record.then(|| store.subject_file(&corpus.name, seed));
            Some(cells.chain(own).filter(|path| !path.exists()).count())
        };
        self.subjects().enumerate().filter_map(of_subject).sum()
    }
}

/// The shards, of `of`, that run subject number `subject` of `subjects`.
pub(crate) fn shards_of(subject: usize, subjects: usize, of: usize) -> Range<usize> {
    let first = subject * of / subjects;
    first..((subject + 1) * of / subjects).max(first + 1)
}
