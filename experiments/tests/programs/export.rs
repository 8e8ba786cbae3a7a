//! `exp_export`: what it writes, says and refuses.

use std::fs;

use rstest::rstest;
use serde_json::Value;

use super::{EXPORT, Place, UPCYCLE, VERIFY, assert_done, assert_failed, assert_refused, printed};

/// A place with `sparse`, a Mixtral made of the dense model; with `routed` in its configuration, if asked.
fn place(routed: bool) -> Place {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant Mixtral --partition random --out sparse"));
    if routed {
        let path = place.path("sparse/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["tinyonn"]["active"] = "routed".into();
        fs::write(path, config.to_string()).unwrap();
    }
    place
}

#[rstest]
#[case::dense("dense", &["left out    the routers (linear)", "bit-equal", "512 tokens of this project's README"], false)]
#[case::moe("qwen3-moe", &["loss        ", "100.00 % of tokens the same"], false)]
#[case::for_transformers("tinyonn", &["bit-equal", "trust_remote_code=True"], true)]
fn each_format_is_written_and_measured(#[case] format: &str, #[case] words: &[&str], #[case] has_code: bool) {
    let place = place(false);
    let said = printed(&place.run(EXPORT, &format!("--model sparse --format {format} --out out")));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("| KL from the checkpoint |"), "{card}");
    assert_eq!(place.path("out/modeling_tinyonn.py").exists(), has_code);
    assert!(place.path("out/tokenizer.json").exists());
    if format != "qwen3-moe" {
        assert_done(&place.run(VERIFY, "dense out --tolerance 0"));
    }
    // Over what was there, and not without a word.
    assert_refused(&place.run(EXPORT, &format!("--model sparse --format {format} --out out")), &["out", "--overwrite"]);
    assert_done(&place.run(EXPORT, &format!("--model sparse --format {format} --out out --overwrite --no-verify")));
    assert!(fs::read_to_string(place.path("out/README.md")).unwrap().contains("not measured"));
}

/// What loses more than was allowed is not written, unless it is asked for all the same.
#[test]
fn what_loses_too_much_is_refused_with_figures() {
    let place = place(true);
    fs::write(place.path("some.txt"), "1 + 2 = 3\n".repeat(40)).unwrap();
    let dense = "--model sparse --format dense --out out --text some.txt --tokens 64 --max-loss 1e-12";
    let words = ["`--max-loss`", "as dense without the routers (linear)", "nats a token", "--force", "--active all"];
    let before = place.files();
    assert_refused(&place.run(EXPORT, dense), &words);
    assert_eq!(place.files(), before);
    let moe = dense.replace("dense --out", "qwen3-moe --out");
    assert_done(&place.run(EXPORT, &format!("{dense} --active all")));
    assert_done(&place.run(EXPORT, &format!("{dense} --force --overwrite")));
    let said = printed(&place.run(EXPORT, &format!("{moe} --force --overwrite")));
    assert!(said.contains("experiments") || said.contains("experts     "), "{said}");
}

#[rstest]
#[case::no_format("--model sparse --out out", &["`--format`", "needed"])]
#[case::dense("--model dense --format tinyonn --out out", &["config.json", "Tiny-ONN"])]
#[case::no_distance("--model sparse --format dense --out out --max-loss -1", &["`--max-loss`", "-1"])]
#[case::no_tokens("--model sparse --format dense --out out --tokens 0", &["`--tokens`", "1 or more"])]
#[case::no_text("--model sparse --format dense --out out --text gone.txt", &["gone.txt"])]
#[case::into_its_input("--model sparse --format dense --out sparse --overwrite", &["sparse", "is read"])]
fn what_cannot_be_done_is_refused(#[case] arguments: &str, #[case] words: &[&str]) {
    let place = place(false);
    let before = place.files();
    assert_failed(&place.run(EXPORT, arguments), words);
    assert_eq!(place.files(), before);
}

/// The way back was once a flag of another program.
#[test]
fn the_earlier_flag_names_the_program() {
    let place = place(false);
    let words = ["`--to-dense`", "exp_export --format dense"];
    assert_refused(&place.run(UPCYCLE, "--model sparse --to-dense --out back"), &words);
}
