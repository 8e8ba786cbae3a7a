//! Scans of tokens on disk: to the bit those of tokens in memory, whole, in shards and where they go on.

use std::fs;

use candle_core::Device;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{Batches, Corpus, Counted, TextTokenizer, TokenFile, TokenSet, arithmetic, sorting};
use tinyonn::imaging::{Log1p, ScanOptions, ScanRequest, Shard, scan_batches, scan_with};

use super::files::{NEVER, failing, file};
use super::shards::units;
use crate::tiny::TEXT_VOCAB;

const MOST: usize = 500;

/// The same text in memory, whole, and on disk, what is read of it.
fn both() -> (TokenSet, TokenFile, TempDir) {
    let corpus = Corpus { tasks: vec![arithmetic(0, 9_000), sorting(0, 300)] };
    let tokenizer = TextTokenizer::train(&corpus, TEXT_VOCAB).unwrap();
    let folder = TempDir::new().unwrap();
    let on_disk = TokenFile::write(&Counted::new(&corpus).unwrap(), &tokenizer, MOST + 1, folder.path()).unwrap();
    (TokenSet::encode(&corpus, &tokenizer).unwrap(), on_disk, folder)
}

fn request(shard: Shard, log1p: Log1p) -> ScanRequest {
    let options = ScanOptions { length: 16, batch: 3, tokens_per_task: MOST };
    ScanRequest { shard, log1p, units: Some(units(4)), ..ScanRequest::new(options) }
}

#[rstest]
fn the_bits_are_those_of_tokens_in_memory(
    #[values(Shard::WHOLE, Shard { index: 1, of: 3 })] shard: Shard,
    #[values(Log1p::Off, Log1p::Measured)] log1p: Log1p,
) {
    let (in_memory, on_disk, dir) = both();
    assert_eq!(on_disk.targets()[0], MOST);
    let request = request(shard, log1p);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let model = failing(NEVER, TEXT_VOCAB);
    let expected = scan_with(&model, &in_memory, &request, &Device::Cpu, Some(&file(&a))).unwrap();
    assert_eq!(scan_batches(&model, &on_disk, &request, &Device::Cpu, Some(&file(&b))).unwrap(), expected);
    assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap());
}

#[rstest]
fn a_scan_goes_on_wherever_its_tokens_are(#[values(Shard::WHOLE, Shard { index: 0, of: 2 })] shard: Shard) {
    let (in_memory, on_disk, dir) = both();
    let request = request(shard, Log1p::Off);
    let [cut, whole] = ["cut", "whole"].map(|name| dir.path().join(name));
    let scanned = |batches: usize, text: &dyn Batches, path| {
        scan_batches(&failing(batches, TEXT_VOCAB), text, &request, &Device::Cpu, Some(&file(path)))
    };
    assert!(scanned(2, &on_disk, &cut).is_err());
    assert!(scan_with(&failing(1, TEXT_VOCAB), &in_memory, &request, &Device::Cpu, Some(&file(&cut))).is_err());
    let expected = scan_with(&failing(NEVER, TEXT_VOCAB), &in_memory, &request, &Device::Cpu, Some(&file(&whole)));
    assert_eq!(scanned(NEVER, &on_disk, &cut).unwrap(), expected.unwrap());
    assert!(fs::read(&cut).unwrap() == fs::read(&whole).unwrap());
}

#[test]
fn more_than_is_to_be_read_is_refused() {
    let (in_memory, _, _) = both();
    let refused =
        scan_batches(&failing(0, TEXT_VOCAB), &in_memory, &request(Shard::WHOLE, Log1p::Off), &Device::Cpu, None);
    assert!(refused.unwrap_err().to_string().contains("and 500 are to be read"));
}
