//! What ranks bring together: bytes of any length and content, and the passes over text that they share, which are those of shards in files, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use experiments::passes::{self, Dealt, Left};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::Result;
use tinyonn::imaging::{Form, Partition, Shard, StoredScan};
use tinyonn::metrics::Stopwatch;
use tinyonn::ops::GradSite;
use tinyonn::phases::{
    DeviceName, ImageConfig, Imaging, LabelUnit, MergeConfig, Passed, Prepared, RowPass, Run, RunConfig, TextConfig,
    merge_scans,
};
use tinyonn::ranks::gather;
use tinyonn::train::{Precision, RouterFitConfig};

use super::training::{Rank, on_ranks};
use crate::passes::{added_up, made, refit_shards, scan_shard, scanned};
use crate::phase2::setting;

/// Every pattern of a word's upper half, those that are no numbers among them, and an end within a word.
fn bits(rank: usize) -> Vec<u8> {
    (0..=u16::MAX).flat_map(|half| ((u32::from(half) << 16) | (rank as u32 + 1)).to_le_bytes()).chain([7; 3]).collect()
}

/// Longer than a piece, which is 16 MiB.
fn long(_: usize) -> Vec<u8> {
    (0..=17usize << 20).map(|at| ((at * at) >> 7) as u8).collect()
}

#[rstest]
#[case::none(|_| Vec::new(), 2)]
#[case::of_some(|rank| vec![rank as u8; 5 * (rank % 2)], 3)]
#[case::of_other_lengths(|rank| (0..=rank as u8).collect(), 5)]
#[case::bits(bits, 2)]
#[case::pieces(long, 2)]
#[case::pieces_of_one(|rank| if rank == 1 { long(1) } else { vec![1] }, 3)]
fn bytes_come_to_rank_0(#[case] own: impl Fn(usize) -> Vec<u8> + Sync, #[case] ranks: usize) {
    let found = on_ranks(ranks, |rank, all| gather(all.unwrap().as_ref(), &own(rank), &Device::Cpu).unwrap());
    let expected: Vec<Vec<u8>> = (0..ranks).map(own).collect();
    assert!(found[0].as_ref() == Some(&expected));
    assert!(found[1..].iter().all(Option::is_none));
}

fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// Partitions that are known before the scan, and one that is made of its sums; more ranks than batches, too.
#[rstest]
#[case(2, None)]
#[case(3, None)]
#[case(2, Some(Partition::Sps))]
#[case(15, None)]
fn ranks_image_what_shards_add_up_to(#[case] of: usize, #[case] partition: Option<Partition>) {
    let dir = TempDir::new().unwrap();
    let RunConfig { model, variant, data, seed, .. } = setting(dir.path(), DType::F32);
    let (model, device, dtype) = (model.unwrap(), DeviceName::Cpu, Precision::F32);
    let config = ImageConfig { model, variant: variant.clone(), partition, seed, device, dtype };
    let text = |out: String, shard: Shard| {
        let out = dir.path().join(out);
        fs::create_dir(&out).unwrap();
        let (grad_site, form, scan_file) = (GradSite::Weight, Form::default(), None);
        TextConfig { data: data.clone(), length: 16, batch: 4, tokens: 400, shard, grad_site, form, scan_file, out }
    };
    let shard = |index: usize| {
        let text = text(format!("shard-{index}"), Shard { index, of });
        Imaging::begin(&config, &text).unwrap().scan(text.shard).unwrap();
        text.out.join("scan.safetensors")
    };
    let files = (0..of).map(shard).collect();
    let among = |rank: usize, all: Rank| {
        let (all, text) = (all.unwrap(), text(format!("rank-{rank}"), Shard::WHOLE));
        let imaging = Imaging::begin(&config, &text).unwrap();
        assert!(imaging.alike().unwrap()["text"].is_string());
        let made = imaging.scan(Shard::of_rank(all.as_ref())).unwrap();
        made.over_ranks(all.as_ref(), imaging.device()).unwrap().map(|sum| imaging.image(sum).unwrap())
    };
    let mut images = on_ranks(of, among);
    let first = images.remove(0).unwrap();
    assert!(images.iter().all(Option::is_none) && first.stored.missing().is_empty());
    assert_eq!(first.stored.scan.tokens, [400, 400]);
    let at = |name: &str| dir.path().join("rank-0").join(name);
    // With more ranks than batches some have nothing to read.
    assert_eq!(first.stored.parts.iter().any(|part| part.batches == 0), of == 15);
    let out = text("merged".into(), Shard::WHOLE).out;
    let merged = MergeConfig { files, variant, partition, seed, form: Form::default(), mixed: false, out: out.clone() };
    merge_scans(&merged).unwrap();
    for name in ["scan.safetensors", "integral.safetensors"] {
        assert!(bytes(out.join(name)) == bytes(at(name)), "{name}");
    }
}

/// As the program makes a pass on each rank, in folders of their own.
fn among(
    dir: &Path,
    config: &RunConfig,
    (of, passed): (usize, Passed<'_>),
    make: impl Fn(&Run<'_>, Dealt<'_>, &Path) -> Result<Option<Left>> + Sync,
) -> Vec<PathBuf> {
    let left = on_ranks(of, |rank, all| {
        let all = all.unwrap();
        let out = dir.join(format!("{rank}-of-{of}"));
        let config = RunConfig { out: out.clone(), ..config.clone() };
        let prepared = Prepared::new(&config, &mut Stopwatch::new(), None).unwrap();
        let run = Run { passed, ..prepared.run(&config) };
        let alike = run.alike().unwrap();
        (make(&run, Dealt::Ranks(all.as_ref()), &out).unwrap().is_some(), alike)
    });
    assert!(left.iter().enumerate().all(|(rank, (is_left, alike))| *is_left == (rank == 0) && *alike == left[0].1));
    let mut files: Vec<_> =
        fs::read_dir(dir.join(format!("0-of-{of}"))).unwrap().map(|at| at.unwrap().path()).collect();
    files.sort();
    files
}

fn prepared(change: impl FnOnce(&mut RunConfig)) -> (TempDir, RunConfig) {
    let dir = TempDir::new().unwrap();
    let mut config = setting(dir.path(), DType::F32);
    change(&mut config);
    (dir, config)
}

#[rstest]
fn ranks_scan_what_shards_add_up_to(#[values(2, 3)] of: usize) {
    let (dir, config) = prepared(|_| ());
    let shard = |index: usize| {
        let path = dir.path().join(format!("shard-{index}"));
        (path.clone(), scan_shard(&config, Shard { index, of }, &path).unwrap())
    };
    let whole = dir.path().join("whole");
    StoredScan::sum((0..of).map(shard).collect(), false).unwrap().save(&whole).unwrap();
    // What a rank scans itself is kept where it was told to.
    let kept = |dir: &Path| dir.with_extension("kept");
    let scan = |run: &Run<'_>, dealt: Dealt<'_>, dir: &Path| passes::scan(run, dealt, dir, Some(&kept(dir)));
    let files = among(dir.path(), &config, (of, Passed::default()), scan);
    assert!(files.len() == 1 && bytes(&files[0]) == bytes(&whole));
    for index in 0..of {
        let kept = kept(&dir.path().join(format!("{index}-of-{of}")));
        assert!(bytes(kept) == bytes(dir.path().join(format!("shard-{index}"))), "rank {index}");
    }
}

#[rstest]
fn ranks_see_what_shards_add_up_to(
    #[values(2, 3)] of: usize,
    #[values(RowPass::Inputs, RowPass::Labels)] pass: RowPass,
) {
    let (dir, config) = prepared(|config| config.label = LabelUnit::Token);
    let scan = dir.path().join("scan");
    scan_shard(&config, Shard::WHOLE, &scan).unwrap();
    let passed = if pass == RowPass::Labels { scanned(&scan) } else { Passed::default() };
    let whole = made(dir.path(), &config, (pass, of), passed);
    let files = among(dir.path(), &config, (of, passed), |run, dealt, dir| passes::rows(run, dealt, dir, pass));
    assert!(files.len() == 1 && bytes(&files[0]) == bytes(&whole));
}

/// One set of labels after another.
#[test]
fn ranks_refit_what_shards_add_up_to() {
    let (dir, config) = prepared(|config| config.router = RouterFitConfig { refit_rounds: 1, ..config.router });
    let scan = dir.path().join("scan");
    scan_shard(&config, Shard::WHOLE, &scan).unwrap();
    let rows = [made(dir.path(), &config, (RowPass::Inputs, 1), Passed::default())];
    let passed = Passed { scan: Some(&scan), rows: &rows };
    let named = |files: Vec<PathBuf>| -> BTreeMap<String, Vec<u8>> {
        let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        files.iter().map(|path| (name(path), bytes(path))).collect()
    };
    let whole = named(added_up(dir.path(), 2, |shard, save| {
        let save = |made| {
            save(made);
            Ok(())
        };
        refit_shards(&config, shard, passed, save).unwrap();
    }));
    let found = named(among(dir.path(), &config, (2, passed), passes::refit));
    assert!(found.len() == 7 && found == whole, "{:?}", found.keys());
}
