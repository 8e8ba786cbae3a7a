//! Scans that are kept, shared out and merged.

use std::fs;

use rstest::rstest;
use serde_json::Value;
use tinyonn::imaging::{Integral, Score, Share, StoredScan};

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
        ("--share 0/2", "another share (0/1)"),
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

#[rstest]
#[case("")]
#[case("--norm log1p --expert norm --grad-site input")]
fn shares_are_merged_without_the_model(#[case] measures: &str) {
    let place = Place::new();
    assert_done(&place.run(SCAN, &format!("{TEXT} {measures} --out whole")));
    for share in 0..3 {
        assert_done(&place.run(SCAN, &format!("{TEXT} {measures} --share {share}/3 --out share-{share}")));
    }
    let form = measures.replace("--grad-site input", "");
    fs::rename(place.path("dense"), place.path("elsewhere")).unwrap();
    let some = printed(
        &place
            .run(SCAN, &format!("--merge share-0/scan.safetensors --merge share-2/scan.safetensors {form} --out some")),
    );
    assert!(some.contains("missing   shares 1/3"), "{some}");
    let all =
        printed(&place.run(SCAN, &format!("--merge some/scan.safetensors share-1/scan.safetensors {form} --out all")));
    assert!(!all.contains("missing"), "{all}");
    let [whole, merged] =
        ["whole", "all"].map(|run| StoredScan::load(place.path(run).join("scan.safetensors")).unwrap());
    assert_eq!(merged.scan.tokens, whole.scan.tokens);
    assert_eq!(merged.parts.iter().map(|part| part.share.index).collect::<Vec<_>>(), [0, 2, 1]);
    let integrals = [&whole, &merged].map(|stored| Integral::new(&stored.scan, Score::Sps));
    for (a, b) in integrals[0].neurons.iter().flatten().flatten().zip(integrals[1].neurons.iter().flatten().flatten()) {
        // Sums equal to 1e-12, standardised: E[x²] − m² costs some digits.
        assert!((a - b).abs() < 1e-8, "{a} {b}");
    }
    let config: Value = serde_json::from_slice(&fs::read(place.path("all/config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["files"][1], "share-1/scan.safetensors");
    for name in ["report.html", "integral.safetensors"] {
        assert!(place.path("all").join(name).exists());
    }
    assert_eq!(Share { index: 1, of: 3 }.to_string().parse::<Share>().unwrap(), Share { index: 1, of: 3 });
}

#[rstest]
#[case::share("--share 2/2", &["`share`", "2/2", "I/N"])]
#[case::no_share("--share half", &["`share`", "`half`", "I/N"])]
#[case::norm("--norm batch", &["`--norm`", "`batch`", "`layer`, `global`, `log1p`"])]
#[case::site("--grad-site hidden", &["`--grad-site`", "`hidden`", "`weight`, `input`, `output`"])]
#[case::expert("--expert sum", &["`--expert`", "`sum`", "`mean`", "`norm`"])]
#[case::norms_of_unknown_experts("--expert norm --partition sps", &["`expert`", "`sps`", "partition known"])]
#[case::no_scan("--scan-file a.txt", &["a.txt", "header", "copy"])]
#[case::no_place("--scan-file none/scan.safetensors", &["none", "is not a folder"])]
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
#[case::a_dump_of_a_share("--model dense --tokens ids.json --dump image --share 0/2", &["`--dump`", "--share"])]
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
