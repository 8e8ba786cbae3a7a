//! Names on the hub, as the programs take them. What is fetched and how is tested in the suite; here no hub is reached.

use std::fs;

use rstest::rstest;

use super::{Place, SCAN, UPCYCLE, VARIANTS, VERIFY, assert_done, assert_refused};

/// A cache as the hub's tools leave it, with the dense model in it.
fn cached() -> Place {
    let place = Place::new();
    let snapshot = place.path("cache/hub/models--org--name/snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(place.path("cache/hub/models--org--name/refs")).unwrap();
    fs::write(place.path("cache/hub/models--org--name/refs/main"), "abc").unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(place.path("dense").join(file), snapshot.join(file)).unwrap();
    }
    place
}

#[test]
fn a_name_is_found_in_the_cache() {
    let place = cached();
    let run = |program: &str, arguments: &str| {
        let mut command = place.command(program, arguments);
        command.env("HF_HOME", place.path("cache")).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        command.output().unwrap()
    };
    assert_done(&run(VERIFY, "dense org/name --tolerance 0"));
    assert_done(&run(UPCYCLE, "--model org/name --variant TinyOnn --out sparse"));
    assert_done(&run(VARIANTS, "--model org/name@abc"));
    let words = ["org/other", "no file or folder of that name", "HF_HUB_OFFLINE", "./org/other is always a path"];
    assert_refused(&run(UPCYCLE, "--model org/other --variant TinyOnn --out out"), &words);
    // A folder of that name is meant, where there is one.
    fs::create_dir_all(place.path("org/name")).unwrap();
    assert_refused(&run(VERIFY, "dense org/name"), &["org/name", "has no config.json"]);
}

/// Nobody answers there: one line, both readings.
#[rstest]
fn a_hub_out_of_reach_is_said(#[values(UPCYCLE, SCAN)] program: &str) {
    let place = Place::new();
    let mut command = place.command(program, "--model org/name --out out");
    command.env("HF_HOME", place.path("cache")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
    let words = ["org/name", "no file or folder of that name", "http://127.0.0.1:9 could not be read", "try again"];
    assert_refused(&command.output().unwrap(), &words);
    assert!(!place.path("out").exists());
}
