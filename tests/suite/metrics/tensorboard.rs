//! Events: the values of the log, once each, to a reader of our own and to TensorBoard's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;
use tinyonn::metrics::{MetricsLog, Record, read};

use super::resume::train;

/// The folder of Python packages that hold TensorBoard's reader: CI names one, and then it has to be there.
const PACKAGES: &str = "TINYONN_TENSORBOARD";

fn events_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    found.sort();
    found
}

/// CRC-32C a bit at a time, as its definition goes, masked as TFRecord has it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of an events file, every length and checksum of which must be right.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    while !rest.is_empty() {
        assert_eq!(word(&rest[8..]), masked_crc(&rest[..8]));
        let end = 12 + u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(word(&rest[end..]), masked_crc(&rest[12..end]));
        found.push(rest[12..end].to_vec());
        rest = &rest[end + 4..];
    }
    found
}

/// The fields of a message: numbers as their bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut message).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, message[..length].to_vec()));
        message = &message[length..];
    }
    found
}

#[derive(Debug, PartialEq)]
struct Event {
    time: f64,
    step: u64,
    /// The number of the field that says what it is, and its content.
    what: (u64, Vec<u8>),
}

fn events(path: &Path) -> Vec<Event> {
    let event = |record: &Vec<u8>| match fields(record).as_slice() {
        [(1, time), (2, step), what] => Event {
            time: f64::from_le_bytes(time.as_slice().try_into().unwrap()),
            step: u64::from_le_bytes(step.as_slice().try_into().unwrap()),
            what: what.clone(),
        },
        other => panic!("{other:?}"),
    };
    records(path).iter().map(event).collect()
}

fn scalars(event: &Event) -> Vec<(String, f32)> {
    assert_eq!(event.what.0, 5, "a summary");
    let value = |(_, value): (u64, Vec<u8>)| match fields(&value).as_slice() {
        [(1, tag), (2, value)] => {
            (String::from_utf8(tag.clone()).unwrap(), f32::from_le_bytes(value.as_slice().try_into().unwrap()))
        }
        other => panic!("{other:?}"),
    };
    fields(&event.what.1).into_iter().map(value).collect()
}

/// The newest events file of the folder says what the log says, record by record; all that is left of others is an empty predecessor.
fn assert_says_the_same(log: &Path) -> Vec<f64> {
    let mut files = events_files(log.parent().unwrap());
    let events = events(&files.pop().unwrap());
    assert!(files.len() <= 1 && files.iter().all(|path| fs::metadata(path).unwrap().len() == 0), "{files:?}");
    assert_eq!((events[0].step, &events[0].what), (0, &(3, b"brain.Event:2".to_vec())));
    assert_eq!((events[1].step, &events[1].what), (0, &(7, vec![8, 1])), "SessionLog START");
    let expected = |record: &Record| {
        let tag = |(name, value): &(String, f64)| (format!("{}/{name}", record.stage), *value as f32);
        (record.step, record.values.iter().map(tag).collect::<Vec<_>>())
    };
    let found: Vec<_> = events[2..].iter().map(|event| (event.step, scalars(event))).collect();
    assert_eq!(found, read(log).unwrap().iter().map(expected).collect::<Vec<_>>());
    events[2..].iter().map(|event| event.time).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn events_say_what_the_log_says_however_often_it_is_resumed(
        pretrained in 0u64..6,
        starts in prop::collection::vec((0u64..12, 0u64..12, 0usize..60), 0..4),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("metrics.jsonl");
        train(&mut MetricsLog::create(&path).unwrap(), "pretrain", 0..pretrained, 1);
        let mut times = assert_says_the_same(&path);
        for (from, steps, torn) in starts {
            train(&mut MetricsLog::resume(&path, "smk", from).unwrap(), "smk", from..from + steps, 1);
            let now = assert_says_the_same(&path);
            // What stays was logged when it was logged.
            let stays = read(&path).unwrap().iter().filter(|record| record.stage != "smk" || record.step < from).count();
            prop_assert_eq!(&now[..stays], &times[..stays]);
            times = now;
            let events = events_files(dir.path()).pop().unwrap();
            let mut file = fs::OpenOptions::new().append(true).open(events).unwrap();
            file.write_all(&[24, 0, 0, 0, 0, 0, 0, 0, 163, 127, 75, 34].repeat(5)[..torn]).unwrap();
        }
        train(&mut MetricsLog::resume(&path, "smk", 20).unwrap(), "smk", 20..25, 1);
        assert_says_the_same(&path);
    }
}

#[test]
fn only_this_logs_own_events_are_replaced() {
    let dir = TempDir::new().unwrap();
    let others = ["events.out.tfevents.1700000000.host.7.0", "events.out.tfevents.0000000001.other.tinyonn"];
    others.iter().for_each(|name| fs::write(dir.path().join(name), "theirs").unwrap());
    let path = dir.path().join("metrics.jsonl");
    let assert_own = |starts: &[u32]| {
        let own: Vec<String> =
            starts.iter().map(|start| format!("events.out.tfevents.{start:010}.metrics.tinyonn")).collect();
        let mut expected: Vec<&str> = own.iter().map(String::as_str).chain(others).collect();
        expected.sort_unstable();
        let names = events_files(dir.path());
        assert_eq!(names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect::<Vec<_>>(), expected);
    };
    for _ in 0..2 {
        // A new log leaves the same names, whatever was there.
        for _ in 0..2 {
            drop(MetricsLog::create(&path).unwrap());
            assert_own(&[1]);
        }
        drop(MetricsLog::resume(&path, "smk", 0).unwrap());
        assert_own(&[1, 2]);
        drop(MetricsLog::resume(&path, "smk", 0).unwrap());
        assert_own(&[2, 3]);
    }
    assert!(others.iter().all(|name| fs::read_to_string(dir.path().join(name)).unwrap() == "theirs"));
}

/// Killed when the new events file had its name and the old one was not yet emptied, or on a disk that lost the end of it.
#[test]
fn events_of_a_start_that_was_killed_are_made_anew_from_the_log() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("metrics.jsonl");
    train(&mut MetricsLog::create(&path).unwrap(), "smk", 0..9, 1);
    let old = events_files(dir.path()).remove(0);
    let newer = dir.path().join("events.out.tfevents.0000000002.metrics.tinyonn");
    fs::write(&newer, &fs::read(&old).unwrap()[..200]).unwrap();
    drop(MetricsLog::resume(&path, "smk", 7).unwrap());
    assert_says_the_same(&path);
    // Events of a log that was written without any.
    events_files(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
    drop(MetricsLog::resume(&path, "smk", 5).unwrap());
    assert_says_the_same(&path);
}

/// TensorBoard's reader on a folder, in Python.
struct Reader {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Reader {
    /// `None` where TensorBoard is not installed and nobody said that it is.
    fn of(dir: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("suite/metrics/tensorboard_reader.py");
        let packages = std::env::var_os(PACKAGES);
        let mut command = Command::new("python3");
        command.arg(script).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(packages) = &packages {
            command.env("PYTHONPATH", packages);
        } else {
            command.stderr(Stdio::null());
        }
        let started = command.spawn().ok().and_then(|mut child| {
            let mut reader = Self { lines: BufReader::new(child.stdout.take()?), child };
            if reader.line() == "ready" {
                return Some(reader);
            }
            reader.child.wait().ok();
            None
        });
        assert!(started.is_some() || packages.is_none(), "{PACKAGES} is set, and TensorBoard's reader does not start");
        if started.is_none() {
            // Past the harness, which shows what a test says only where it fails.
            let why = "TensorBoard's reader is not installed (pip install tensorboard)";
            writeln!(std::io::stderr(), "skipped: metrics::tensorboard::tensorboard_shows_each_value_once: {why}").ok();
        }
        started
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// All that it has read so far, anew.
    fn reload(&mut self) -> BTreeMap<String, Vec<(u64, f64)>> {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}

/// The curves of the log, in f32.
fn curves(log: &Path) -> BTreeMap<String, Vec<(u64, f64)>> {
    let mut curves = BTreeMap::<String, Vec<(u64, f64)>>::new();
    for record in read(log).unwrap() {
        for (name, value) in record.values {
            let curve = curves.entry(format!("{}/{name}", record.stage)).or_default();
            curve.push((record.step, f64::from(value as f32)));
        }
    }
    curves
}

/// Whether it watches from the beginning or comes at the end: the steps behind the checkpoint that was resumed from are there once, and the
/// other stage, whose steps are higher, is still there.
#[test]
fn tensorboard_shows_each_value_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    let Some(mut watching) = Reader::of(dir.path()) else { return };
    train(&mut log, "pretrain", 0..30, 3);
    train(&mut log, "smk", 0..12, 1);
    assert_eq!(watching.reload(), curves(&path));
    drop(log);
    for from in [8, 8, 11] {
        let mut log = MetricsLog::resume(&path, "smk", from).unwrap();
        train(&mut log, "smk", from..from + 1, 1);
        assert_eq!(watching.reload(), curves(&path));
        train(&mut log, "smk", from + 1..from + 5, 1);
        assert_eq!(watching.reload(), curves(&path));
    }
    let found = Reader::of(dir.path()).unwrap().reload();
    assert_eq!(found, curves(&path));
    assert_eq!((found["pretrain/loss"].len(), found["smk/loss"].len()), (10, 16));
}
