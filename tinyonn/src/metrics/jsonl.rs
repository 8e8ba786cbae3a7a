//! The log on disk: JSON Lines, `{"step":3,"stage":"smk","loss":2.125}`, and beside it the same for TensorBoard.
//!
//! Keys stand in the order given, numbers are the shortest decimals that name the float, every line is flushed: the same run
//! writes the same bytes, and a killed one loses at most the line it was writing.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::tensorboard::EventFile;
use super::value::{Record, check};
use crate::{Error, Result, files};

/// A log of metrics that is being written: a file of one JSON object a line, and beside it an events file that TensorBoard shows
/// (`events.out.tfevents.*`, each value under the tag `stage/name`, rounded to f32).
///
/// A run that goes on from a checkpoint goes on with its log, and leaves the bytes that it would have left in one go:
///
/// ```
/// use tinyonn::metrics::MetricsLog;
/// # let folder = tempfile::tempdir()?;
/// # let (path, whole) = (folder.path().join("metrics.jsonl"), folder.path().join("whole.jsonl"));
///
/// let train = |log: &mut MetricsLog, steps: std::ops::Range<u32>| {
///     steps.into_iter().try_for_each(|step| log.log(step.into(), "smk", &[("loss", 3.0 / f64::from(step + 1))]))
/// };
/// train(&mut MetricsLog::create(&path)?, 0..7)?; // killed at step 7; the last checkpoint was that of step 5
/// train(&mut MetricsLog::resume(&path, "smk", 5)?, 5..9)?;
///
/// train(&mut MetricsLog::create(&whole)?, 0..9)?;
/// assert_eq!(std::fs::read(&path)?, std::fs::read(&whole)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    events: EventFile,
}

impl MetricsLog {
    /// Begins a log at `path`; what the file held before is gone, and so are its events.
    ///
    /// # Errors
    /// What the system reports.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::create(&path).map_err(|source| Error::io(&path, source))?;
        let events = EventFile::create(&path)?;
        Ok(Self { file, path, events })
    }

    /// Goes on behind all that the log at `path` holds, or begins it if there is none: for a training that may go on, which finds out from its
    /// checkpoint where, and then calls [`rewind`](Self::rewind).
    ///
    /// ```
    /// use tinyonn::metrics::{MetricsLog, read};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("metrics.jsonl");
    /// for _ in 0..2 {
    ///     // The second time it goes on: a checkpoint of step 1 was found.
    ///     let mut log = MetricsLog::open(&path)?;
    ///     log.rewind("smk", 1)?;
    ///     log.log(1, "smk", &[("loss", 2.5)])?;
    /// }
    /// assert_eq!(read(&path)?.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As of [`resume`](Self::resume).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::resume(path, "", u64::MAX)
    }

    /// Writes the log at `from` to `to` as well, and its events with their times.
    ///
    /// ```
    /// use tinyonn::metrics::MetricsLog;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let [from, to] = ["phase1", "phase2"].map(|name| folder.path().join(name));
    /// # [&from, &to].map(|dir| std::fs::create_dir(dir).unwrap());
    /// # let [from, to] = [from, to].map(|dir| dir.join("metrics.jsonl"));
    /// MetricsLog::create(&from)?.log(0, "pretrain", &[("loss", 5.5)])?;
    /// MetricsLog::copy(&from, &to)?;
    /// assert_eq!(std::fs::read(&from)?, std::fs::read(&to)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A line that cannot be read, which is named; what the system reports.
    pub fn copy(from: &Path, to: &Path) -> Result<()> {
        files::write(to, fs::read(from).map_err(|source| Error::io(from, source))?)?;
        let records: Vec<(usize, Record)> = read(to)?.into_iter().enumerate().collect();
        EventFile::copy(from, to, &records)
    }

    /// Takes the log back to where `stage` goes on at `step`, as [`resume`](Self::resume) does.
    ///
    /// # Errors
    /// As of [`resume`](Self::resume).
    pub fn rewind(&mut self, stage: &str, step: u64) -> Result<()> {
        if read(&self.path)?.iter().any(|record| record.stage == stage && record.step >= step) {
            *self = Self::resume(&self.path, stage, step)?;
        }
        Ok(())
    }

    /// Goes on with the log at `path` where `stage` goes on at `step`, or begins it if there is none.
    ///
    /// What was logged of `stage` at `step` and later was logged behind the checkpoint that the run goes on from, and is cut off, and so is a
    /// last line without an end. The rest stays byte for byte, and the events are made to say the same.
    ///
    /// # Errors
    /// A line that cannot be read, which is named; the log is then as it was. What the system reports.
    pub fn resume(path: impl AsRef<Path>, stage: &str, step: u64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let io = |source| Error::io(&path, source);
        let bytes = match fs::read(&path) {
            Err(source) if source.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(io)?,
        };
        // Of each line that stays: which it was, and what it says.
        let (mut kept, mut records) = (Vec::with_capacity(bytes.len()), Vec::new());
        for (number, line) in whole_lines(&bytes).enumerate() {
            let record = parse(line).map_err(|problem| unreadable(&path, number, &problem))?;
            if record.stage != stage || record.step < step {
                kept.extend_from_slice(line);
                records.push((number, record));
            }
        }
        if bytes.starts_with(&kept) {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
            file.set_len(kept.len() as u64).map_err(io)?;
        } else {
            // Lines of another stage stand behind what is cut: only a whole new file keeps them if this process is killed now.
            files::write(&path, kept)?;
        }
        let events = EventFile::resume(&path, &records)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io)?;
        Ok(Self { file, path, events })
    }

    /// Appends the values of one step and flushes them. A value that is not finite is refused by its name.
    pub fn log(&mut self, step: u64, stage: &str, values: &[(&str, f64)]) -> Result<()> {
        check(step, stage, values)?;
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        object.insert("stage".into(), stage.into());
        object.extend(values.iter().map(|&(name, value)| (name.to_owned(), value.into())));
        let line = format!("{}\n", Value::Object(object));
        // One write a line: whoever reads along, or is left after a kill, sees whole lines.
        self.file.write_all(line.as_bytes()).map_err(|source| Error::io(&self.path, source))?;
        self.file.flush().map_err(|source| Error::io(&self.path, source))?;
        self.events.log(step, stage, values.iter().copied())
    }
}

/// Reads a log back, in its order and to the last bit. A last line without an end (the run was killed while writing it) is left
/// out.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    let lines = whole_lines(&bytes).enumerate();
    lines.map(|(number, line)| parse(line).map_err(|problem| unreadable(path, number, &problem))).collect()
}

/// Lines with their ends. In bytes: a line may be cut off within a letter.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

fn unreadable(path: &Path, number: usize, problem: &str) -> Error {
    Error::file(path, format!("line {}: {problem}", number + 1), "remove the line, or log the run anew")
}

fn parse(line: &[u8]) -> Result<Record, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let step = object.shift_remove("step").ok_or("`step` is missing")?;
    let step = step.as_u64().ok_or("`step` is no whole number")?;
    let Some(Value::String(stage)) = object.shift_remove("stage") else {
        return Err("`stage` is missing".into());
    };
    // serde_json reads decimals to the last bit (its feature `float_roundtrip`), and refuses those that f64 cannot hold.
    let number = |(name, value): (String, Value)| match value.as_f64() {
        Some(value) => Ok((name, value)),
        None => Err(format!("`{name}` is no number")),
    };
    let values = object.into_iter().map(number).collect::<Result<_, _>>()?;
    Ok(Record { step, stage, values })
}
