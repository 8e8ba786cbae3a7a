//! Scans on disk: what is read back is what was written; one that was cut off goes on where it stood, to the same bits; whatever is
//! damaged, foreign or of another scan is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use candle_core::{DType, Device};
use rstest::rstest;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::data::TokenSet;
use tinyonn::decoder::CausalLm;
use tinyonn::files::Digest;
use tinyonn::imaging::{Log1p, NeuronScan, ScanFile, ScanOptions, ScanRequest, Shard, StoredScan, scan_with};
use tinyonn::ops::{GradSite, Log1pScale};
use tinyonn::{Error, Result};

use super::shards::units;
use super::{VOCAB, options};
use crate::models::{Hooked, Way, hooked};
use crate::tiny;

/// Of two layers: fails in batch `batches` (from 0), between them.
fn failing_after(batches: usize) -> CausalLm<Hooked> {
    failing(batches, VOCAB as usize)
}

pub(super) fn failing(batches: usize, vocab: usize) -> CausalLm<Hooked> {
    let cfg = tiny::config(vocab);
    let store = tiny::dense_store(&cfg, 5);
    let left = AtomicUsize::new((2 * batches).saturating_add(1));
    hooked(&cfg, &store.builder(DType::F32, |_| false), move |way| {
        let gone = |left: usize| left.checked_sub(1);
        match way {
            Way::Forward if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, gone).is_err() => {
                Err(Error::setting("power", "is off", "switch it on"))
            }
            _ => Ok(()),
        }
    })
}

fn text() -> TokenSet {
    tiny::tokens(5, &[65, 50], VOCAB)
}

fn request() -> ScanRequest {
    ScanRequest { units: Some(units(4)), ..ScanRequest::new(options(8, 2)) }
}

pub(super) fn file(path: &Path) -> ScanFile<'_> {
    ScanFile { path, corpus: "corpus", model: "model", every: Duration::ZERO }
}

fn scanned(batches: usize, request: &ScanRequest, path: &Path) -> Result<NeuronScan> {
    scan_with(&failing_after(batches), &text(), request, &Device::Cpu, Some(&file(path)))
}

pub(super) const NEVER: usize = usize::MAX / 4;

#[rstest]
fn what_is_read_is_what_was_written(
    #[values(None, Some(4))] experts: Option<usize>,
    #[values(Log1p::Off, Log1p::Measured, Log1p::Given(vec![Log1pScale { activation: 0.1, surprise: 1.5 }; 2]))]
    log1p: Log1p,
    #[values(GradSite::Weight, GradSite::Output)] grad_site: GradSite,
) {
    let dir = TempDir::new().unwrap();
    let (path, again) = (dir.path().join("scan.safetensors"), dir.path().join("again.safetensors"));
    let request = ScanRequest { units: experts.map(units), log1p, grad_site, ..request() };
    let scan = scanned(NEVER, &request, &path).unwrap();
    let stored = StoredScan::load(&path).unwrap();
    assert_eq!(stored.scan, scan);
    assert_eq!((&*stored.model, &*stored.version), ("model", env!("CARGO_PKG_VERSION")));
    let [part] = stored.parts.as_slice() else { panic!("{:?}", stored.parts) };
    assert_eq!((&*part.corpus, &*part.text, part.options), ("corpus", &*text().sha256(), options(8, 2)));
    assert_eq!((part.shard, part.done, part.batches), (Shard::WHOLE, 8, 8));
    stored.save(&again).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
    // A finished scan is returned without a pass, and its file left alone.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(scanned(0, &request, &path).unwrap(), scan);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[rstest]
fn a_scan_that_was_cut_off_goes_on_to_the_same_bits(
    #[values(1, 4, 7)] first: usize,
    #[values(1, 3)] second: usize,
    #[values(Log1p::Off, Log1p::Measured)] log1p: Log1p,
) {
    let dir = TempDir::new().unwrap();
    let [cut, whole] = ["cut", "whole"].map(|name| dir.path().join(name));
    // The scales take a batch of each of the two tasks at the beginning.
    let scales = if log1p == Log1p::Measured { 2 } else { 0 };
    let request = ScanRequest { log1p, ..request() };
    for (batches, done) in [(first + scales, first), (second, (first + second).min(8))] {
        let result = scanned(batches, &request, &cut);
        assert_eq!(result.is_err(), done < 8);
        let error = StoredScan::load(&cut).map(|stored| stored.parts[0].done);
        match error {
            Ok(all) => assert_eq!((all, done), (8, 8)),
            Err(e) => assert!(e.to_string().contains(&format!("not finished: {done} of 8 batches")), "{e}"),
        }
    }
    assert_eq!(scanned(NEVER, &request, &cut).unwrap(), scanned(NEVER, &request, &whole).unwrap());
    assert_eq!(fs::read(&cut).unwrap(), fs::read(&whole).unwrap());
}

#[test]
fn nothing_is_written_before_its_time() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("scan.safetensors");
    let slow = ScanFile { every: Duration::from_hours(1), ..file(&path) };
    assert!(scan_with(&failing_after(5), &text(), &request(), &Device::Cpu, Some(&slow)).is_err());
    assert!(!path.exists());
    scan_with(&failing_after(NEVER), &text(), &request(), &Device::Cpu, Some(&slow)).unwrap();
    assert!(path.exists());
}

#[rstest]
#[case::options(ScanRequest { options: options(4, 2), ..request() }, "text read otherwise")]
#[case::tokens(ScanRequest { options: ScanOptions { tokens_per_task: 30, ..options(8, 2) }, ..request() }, "text read otherwise")]
#[case::shard(ScanRequest { shard: Shard { index: 0, of: 2 }, ..request() }, "another shard (0/1)")]
#[case::grad_site(ScanRequest { grad_site: GradSite::Output, ..request() }, "another grad_site")]
#[case::partition(ScanRequest { units: Some(units(5)), ..request() }, "another partition")]
#[case::log1p(ScanRequest { log1p: Log1p::Measured, ..request() }, "other log1p values")]
fn a_file_of_another_request_is_refused(#[case] other: ScanRequest, #[case] problem: &str) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("scan.safetensors");
    assert!(scanned(3, &other, &path).is_err());
    let before = fs::read(&path).unwrap();
    let error = scanned(NEVER, &request(), &path).unwrap_err().to_string();
    let expected = if problem.starts_with("another shard") { "another shard (0/2)" } else { problem };
    assert!(error.contains("scan.safetensors: holds a scan of") && error.contains(expected), "{error}");
    assert!(error.contains("name another file"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[rstest]
#[case::model("corpus", "other", 5, "another model")]
#[case::corpus("other", "model", 5, "another corpus")]
#[case::tokens("corpus", "model", 6, "other tokens")]
fn a_file_of_other_things_is_refused(
    #[case] corpus: &str,
    #[case] model: &str,
    #[case] seed: u64,
    #[case] problem: &str,
) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("scan.safetensors");
    assert!(scanned(3, &request(), &path).is_err());
    let (set, file) = (tiny::tokens(seed, &[65, 50], VOCAB), ScanFile { corpus, model, ..file(&path) });
    let refused = scan_with(&failing_after(NEVER), &set, &request(), &Device::Cpu, Some(&file));
    assert!(refused.unwrap_err().to_string().contains(&format!("holds a scan of {problem}")));
}

#[rstest]
#[case::truncated(|bytes: Vec<u8>| bytes[..bytes.len() - 9].to_vec(), "truncated or damaged")]
#[case::empty(|_| Vec::new(), "truncated or damaged")]
#[case::a_sum(|mut bytes: Vec<u8>| { let at = bytes.len() - 100; bytes[at] ^= 1; bytes }, "not those that were written")]
#[case::the_record(|bytes: Vec<u8>| replaced(&bytes, "\\\"model\\\":\\\"model\\\"", "\\\"model\\\":\\\"mOdel\\\""), "not those that were written")]
#[case::a_later_format(|bytes: Vec<u8>| replaced(&bytes, "\\\"format\\\":3", "\\\"format\\\":4"), "format 4 by version 0.1.0, this version reads 1 to 3")]
#[case::no_scan(|bytes: Vec<u8>| replaced(&bytes, "tinyonn.scan", "tinyonn.span"), "holds no scan")]
#[case::text(|_| b"nothing of the kind".to_vec(), "damaged")]
fn damaged_and_foreign_files_are_refused(#[case] damage: fn(Vec<u8>) -> Vec<u8>, #[case] problem: &str) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("scan.safetensors");
    scanned(NEVER, &request(), &path).unwrap();
    fs::write(&path, damage(fs::read(&path).unwrap())).unwrap();
    for error in [StoredScan::load(&path).unwrap_err(), scanned(NEVER, &request(), &path).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains("scan.safetensors: ") && error.contains(problem), "{error}");
    }
}

/// Half of a scan is gone on with by the code that began it; a whole one is taken as it is.
#[rstest]
#[case::half(3, Some("holds 3 of 8 batches, scanned by version 0.1.0 from other sources of the library; finish it"))]
#[case::whole(NEVER, None)]
fn a_scan_by_other_sources_is_not_gone_on_with(#[case] batches: usize, #[case] problem: Option<&str>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("scan.safetensors");
    let _ = scanned(batches, &request(), &path);
    let other = by_other_sources(&fs::read(&path).unwrap());
    fs::write(&path, &other).unwrap();
    let found = scanned(NEVER, &request(), &path);
    match problem {
        Some(problem) => {
            let said = found.unwrap_err().to_string();
            assert!(said.contains("scan.safetensors: ") && said.contains(problem), "{said}");
        }
        None => assert_eq!(found.unwrap(), scanned(NEVER, &request(), &dir.path().join("anew")).unwrap()),
    }
    assert_eq!(fs::read(&path).unwrap(), other);
}

/// The file as a program of other sources would have written it.
fn by_other_sources(bytes: &[u8]) -> Vec<u8> {
    forged(bytes, "sources", &"0".repeat(64).into())
}

/// The file with another value in its record.
fn forged(bytes: &[u8], key: &str, value: &Value) -> Vec<u8> {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let said: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["tinyonn.scan"]).unwrap();
    let mut record = said["record"].clone();
    record[key] = value.clone();
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut digest = Digest::new();
    digest.text(&record.to_string());
    let tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    for (name, view) in &tensors {
        digest.text(name);
        digest.bytes(view.data());
    }
    let metadata = json!({ "sha256": digest.hex(), "record": record }).to_string();
    safetensors::serialize(tensors, Some([("tinyonn.scan".to_owned(), metadata)].into())).unwrap()
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[test]
fn shards_on_disk_add_up_and_none_counts_twice() {
    let dir = TempDir::new().unwrap();
    let shard = |index: usize, of: usize| {
        let path = dir.path().join(format!("{index}-{of}"));
        scanned(NEVER, &ScanRequest { shard: Shard { index, of }, ..request() }, &path).unwrap();
        StoredScan::load(&path).unwrap()
    };
    let mut sum = shard(0, 3);
    sum.merge(&shard(2, 3)).unwrap();
    assert_eq!(sum.missing(), [Shard { index: 1, of: 3 }]);
    for again in [shard(2, 3), shard(0, 1), shard(1, 2)] {
        let error = sum.merge(&again).unwrap_err().to_string();
        assert!(error.starts_with("`merge`") && error.contains("batches of the same text"), "{error}");
    }
    sum.merge(&shard(1, 3)).unwrap();
    assert_eq!((sum.missing(), sum.parts.len()), (vec![], 3));
    let whole = shard(0, 1);
    assert_eq!(sum.scan.tokens, whole.scan.tokens);
    for (found, expected) in sum.scan.sums.iter().flatten().zip(whole.scan.sums.iter().flatten()) {
        for (found, expected) in found.surprise.iter().zip(&expected.surprise) {
            approx::assert_relative_eq!(found, expected, max_relative = 1e-12);
        }
    }
    // A merged file is read like any other, but is nobody's to continue.
    let path = dir.path().join("sum");
    sum.save(&path).unwrap();
    assert_eq!(StoredScan::load(&path).unwrap(), sum);
    let error = scanned(NEVER, &request(), &path).unwrap_err().to_string();
    assert!(error.contains("several parts, merged"), "{error}");

    let (mut other, mut later) = (whole.clone(), whole.clone());
    (other.model, later.version) = ("other".into(), "9.9.9".into());
    for (wrong, words) in [(other, "different models (model and other)"), (later, "versions")] {
        let error = shard(0, 1).merge(&wrong).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_place_that_is_not_there_is_refused_before_the_pass() {
    let dir = TempDir::new().unwrap();
    let error = scanned(0, &request(), &dir.path().join("none/scan.safetensors")).unwrap_err().to_string();
    assert!(error.contains("none: is not a folder"), "{error}");
}

#[test]
fn two_scans_do_not_write_over_each_other() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("scan.safetensors");
    let cfg = tiny::config(VOCAB as usize);
    let store = tiny::dense_store(&cfg, 5);
    let (calls, same) = (AtomicUsize::new(0), path.clone());
    let model = hooked(&cfg, &store.builder(DType::F32, |_| false), move |_| {
        // In the second batch, when the file is there: the other scan goes on from it, and ends first.
        if calls.fetch_add(1, Ordering::SeqCst) == 3 {
            scanned(NEVER, &request(), &same)?;
        }
        Ok(())
    });
    let said = scan_with(&model, &text(), &request(), &Device::Cpu, Some(&file(&path))).unwrap_err().to_string();
    assert!(said.contains("was written by another scan while this one ran"), "{said}");
    // The other's is whole.
    let expected = scanned(NEVER, &request(), &dir.path().join("alone.safetensors")).unwrap();
    assert_eq!(StoredScan::load(&path).unwrap().scan, expected);
}

/// Three shards of a text, and a whole scan of another, each with its file.
fn three_shards_and_another(dir: &Path) -> [(PathBuf, StoredScan); 4] {
    let stored = |name: &str, request: &ScanRequest, text: &TokenSet, corpus: &str| {
        let path = dir.join(name);
        let file = ScanFile { corpus, ..file(&path) };
        scan_with(&failing_after(NEVER), text, request, &Device::Cpu, Some(&file)).unwrap();
        (path.clone(), StoredScan::load(&path).unwrap())
    };
    let shard = |index: usize| {
        let request = ScanRequest { shard: Shard { index, of: 3 }, ..request() };
        stored(&index.to_string(), &request, &text(), "corpus")
    };
    [shard(0), shard(1), shard(2), stored("other", &request(), &tiny::tokens(9, &[65, 50], VOCAB), "another")]
}

/// Sums are rounded in the order in which they are made, and that order is the scans' own.
#[test]
fn shards_add_up_to_the_same_bytes_in_any_order() {
    let dir = TempDir::new().unwrap();
    let scans = three_shards_and_another(dir.path());
    let bytes = |order: [usize; 4]| {
        let sum = StoredScan::sum(order.map(|at| scans[at].clone()).to_vec(), false).unwrap();
        let path = dir.path().join("sum");
        sum.save(&path).unwrap();
        fs::read(path).unwrap()
    };
    let first = bytes([0, 1, 2, 3]);
    for order in [[3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        assert!(bytes(order) == first, "{order:?}");
    }
    // Added up as they come they differ: the test would see it.
    let one_by_one = |order: [usize; 3]| {
        let mut sum = scans[order[0]].1.clone();
        order[1..].iter().for_each(|at| sum.merge(&scans[*at].1).unwrap());
        sum.scan
    };
    assert_ne!(one_by_one([0, 1, 2]), one_by_one([2, 1, 0]));
}

/// A share of another seed's text is no share of this one.
#[rstest]
#[case(&[0, 3], "0: holds shard 0/3 of a text whose shard 1/3 is not here, and ", "other is of another text or seed")]
#[case(&[3, 2, 0], "holds shard ", "other is of another text or seed")]
fn shards_of_several_texts_are_refused_by_name(#[case] given: &[usize], #[case] file: &str, #[case] problem: &str) {
    let dir = TempDir::new().unwrap();
    let scans = three_shards_and_another(dir.path());
    let said = StoredScan::sum(given.iter().map(|at| scans[*at].clone()).collect(), false).unwrap_err().to_string();
    assert!(said.contains(file) && said.contains(problem), "{said}");
}

/// Where passes ran stands in the file; sums of several kinds are asked for.
#[test]
fn devices_are_mixed_only_when_asked() {
    let dir = TempDir::new().unwrap();
    let mut scans: Vec<_> = three_shards_and_another(dir.path())[..3].to_vec();
    let on_a_card = dir.path().join("1");
    fs::write(&on_a_card, forged(&fs::read(&on_a_card).unwrap(), "devices", &json!(["NVIDIA H200"]))).unwrap();
    scans[1].1 = StoredScan::load(&on_a_card).unwrap();
    let said = StoredScan::sum(scans.clone(), false).unwrap_err().to_string();
    assert!(
        said.contains("1: ") && said.contains("ran on cpu and on NVIDIA H200") && said.contains("--mixed"),
        "{said}"
    );
    let sum = StoredScan::sum(scans, true).unwrap();
    assert!(sum.missing().is_empty());
    // Nobody goes on with half of a scan on another kind of device.
    let said = scanned(NEVER, &ScanRequest { shard: Shard { index: 1, of: 3 }, ..request() }, &on_a_card);
    let said = said.unwrap_err().to_string();
    assert!(said.contains("passes on another device (NVIDIA H200)"), "{said}");
}
