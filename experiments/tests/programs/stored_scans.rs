//! Scans that are kept, shared out and merged.

use std::fs;
use std::time::Duration;

use candle_core::{DType, Device};
use rstest::rstest;
use serde_json::{Value, json};
use tinyonn::checkpoint::ModelFolder;
use tinyonn::data::{DataSource, TextTokenizer, TokenSet, read_sources};
use tinyonn::decoder::CausalLm;
use tinyonn::imaging::{
    Integral, Log1p, Partition, PartitionSources, ScanFile, ScanOptions, ScanRequest, Score, Shard, StoredScan, Units,
    partition, scan_with,
};
use tinyonn::moe::variant;

use super::{Place, SCAN, assert_done, assert_refused, printed};

const TEXT: &str = "--model dense --data a=a.txt --data b=b.txt --length 16 --batch 4 --max-tokens 400";

#[test]
fn every_run_has_its_scan_and_a_kept_one_is_not_repeated() {
    let place = Place::new();
    let first = printed(&place.run(SCAN, &format!("{TEXT} --scan-file kept.safetensors --out one")));
    let [kept, run] = ["kept.safetensors", "one/scan.safetensors"].map(|name| fs::read(place.path(name)).unwrap());
    assert!(kept == run);
    let stored = StoredScan::load(place.path("kept.safetensors")).unwrap();
    assert_eq!((&stored.scan.tasks[..], &stored.scan.tokens[..]), (&["a".into(), "b".into()][..], &[400, 400][..]));
    assert_eq!(stored.scan.experts.as_ref().unwrap().units.count, 100);
    let again = printed(
        &place.run(SCAN, &format!("{TEXT} --scan-file kept.safetensors --norm global --expert norm --out two")),
    );
    assert_eq!(first.replace("one", "two"), again);
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("one/scan.safetensors") == read("two/scan.safetensors"));
    assert!(read("one/integral.safetensors") != read("two/integral.safetensors"));
    // A run without a file has the same.
    assert_done(&place.run(SCAN, &format!("{TEXT} --out three")));
    assert!(read("three/scan.safetensors") == kept);
    // Another scan does not go there.
    let before = place.files();
    for (other, word) in [
        ("--shard 0/2", "another shard (0/1)"),
        ("--grad-site output", "another grad_site"),
        ("--norm log1p", "other log1p values"),
        ("--partition random", "another partition"),
    ] {
        let output = place.run(SCAN, &format!("{TEXT} --scan-file kept.safetensors --out four {other}"));
        assert_refused(&output, &["kept.safetensors: holds a scan of", word, "name another file"]);
    }
    place.configure("rms_norm_eps", 1e-5.into());
    assert_refused(&place.run(SCAN, &format!("{TEXT} --scan-file kept.safetensors --out four")), &["another model"]);
    assert!(read("kept.safetensors") == kept && place.files() == before);
}

/// A folder and JSON lines, which are read as they are scanned, beside the same text held in memory.
#[rstest]
#[case("", Shard::WHOLE, 700)]
#[case("--norm log1p", Shard::WHOLE, 10_000_000)]
#[case("--shard 1/3", Shard { index: 1, of: 3 }, 700)]
fn what_is_read_from_disk_is_scanned_as_if_it_were_in_memory(
    #[case] flags: &str,
    #[case] shard: Shard,
    #[case] most: usize,
) {
    let place = Place::new();
    let text = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    fs::create_dir_all(place.path("folder/deep")).unwrap();
    fs::write(place.path("folder/deep/one.txt"), text("a.txt")).unwrap();
    fs::write(place.path("folder/two.txt"), &text("b.txt")[..500]).unwrap();
    fs::write(place.path("folder/three.bin"), b"\xff\0").unwrap();
    let lines: Vec<String> = text("b.txt").lines().take(90).map(|line| json!({ "text": line }).to_string()).collect();
    fs::write(place.path("lines.jsonl"), lines.join("\n")).unwrap();
    assert_done(&place.run(
        SCAN,
        &format!("--model dense --data a=folder --data b=lines.jsonl --length 16 --batch 4 --max-tokens {most} {flags} --out out"),
    ));
    // Nothing else is left there.
    let left = place.files().into_iter().filter(|path| path.file_name().is_some_and(|name| name == ".tokens"));
    assert_eq!(left.count(), 0);

    let sources = [("a", "folder"), ("b", "lines.jsonl")];
    let corpus = read_sources(&sources.map(|(name, path)| DataSource { name: name.into(), path: place.path(path) }));
    let corpus = corpus.unwrap();
    let folder = ModelFolder::open(place.path("dense")).unwrap();
    let tokenizer = TextTokenizer::load(place.path("dense/tokenizer.json"), None).unwrap();
    let spec = &variant("TinyOnn").unwrap().spec;
    let neuron_expert =
        partition::assign(Partition::Contiguous, spec, (2, 120), PartitionSources::default(), 0).unwrap();
    let request = ScanRequest {
        shard,
        units: Some(Units { neuron_expert, count: spec.experts() }),
        log1p: if flags.contains("log1p") { Log1p::Measured } else { Log1p::Off },
        ..ScanRequest::new(ScanOptions { length: 16, batch: 4, tokens_per_task: most })
    };
    let (path, corpus_sha256, model) = (place.path("expected"), corpus.sha256(), folder.sha256().unwrap());
    let file = ScanFile { path: &path, corpus: &corpus_sha256, model: &model, every: Duration::from_mins(1) };
    let store = folder.load(&Device::Cpu, Some(DType::F32)).unwrap();
    let dense = CausalLm::dense(&folder.arch().unwrap(), &store.builder(DType::F32, |_| false));
    let set = TokenSet::encode(&corpus, &tokenizer).unwrap();
    scan_with(&dense.unwrap(), &set, &request, &Device::Cpu, Some(&file)).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(place.path("out/scan.safetensors")).unwrap());
}

#[rstest]
#[case("")]
#[case("--norm log1p --expert norm --grad-site input")]
fn shards_are_merged_without_the_model(#[case] measures: &str) {
    let place = Place::new();
    assert_done(&place.run(SCAN, &format!("{TEXT} {measures} --out whole")));
    for shard in 0..3 {
        assert_done(&place.run(SCAN, &format!("{TEXT} {measures} --shard {shard}/3 --out shard-{shard}")));
    }
    let form = measures.replace("--grad-site input", "");
    fs::rename(place.path("dense"), place.path("elsewhere")).unwrap();
    let some = printed(
        &place
            .run(SCAN, &format!("--merge shard-0/scan.safetensors --merge shard-2/scan.safetensors {form} --out some")),
    );
    assert!(some.contains("missing   shards 1/3"), "{some}");
    let all =
        printed(&place.run(SCAN, &format!("--merge some/scan.safetensors shard-1/scan.safetensors {form} --out all")));
    assert!(!all.contains("missing"), "{all}");
    let [whole, merged] =
        ["whole", "all"].map(|run| StoredScan::load(place.path(run).join("scan.safetensors")).unwrap());
    assert_eq!(merged.scan.tokens, whole.scan.tokens);
    assert_eq!(merged.parts.iter().map(|part| part.shard.index).collect::<Vec<_>>(), [0, 2, 1]);
    let integrals = [&whole, &merged].map(|stored| Integral::new(&stored.scan, Score::Sps));
    for (a, b) in integrals[0].neurons.iter().flatten().flatten().zip(integrals[1].neurons.iter().flatten().flatten()) {
        // Sums equal to 1e-12, standardised: E[x²] − m² costs some digits.
        assert!((a - b).abs() < 1e-8, "{a} {b}");
    }
    let config: Value = serde_json::from_slice(&fs::read(place.path("all/config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["files"][1], "shard-1/scan.safetensors");
    for name in ["report.html", "integral.safetensors"] {
        assert!(place.path("all").join(name).exists());
    }
    assert_eq!(Shard { index: 1, of: 3 }.to_string().parse::<Shard>().unwrap(), Shard { index: 1, of: 3 });
}

#[rstest]
#[case::the_earlier_name("--share 0/2", &["`--share`", "--shard 0/2"])]
#[case::shard("--shard 2/2", &["`shard`", "2/2", "I/N"])]
#[case::no_shard("--shard half", &["`shard`", "`half`", "I/N"])]
#[case::norm("--norm batch", &["`--norm`", "`batch`", "`layer`, `global`, `log1p`"])]
#[case::site("--grad-site hidden", &["`--grad-site`", "`hidden`", "`weight`, `input`, `output`"])]
#[case::expert("--expert sum", &["`--expert`", "`sum`", "`mean`", "`norm`"])]
#[case::norms_of_unknown_experts("--expert norm --partition sps", &["`expert`", "`sps`", "partition known"])]
#[case::no_scan("--scan-file a.txt", &["a.txt", "header", "copy"])]
#[case::no_place("--scan-file none/scan.safetensors", &["none", "there is no such folder"])]
fn a_scan_that_cannot_be(#[case] flags: &str, #[case] words: &[&str]) {
    let place = Place::new();
    let before = place.files();
    assert_refused(&place.run(SCAN, &format!("{TEXT} {flags} --out out")), words);
    assert_eq!(place.files(), before);
}

#[rstest]
#[case::nothing_there("--merge none.safetensors", &["none.safetensors", "check the path"])]
#[case::no_scan("--merge dense/model.safetensors", &["dense/model.safetensors", "holds no scan"])]
#[case::twice("--merge one/scan.safetensors one/scan.safetensors", &["one/scan.safetensors", "same text"])]
#[case::another_model("--merge one/scan.safetensors --merge other/scan.safetensors", &["other/scan.safetensors", "different models"])]
#[case::another_variant("--merge one/scan.safetensors --variant Mixtral", &["variant `Mixtral`", "the scans are of 100", "--variant"])]
#[case::not_summed("--merge one/scan.safetensors --norm log1p", &["`norm`", "scan with norm = log1p"])]
#[case::with_a_model("--merge one/scan.safetensors --model dense", &["`--merge`", "--model"])]
#[case::with_a_site("--merge one/scan.safetensors --grad-site input", &["`--merge`", "--grad-site"])]
#[case::partition("--merge one/scan.safetensors --partition random", &["`partition`", "leave it out"])]
#[case::over_its_input("--merge one/scan.safetensors --out one --overwrite", &["one", "is read"])]
#[case::a_dump_of_a_shard("--model dense --tokens ids.json --dump image --shard 0/2", &["`--dump`", "--shard"])]
fn scans_that_do_not_merge(#[case] flags: &str, #[case] words: &[&str]) {
    let place = Place::new();
    assert_done(&place.run(SCAN, &format!("{TEXT} --out one")));
    place.change("model.norm.weight", |norm| Some((norm * 2.0).unwrap()));
    assert_done(&place.run(SCAN, &format!("{TEXT} --out other")));
    let before = place.files();
    let out = if flags.contains("--out") || flags.contains("--dump") { "" } else { "--out out" };
    assert_refused(&place.run(SCAN, &format!("{flags} {out}")), words);
    assert_eq!(place.files(), before);
}
