//! A log that goes on: the bytes of a run that was stopped, or killed, and resumed are those of a run in one go.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::metrics::{MetricsLog, read};

use crate::models::message;

/// Stands in for a trainer: logs every `every`th step of a stage.
pub(super) fn train(log: &mut MetricsLog, stage: &str, steps: std::ops::Range<u64>, every: u64) {
    for step in steps.filter(|step| step % every == 0) {
        let loss = 3.0 / (step as f64 + 1.0) + stage.len() as f64;
        log.log(step, stage, &[("loss", loss), ("rate ∫", 1e-3 / (step as f64 + 3.0))]).unwrap();
    }
}

/// What a kill leaves of the line that was being written.
fn tear(path: &Path, bytes: usize) {
    let line = "{\"step\":7,\"stage\":\"smk\",\"rate ∫\":0.1}";
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(&line.as_bytes()[..bytes.min(line.len())]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_run_in_pieces_leaves_the_bytes_of_a_run_in_one(
        before in 0u64..9,
        length in 1u64..30,
        every in 1u64..4,
        // Of each start: the checkpoint and how far the run came behind it, as shares; bytes of a torn line.
        kills in prop::collection::vec((0.0f64..1.0, 0.0f64..1.0, 0usize..40), 0..4),
    ) {
        let dir = TempDir::new().unwrap();
        let [whole, pieces] = ["whole.jsonl", "pieces.jsonl"].map(|name| dir.path().join(name));
        for path in [&whole, &pieces] {
            train(&mut MetricsLog::create(path).unwrap(), "pretrain", 0..before, 1);
        }
        train(&mut MetricsLog::resume(&whole, "smk", 0).unwrap(), "smk", 0..length, every);
        let mut checkpoint = 0;
        for (saved, came, torn) in kills {
            let next = checkpoint + (saved * (length - checkpoint) as f64) as u64;
            let end = next + (came * (length - next) as f64) as u64;
            train(&mut MetricsLog::resume(&pieces, "smk", checkpoint).unwrap(), "smk", checkpoint..end, every);
            tear(&pieces, torn);
            checkpoint = next;
        }
        train(&mut MetricsLog::resume(&pieces, "smk", checkpoint).unwrap(), "smk", checkpoint..length, every);
        prop_assert_eq!(fs::read(&pieces).unwrap(), fs::read(&whole).unwrap());
        let records = read(&pieces).unwrap();
        prop_assert_eq!(records.len() as u64, before + length.div_ceil(every));
    }

    /// What the log relies on where it reads numbers: serde_json's feature `float_roundtrip`.
    #[test]
    fn json_holds_every_float_to_the_last_bit(bits in any::<u64>()) {
        let value = f64::from_bits(bits);
        prop_assume!(value.is_finite());
        let back: serde_json::Value = serde_json::from_str(&serde_json::to_string(&value).unwrap()).unwrap();
        prop_assert_eq!(back.as_f64().map(f64::to_bits), Some(bits));
    }
}

/// Other stages' lines stand before, among and behind what is cut; odd but readable lines stay as somebody wrote them.
#[test]
fn only_what_the_stage_will_log_again_is_cut() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let kept = [
        "{\"step\":9,\"stage\":\"pretrain\",\"loss\":1}\n",
        " {\"loss\": 1.50, \"stage\": \"smk\", \"step\": 2}\r\n",
        "{\"step\":3,\"stage\":\"causal\"}\n",
        "{\"step\":40,\"stage\":\"causal\"}\n",
    ];
    let cut = ["{\"step\":3,\"stage\":\"smk\",\"loss\":1}\n", "{\"step\":4,\"stage\":\"smk\"}\n"];
    let text = [kept[0], kept[1], cut[0], kept[2], cut[1], kept[3], "{\"step\":5,\"sta"].concat();
    fs::write(&path, text).unwrap();
    let mut log = MetricsLog::resume(&path, "smk", 3).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), kept.concat());
    log.log(3, "smk", &[]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), kept.concat() + "{\"step\":3,\"stage\":\"smk\"}\n");
}

#[test]
fn a_log_that_is_not_there_is_begun() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("metrics.jsonl");
    train(&mut MetricsLog::resume(&path, "smk", 5).unwrap(), "smk", 5..7, 1);
    assert_eq!(read(&path).unwrap().iter().map(|record| record.step).collect::<Vec<_>>(), [5, 6]);
    assert!(message(MetricsLog::resume(dir.path().join("no/such.jsonl"), "smk", 0)).contains("check the path"));
}

#[rstest]
#[case::not_json("so it goes")]
#[case::no_stage("{\"step\":1}")]
fn a_damaged_line_is_named_and_nothing_is_cut(#[case] line: &str) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let text = format!("{{\"step\":0,\"stage\":\"smk\"}}\n{line}\n{{\"step\":1,\"sta");
    fs::write(&path, &text).unwrap();
    assert!(message(MetricsLog::resume(&path, "smk", 0)).contains("metrics.jsonl: line 2: "));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}
