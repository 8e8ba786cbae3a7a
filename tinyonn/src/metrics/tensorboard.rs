//! What TensorBoard reads: an events file.
//!
//! The format is TFRecord: of each record its length (u64), the masked CRC-32C of these eight bytes (u32), its bytes, their masked
//! CRC-32C (u32), all little-endian; masked is `rotate_right(crc, 15) + 0xa282ead8`. A record is a message `Event` of tensorflow/core/util/event.proto in Protocol
//! Buffers' encoding: wall_time = 1 (double), step = 2 (int64), and one of file_version = 3 (string), summary = 5, session_log = 7. A `Summary` is a list,
//! value = 1, of tag = 1 (string) and simple_value = 2 (float); a `SessionLog` has status = 1, START = 1.
//!
//! A run that goes on writes all that stays anew, into a file that sorts behind the old one, which is then emptied: a START there at step 0 tells a
//! TensorBoard that is watching to forget what it has read. (A START at the step that is gone on from would forget the later steps of other
//! stages as well, and readers that know no START would show steps twice. Removed, the old file would hold up a TensorBoard that is
//! watching: its reader in Python goes on to the next file from the end of one that is there.)

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};

use super::value::Record;
use crate::files::{self, parent_of};
use crate::{Error, Result};

const PREFIX: &str = "events.out.tfevents.";
/// Castagnoli's, which iSCSI has too.
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Records before those of steps: the version, and START.
const HEAD: usize = 2;

/// The events beside one log.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Begins the events of a new log at `log`; those of an older one go, so that a run leaves the same names whatever was there.
    pub(super) fn create(log: &Path) -> Result<Self> {
        Old::of(log)?.files.iter().try_for_each(|(_, path)| fs::remove_file(path).map_err(|e| Error::io(path, e)))?;
        Self::write(log, 1, &[], &[])
    }

    /// Begins the events beside `log` with `records`, each with the number of the line it had in the log; only the times at which these were
    /// logged are taken over from the older file, which is emptied.
    pub(super) fn resume(log: &Path, records: &[(usize, Record)]) -> Result<Self> {
        let old = Old::of(log)?;
        let start = old.files.last().map_or(1, |(start, _)| start + 1);
        let events = Self::write(log, start, records, &old.times())?;
        old.retire()?;
        Ok(events)
    }

    /// Writes the events beside `from`, of these `records`, beside `to` as well.
    pub(super) fn copy(from: &Path, to: &Path, records: &[(usize, Record)]) -> Result<()> {
        Self::write(to, 1, records, &Old::of(from)?.times()).map(drop)
    }

    /// The file of the `start`th start, with `records`, and `times` of the lines of the log.
    fn write(log: &Path, start: u64, records: &[(usize, Record)], times: &[f64]) -> Result<Self> {
        let now = now();
        let mut bytes = Vec::new();
        frame(&mut bytes, &event(now, 0, &bytes_field(3, b"brain.Event:2")));
        frame(&mut bytes, &event(now, 0, &bytes_field(7, &[&key(1, VARINT)[..], &[1]].concat())));
        for (line, record) in records {
            let values = record.values.iter().map(|(name, value)| (name.as_str(), *value));
            let time = times.get(*line).copied().unwrap_or(now);
            frame(&mut bytes, &event(time, record.step, &summary(&record.stage, values)));
        }
        // Where others put the second, a number that makes names sort by starts, and be the same whenever a run is.
        let path = parent_of(log).join(format!("{PREFIX}{start:010}.{}", suffix(log)));
        files::write(&path, bytes)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { file, path })
    }

    /// Appends the values of one step; without any it still takes a record, so that records and lines of the log are one to one.
    pub(super) fn log<'a>(
        &mut self,
        step: u64,
        stage: &str,
        values: impl Iterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        frame(&mut bytes, &event(now(), step, &summary(stage, values)));
        self.file.write_all(&bytes).map_err(|e| Error::io(&self.path, e))
    }
}

/// The events files that earlier starts of the same log left: the last one's, and its predecessor, emptied.
struct Old {
    /// By their numbers, in order.
    files: Vec<(u64, PathBuf)>,
}

impl Old {
    fn of(log: &Path) -> Result<Self> {
        let (folder, suffix) = (parent_of(log), suffix(log));
        let io = |e| Error::io(&folder, e);
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let start = entry.file_name().to_str().and_then(|name| {
                let (start, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
                (rest == suffix).then(|| start.parse::<u64>().ok())?
            });
            // Whatever else lies there is another program's.
            files.extend(start.map(|start| (start, entry.path())));
        }
        files.sort();
        Ok(Self { files })
    }

    /// Empties the newest, and removes those before it, from which whoever watches has gone on.
    fn retire(&self) -> Result<()> {
        let Some(((_, newest), before)) = self.files.split_last() else { return Ok(()) };
        OpenOptions::new().write(true).truncate(true).open(newest).map_err(|e| Error::io(newest, e))?;
        before.iter().try_for_each(|(_, path)| fs::remove_file(path).map_err(|e| Error::io(path, e)))
    }

    /// When each line of the log was logged, as far as the newest file can be read.
    fn times(&self) -> Vec<f64> {
        let bytes = self.files.last().and_then(|(_, path)| fs::read(path).ok()).unwrap_or_default();
        let (mut rest, mut times) = (bytes.as_slice(), Vec::new());
        while let Some((record, behind)) = next_record(rest) {
            // Every event begins with its time: see `event`.
            let Some(time) = record.get(1..9).and_then(|time| time.try_into().ok()) else { break };
            times.push(f64::from_le_bytes(time));
            rest = behind;
        }
        times.split_off(HEAD.min(times.len()))
    }
}

/// The end of the names of the events beside `log`: those of another log, or of another program, are not this one's to remove.
fn suffix(log: &Path) -> String {
    format!("{}.tinyonn", log.file_stem().unwrap_or_default().to_string_lossy())
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

fn key(field: u8, wire_type: u8) -> [u8; 1] {
    [field << 3 | wire_type]
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10);
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn bytes_field(field: u8, content: &[u8]) -> Vec<u8> {
    [&key(field, BYTES)[..], &varint(content.len() as u64), content].concat()
}

fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    [&key(1, FIXED_64)[..], &time.to_le_bytes(), &key(2, VARINT), &varint(step.min(i64::MAX as u64)), what].concat()
}

fn summary<'a>(stage: &str, values: impl Iterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let value = |(name, value): (&str, f64)| {
        let tag = bytes_field(1, format!("{stage}/{name}").as_bytes());
        bytes_field(1, &[&tag, &key(2, FIXED_32)[..], &(value as f32).to_le_bytes()].concat())
    };
    bytes_field(5, &values.flat_map(value).collect::<Vec<_>>())
}

fn frame(out: &mut Vec<u8>, record: &[u8]) {
    let length = (record.len() as u64).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(record);
    out.extend_from_slice(&masked_crc(record).to_le_bytes());
}

/// The first record and what is behind it; `None` at the end, and where a record is torn or damaged.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*length_crc) != masked_crc(length) {
        return None;
    }
    let (record, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*crc) == masked_crc(record)).then_some((record, rest))
}

fn masked_crc(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
