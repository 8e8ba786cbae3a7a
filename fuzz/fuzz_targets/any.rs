//! The target that `TINYONN_FUZZ_TARGET` names: one program to carry to another machine, in place of one for each.
#![no_main]

use std::sync::OnceLock;

use tinyonn_fuzz::targets::{TARGETS, Target};

fn named() -> Target {
    let name = std::env::var("TINYONN_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.map(|(_, run)| *run).unwrap_or_else(|| panic!("TINYONN_FUZZ_TARGET is {name:?}; name a target"))
}

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET.get_or_init(named)(input));
