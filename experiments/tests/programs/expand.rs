//! `exp_expand`: what it prints and writes, and what it refuses.

use std::fs;

use rstest::rstest;
use serde_json::Value;

use super::{Place, UPCYCLE, VERIFY, assert_done, assert_refused};

const EXPAND: &str = env!("CARGO_BIN_EXE_exp_expand");

/// A place with a checkpoint of `variant`, `young`.
fn place(variant: &str) -> Place {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, &format!("--model dense --variant {variant} --out young")));
    place
}

#[rstest]
#[case::slices("TinyOnn", "TinyOnnDoubled --new-neurons 2", "100 → 200", "120 → 320", "bit-equal")]
#[case::slices_by_load(
    "TinyOnn",
    "TinyOnnDoubled --new-neurons 1 --data a=a.txt",
    "100 → 200",
    "120 → 220",
    "× the mean"
)]
#[case::replicas("Smear", "SmearDoubled", "8 → 16", "120 → 120", "share the delta")]
fn a_checkpoint_grows_and_computes_the_same(
    #[case] from: &str,
    #[case] to: &str,
    #[case] experts: &str,
    #[case] neurons: &str,
    #[case] says: &str,
) {
    let place = place(from);
    let done = place.run(EXPAND, &format!("--model young --variant {to} --out grown"));
    assert_done(&done);
    let said = String::from_utf8(done.stdout).unwrap();
    for words in [experts, neurons, says, "all active  ", "tokens' logits bit-equal"] {
        assert!(said.contains(words), "{said}");
    }
    let config: Value = serde_json::from_slice(&fs::read(place.path("grown/config.json")).unwrap()).unwrap();
    assert_eq!(config["tinyonn"]["variant"].as_str(), to.split(' ').next());
    assert!(place.path("grown/tokenizer.json").exists());
    assert_done(&place.run(VERIFY, "young grown --active all"));
}

#[rstest]
#[case::no_variant("", &["`--variant`"])]
#[case::unknown("--variant Nobody", &["`Nobody`", "there is none of that name"])]
#[case::another_hierarchy("--variant Depth3", &["`Depth3`", "is not that of `TinyOnn`, grown"])]
#[case::too_narrow("--variant TinyOnnDoubled", &["`TinyOnnDoubled`", "120 neurons for 200 experts"])]
fn what_cannot_grow_is_one_line_and_leaves_nothing(#[case] arguments: &str, #[case] words: &[&str]) {
    let place = place("TinyOnn");
    let before = place.files();
    assert_refused(&place.run(EXPAND, &format!("--model young --out grown {arguments}")), words);
    assert_eq!(place.files(), before);
}

#[test]
fn a_dense_model_and_a_folder_that_is_used_are_refused() {
    let place = place("TinyOnn");
    let grow = "--variant TinyOnnDoubled --new-neurons 1";
    assert_refused(
        &place.run(EXPAND, &format!("--model dense --out grown {grow}")),
        &["is not of a Tiny-ONN checkpoint"],
    );
    assert_refused(&place.run(EXPAND, &format!("--model young --out dense {grow}")), &["exists and is not empty"]);
    assert_done(&place.run(EXPAND, &format!("--model young --out grown {grow}")));
    assert_done(&place.run(EXPAND, &format!("--model young --out grown --overwrite {grow}")));
}
