//! Results are written where the user said: through links, on other disks, at mount points.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rstest::rstest;
use tempfile::TempDir;

use super::{PHASE2, Place, RUN, SCAN, UPCYCLE, assert_done, assert_refused};

const UPCYCLED: &str = "--model dense --variant TinyOnn --out out";

#[test]
fn a_link_to_another_disk_stays_and_leads_to_the_result() {
    let place = Place::new();
    // Memory is another file system than the disk, where there is such a folder.
    let disk = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    symlink(disk.path(), place.path("out")).unwrap();
    fs::write(place.path("run.toml"), RUN).unwrap();
    let run = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out";
    for (program, arguments) in [(UPCYCLE, UPCYCLED), (UPCYCLE, UPCYCLED), (PHASE2, run)] {
        assert_done(&place.run(program, &format!("{arguments} --overwrite")));
        assert!(place.path("out").is_symlink() && disk.path().join("config.json").exists());
        let beside = fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(beside.into_iter().all(|name| !name.to_string_lossy().starts_with('.')));
    }
    fs::remove_dir_all(disk.path()).unwrap();
}

/// `script` in a mount namespace of its own, with a file system of its own at `out`; `None` where this system makes none.
fn mounted(place: &Place, script: &str) -> Option<std::process::Output> {
    let mount = "mount -t tmpfs none out";
    let shell = |script: String| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", &script]).current_dir(place.dir.path());
        command.output().ok()
    };
    shell(mount.to_owned()).filter(|output| output.status.success())?;
    shell(format!("{mount} && {script}"))
}

#[rstest]
#[case::empty("true", 0)]
#[case::over_an_old_result(
    "printf '{\"model_type\": \"tinyonn\"}' > out/config.json && touch out/old && mkdir out/lost+found",
    0
)]
#[case::over_what_is_not_ours("touch out/letter.txt", 2)]
fn a_mount_point_is_filled_in_itself(#[case] before: &str, #[case] code: i32) {
    let place = Place::new();
    fs::create_dir(place.path("out")).unwrap();
    let script = format!("{before} && {UPCYCLE} {UPCYCLED} --overwrite; echo $?; ls -A out; ls -A . | grep '^[.]'");
    let Some(output) = mounted(&place, &script) else { return };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: Vec<&str> = printed.lines().skip_while(|line| line.parse::<i32>().is_err()).collect();
    let held = ["config.json", "lost+found", "model.safetensors", "tokenizer.json"];
    let expected: Vec<&str> = match (code, before.contains("lost")) {
        (0, system) => held.into_iter().filter(|name| system || *name != "lost+found").collect(),
        _ => vec!["letter.txt"],
    };
    assert_eq!(said, [&[code.to_string().as_str()], expected.as_slice()].concat(), "{output:?}");
}

#[rstest]
#[case("--model dense --tokens ids.json --dump no/image.safetensors", &["no: there is no such folder"])]
#[case("--model dense --tokens ids.json --dump dense --overwrite", &["dense", "no file"])]
#[case("--model dense --data a=a.txt --scan-file no/scan.safetensors --out out", &["no: there is no such folder"])]
fn a_file_that_cannot_be_written_is_refused_before_the_work(#[case] arguments: &str, #[case] words: &[&str]) {
    let place = Place::new();
    // Were the model read first, it would be what is refused.
    fs::write(place.path("dense/model.safetensors"), "").unwrap();
    fs::write(place.path("ids.json"), "[[1, 2, 3]]").unwrap();
    let before = place.files();
    assert_refused(&place.run(SCAN, arguments), words);
    assert_eq!(place.files(), before);
}
