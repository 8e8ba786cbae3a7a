//! What a program is called and given.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rstest::rstest;

use super::{PHASE2, Place, SCAN, UPCYCLE, VARIANTS, VERIFY, assert_done, assert_refused};

const COMPARE: &str = env!("CARGO_BIN_EXE_exp_compare");
const PHASE1: &str = env!("CARGO_BIN_EXE_exp_phase1");

#[rstest]
fn a_version_names_the_program(#[values(PHASE1, PHASE2, UPCYCLE, VERIFY, SCAN, VARIANTS, COMPARE)] program: &str) {
    let printed = super::printed(&Place::new().run(program, "--version"));
    let name = Path::new(program).file_name().unwrap().to_string_lossy();
    assert_eq!(printed, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
}

/// Bytes that are no Unicode: as the value of a flag, behind its `=`, and without one.
#[rstest]
fn an_argument_that_is_not_unicode_is_refused_by_its_flag(
    #[values(PHASE1, PHASE2, UPCYCLE, SCAN, VARIANTS)] program: &str,
) {
    let place = Place::new();
    let odd = OsStr::from_bytes(b"od\xffd");
    let before = place.files();
    assert_refused(
        &place.command(program, "--model").arg(odd).output().unwrap(),
        &["`--model`", "od\u{fffd}d", "not UTF-8"],
    );
    let joined = OsStr::from_bytes(b"--model=od\xffd");
    assert_refused(&place.command(program, "").arg(joined).output().unwrap(), &["`--model`", "not UTF-8"]);
    assert_refused(&place.command(VERIFY, "dense").arg(odd).output().unwrap(), &["`arguments`", "not UTF-8"]);
    assert_eq!(place.files(), before);
}

#[test]
fn a_program_may_lie_anywhere() {
    let place = Place::new();
    let folder = place.dir.path().join(OsStr::from_bytes(b"od\xffd"));
    std::fs::create_dir(&folder).unwrap();
    let program = folder.join("exp_scan");
    std::fs::copy(SCAN, &program).unwrap();
    let arguments = "--model ../dense --data a=../a.txt --length 32 --out out".split(' ');
    assert_done(&std::process::Command::new(program).args(arguments).current_dir(&folder).output().unwrap());
    assert!(folder.join("out/report.html").exists());
}
