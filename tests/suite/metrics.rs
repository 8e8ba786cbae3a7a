//! Metrics: how sure means are, what is logged is read back, nothing unfit is logged, a log goes on, and TensorBoard and whoever
//! watches see the same.

mod bootstrap;
mod progress;
mod resume;
mod student;
mod tensorboard;

use std::time::Duration;

use proptest::prelude::*;
use rstest::rstest;
use tinyonn::metrics::{MetricsLog, Record, Stopwatch, read, series};

fn record(step: u64, stage: &str, values: &[(&str, f64)]) -> Record {
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    Record { step, stage: stage.into(), values }
}

#[test]
fn a_line_is_one_object_with_keys_in_the_order_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    log.log(3, "smk", &[("loss", 2.125), ("a rate", 1e-7), ("0.1 + 0.2", 0.1 + 0.2)]).unwrap();
    log.log(4, "smk", &[]).unwrap();
    // Read while the log is still open: every line is out as soon as it is logged.
    let text = std::fs::read_to_string(&path).unwrap();
    let first = r#"{"step":3,"stage":"smk","loss":2.125,"a rate":1e-7,"0.1 + 0.2":0.30000000000000004}"#;
    assert_eq!(text, format!("{first}\n{}\n", r#"{"step":4,"stage":"smk"}"#));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn what_is_logged_is_read_back(
        steps in prop::collection::vec((any::<u64>(), "[a-e0-3.\"\\\\\n∫]{0,8}", any::<f64>(), any::<f64>()), 0..8)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let mut written = Vec::new();
        for (step, stage, a, b) in &steps {
            let values = [("a", *a), ("b", *b)];
            prop_assert_eq!(log.log(*step, stage, &values).is_ok(), a.is_finite() && b.is_finite());
            if a.is_finite() && b.is_finite() {
                written.push(record(*step, stage, &values));
            }
        }
        let back = read(&path).unwrap();
        let bits = |record: &Record| record.values.iter().map(|(_, value)| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(back.iter().map(bits).collect::<Vec<_>>(), written.iter().map(bits).collect::<Vec<_>>());
        prop_assert_eq!(back, written);
    }
}

#[rstest]
#[case(&[("loss", f64::NAN)], "`loss`: is NaN at step 7 of stage `pretrain`")]
#[case(&[("fine", 1.0), ("rate", f64::INFINITY)], "`rate`: is inf")]
#[case(&[("rate", f64::NEG_INFINITY)], "`rate`: is -inf")]
#[case(&[("step", 1.0)], "`step`: every record has a key of this name")]
#[case(&[("loss", 1.0), ("loss", 2.0)], "`loss`: logged twice")]
fn what_cannot_be_read_back_is_refused_by_name(#[case] values: &[(&str, f64)], #[case] message: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    let error = log.log(7, "pretrain", values).unwrap_err().to_string();
    assert!(error.starts_with(message), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "nothing of the step is written");
}

#[rstest]
#[case("{\"step\":0,\"stage\":\"a\"}\n{\"step\":1,\"sta", 1)]
#[case("{\"step\":0,\"stage\":\"a\"}", 0)]
#[case("", 0)]
#[case(b"{\"step\":0,\"stage\":\"a\"}\n{\"step\":1,\"\xe2\x88", 1)] // Within a letter.
fn a_line_cut_off_by_a_kill_is_left_out(#[case] text: impl AsRef<[u8]>, #[case] records: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    std::fs::write(&path, text).unwrap();
    assert_eq!(read(&path).unwrap().len(), records);
}

#[rstest]
#[case("not JSON")]
#[case(r#"{"stage":"a"}"#)]
#[case(r#"{"step":-1,"stage":"a"}"#)]
#[case(r#"{"step":1}"#)]
#[case(r#"{"step":1,"stage":7,"loss":NaN}"#)]
#[case(r#"{"step":1,"stage":"a","loss":1e999}"#)]
#[case(r#"{"step":1,"stage":"a","loss":--1}"#)]
#[case(r#"{"step":1.5,"stage":"a"}"#)]
#[case(r#"{"step":1,"stage":"a","loss":"low"}"#)]
fn a_damaged_line_is_named(#[case] line: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    std::fs::write(&path, format!("{{\"step\":0,\"stage\":\"a\"}}\n{line}\n")).unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl: line 2:"), "{error}");
}

#[test]
fn a_missing_log_is_named() {
    let error = read("no/such/metrics.jsonl").unwrap_err().to_string();
    assert!(error.starts_with("no/such/metrics.jsonl: "), "{error}");
}

#[test]
fn a_series_is_one_value_of_one_stage() {
    let records = [
        record(0, "pretrain", &[("loss", 5.0), ("rate", 0.1)]),
        record(1, "pretrain", &[("rate", 0.1)]),
        record(2, "pretrain", &[("loss", 4.0)]),
        record(0, "smk", &[("loss", 9.0)]),
    ];
    assert_eq!(series(&records, "pretrain", "loss"), [(0.0, 5.0), (2.0, 4.0)]);
    assert_eq!(series(&records, "smk", "rate"), []);
}

#[test]
fn a_stopwatch_gives_each_stage_its_own_time() {
    let mut watch = Stopwatch::new();
    assert_eq!(watch.seconds(), []);
    watch.stage("slow");
    std::thread::sleep(Duration::from_millis(30));
    watch.stage("quick");
    watch.stage("slow");
    std::thread::sleep(Duration::from_millis(30));
    watch.stop();
    let seconds = watch.seconds();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(watch.seconds(), seconds, "a stopped watch stands still");
    assert_eq!((seconds[0].0.as_str(), seconds[1].0.as_str(), seconds.len()), ("slow", "quick", 2));
    assert!(seconds[0].1 >= 0.06 && seconds[1].1 < seconds[0].1, "{seconds:?}");
}
