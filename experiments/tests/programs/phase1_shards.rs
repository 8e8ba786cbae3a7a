//! The passes of phase 1 in shards, each by a process of its own.

use std::fs;

use rstest::rstest;
use serde_json::Value;

use super::{Place, RUN, assert_done, printed};

const PHASE1: &str = env!("CARGO_BIN_EXE_exp_phase1");
const TEXT: &str = "--model dense --data a=a.txt --data b=b.txt --config run.toml";

fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("run.toml"), format!("study_tokens = 60\n{RUN}")).unwrap();
    place
}

/// Two processes at once, each a shard; then the sum, and the rest of phase 1 from it.
#[test]
fn shards_of_two_processes_are_gone_on_from() {
    let place = place();
    let scan = |shard: usize| {
        let flags = format!("--pass scan --shard {shard}/2 --scan-file kept-{shard} --out part-{shard}");
        place.command(PHASE1, &format!("{TEXT} {flags}")).spawn().unwrap()
    };
    for mut process in [scan(0), scan(1)] {
        assert!(process.wait().unwrap().success());
    }
    let file = |shard: usize| format!("part-{shard}/scan.safetensors");
    assert_eq!(fs::read(place.path(&file(0))).unwrap(), fs::read(place.path("kept-0")).unwrap());
    let merged = printed(&place.run(PHASE1, &format!("--merge {} {} --out whole", file(0), file(1))));
    assert!(merged.contains("next      exp_phase1 --pass inputs --shard 0/2\n"), "{merged}");
    assert!(merged.contains("or        exp_phase1 --passed whole/scan.safetensors"), "{merged}");
    assert_done(&place.run(PHASE1, &format!("--merge {} --merge {} --out again", file(1), file(0))));
    let [whole, again] = ["whole", "again"].map(|run| fs::read(place.path(run).join("scan.safetensors")).unwrap());
    assert!(whole == again, "the order of the files shows");
    assert_done(&place.run(PHASE1, &format!("{TEXT} --passed whole/scan.safetensors --out later")));
    assert_done(&place.run(PHASE1, &format!("{TEXT} --out at-once")));
    let routed = |run: &str| {
        let summary: Value = serde_json::from_slice(&fs::read(place.path(run).join("summary.json")).unwrap()).unwrap();
        summary["loss"]["routed_before"].as_f64().unwrap()
    };
    // The image is that of one process but for the order of f64 sums, by which experts that are nearly equal may be chosen otherwise.
    let [later, at_once] = ["later", "at-once"].map(routed);
    assert!((later - at_once).abs() < 1e-2 * at_once, "{later} and {at_once}");
}

/// What routers see, by two processes; then the sum, and the rest of phase 1 from it and from the scan.
#[test]
fn inputs_of_two_processes_are_gone_on_from() {
    let place = place();
    let see = |shard: usize| {
        place.command(PHASE1, &format!("{TEXT} --pass inputs --shard {shard}/2 --out part-{shard}")).spawn().unwrap()
    };
    for mut process in [see(0), see(1)] {
        assert!(process.wait().unwrap().success());
    }
    let merged = printed(&place.run(PHASE1, "--merge part-1/inputs.safetensors part-0/inputs.safetensors --out whole"));
    assert!(
        merged.contains("next      exp_phase1 --pass losses --shard 0/2 --passed whole/inputs.safetensors"),
        "{merged}"
    );
    assert!(merged.contains("or        exp_phase1 --passed whole/inputs.safetensors"), "{merged}");
    assert_done(&place.run(PHASE1, &format!("{TEXT} --pass scan --out scan")));
    let files = "scan/scan.safetensors whole/inputs.safetensors";
    assert_done(&place.run(PHASE1, &format!("{TEXT} --out later --passed {files}")));
    assert_done(&place.run(PHASE1, &format!("{TEXT} --out at-once")));
    let [later, at_once] = ["later", "at-once"].map(|run| {
        let summary = fs::read(place.path(run).join("summary.json")).unwrap();
        serde_json::from_slice::<Value>(&summary).unwrap()["loss"].clone()
    });
    assert_eq!(later, at_once);

    let refused = |flags: &str, words: &str| {
        let output = place.run(PHASE1, &format!("{flags} --out refused"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{said}");
    };
    refused("--merge part-0/inputs.safetensors scan/scan.safetensors", "add up the shards of one pass at a time");
    let two = "whole/inputs.safetensors part-0/inputs.safetensors";
    refused(&format!("{TEXT} --passed {two}"), "both hold inputs");
    refused(&format!("{TEXT} --scanned scan/scan.safetensors"), "give --passed scan/scan.safetensors");
}

/// A round of refitting and then losses, by two processes, each from the sums of the passes before; then the sum, and the rest of phase 1.
#[test]
fn rounds_of_two_processes_are_gone_on_from() {
    let place = place();
    let run = RUN.replace("[router]\n", "[router]\nrefit_rounds = 1\n");
    fs::write(place.path("run.toml"), format!("study_tokens = 60\n{run}")).unwrap();
    assert_done(&place.run(PHASE1, &format!("{TEXT} --pass scan --out scan")));
    assert_done(&place.run(PHASE1, &format!("{TEXT} --pass inputs --out seen")));
    let seen = printed(&place.run(PHASE1, "--merge seen/inputs.safetensors --out inputs"));
    assert!(
        seen.contains("next      exp_phase1 --pass refit --shard 0/1 --passed inputs/inputs.safetensors"),
        "{seen}"
    );
    let before = "--passed scan/scan.safetensors inputs/inputs.safetensors";
    let refit = |shard: usize| {
        let flags = format!("{TEXT} --pass refit --shard {shard}/2 --out part-{shard} {before}");
        place.command(PHASE1, &flags).spawn().unwrap()
    };
    for mut process in [refit(0), refit(1)] {
        assert!(process.wait().unwrap().success());
    }
    let files = |folder: &str| {
        let mut files: Vec<String> = fs::read_dir(place.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("refit-1-"))
            .map(|name| format!("{folder}/{name}"))
            .collect();
        files.sort();
        files
    };
    let (parts, mut lacking) = ([files("part-0"), files("part-1")], files("part-1"));
    assert_eq!(parts.each_ref().map(Vec::len), [7, 7]);
    let merged = printed(&place.run(PHASE1, &format!("--merge {} --out rounds", parts.concat().join(" "))));
    let next = "next      exp_phase1 --pass losses --shard 0/2 --passed rounds/refit-1-*.safetensors";
    assert!(merged.contains(next), "{merged}");
    lacking.pop();
    let output = place.run(PHASE1, &format!("--merge {} {} --out refused", parts[0].join(" "), lacking.join(" ")));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("1 of refit-1-random-2"), "{said}");
    assert!(!place.path("refused").exists());
    let before = format!("{before} {}", files("rounds").join(" "));
    let losses = |shard: usize| {
        let flags = format!("{TEXT} --pass losses --shard {shard}/2 --out losses-{shard} {before}");
        place.command(PHASE1, &flags).spawn().unwrap()
    };
    for mut process in [losses(0), losses(1)] {
        assert!(process.wait().unwrap().success());
    }
    let both = "losses-1/losses.safetensors losses-0/losses.safetensors";
    let merged = printed(&place.run(PHASE1, &format!("--merge {both} --out losses")));
    assert!(merged.contains("next      exp_phase1 --passed losses/losses.safetensors"), "{merged}");
    assert_done(&place.run(PHASE1, &format!("{TEXT} {before} losses/losses.safetensors --out later")));
    assert_done(&place.run(PHASE1, &format!("{TEXT} --out at-once")));
    let [later, at_once] = ["later", "at-once"].map(|run| {
        let summary = fs::read(place.path(run).join("summary.json")).unwrap();
        serde_json::from_slice::<Value>(&summary).unwrap()["loss"].clone()
    });
    assert_eq!(later, at_once);
}

#[rstest]
#[case::labels_of_tasks("--model dense --data a=a.txt --data b=b.txt --config run.toml --pass labels", &["labels", "label = \"token\""])]
#[case::half("--merge one/scan.safetensors", &["`--merge`", "shard 1/2 is not among the 1 files"])]
#[case::another_seed("--merge one/scan.safetensors other/scan.safetensors", &["scan.safetensors", "of another seed"])]
#[case::a_shard_of_nothing("--shard 0/2", &["--pass"])]
#[case::no_shard("--pass scan --shard 2/2", &["2/2"])]
#[case::half_to_go_on_from("--model dense --data a=a.txt --data b=b.txt --config run.toml --passed one/scan.safetensors", &["one/scan.safetensors", "lacks shard 1/2"])]
fn what_does_not_add_up_is_refused_by_name(#[case] flags: &str, #[case] words: &[&str]) {
    let place = place();
    if flags.contains("one/") {
        assert_done(&place.run(PHASE1, &format!("{TEXT} --pass scan --shard 0/2 --out one")));
        assert_done(&place.run(PHASE1, &format!("{TEXT} --pass scan --shard 1/2 --seed 7 --out other")));
    }
    let output = place.run(PHASE1, &format!("{flags} --out out"));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(!place.path("out").exists());
}
