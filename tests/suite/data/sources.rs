//! Reading tasks from disk: what is taken, what is left, and what every refusal says.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{DataSource, Task, read_sources};

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn read(path: &Path) -> tinyonn::Result<Task> {
    DataSource { name: "t".into(), path: path.to_path_buf() }.read()
}

fn ids(task: &Task) -> Vec<&str> {
    task.documents.iter().map(|document| document.id.as_str()).collect()
}

#[test]
fn a_folder_gives_its_text_files_in_order() {
    let root = folder(&[
        ("b.txt", b"two"),
        ("a/z.md", b"one"),
        ("target/kept.txt", b"no manifest beside this folder"),
        ("crate/Cargo.toml", b"[package]"),
        ("crate/target/out.txt", b"built"),
        ("cache/CACHEDIR.TAG", b"Signature"),
        ("cache/x.txt", b"cached"),
        (".hidden", b"hidden"),
        (".git/config", b"hidden"),
        ("picture.png", &[0x89, b'P', 0, 0xff]),
        ("nul.bin", b"a\0b"),
        ("empty.txt", b" \n"),
    ]);
    let task = read(root.path()).unwrap();
    assert_eq!(ids(&task), ["a/z.md", "b.txt", "crate/Cargo.toml", "target/kept.txt"]);
    assert_eq!(task.documents[0].text, "one");
}

#[test]
fn the_fingerprint_follows_the_text_and_not_its_place() {
    let files: [(&str, &[u8]); 2] = [("a.txt", b"one"), ("b/c.txt", b"two")];
    let sha = |files: &[(&str, &[u8])]| {
        let root = folder(files);
        read_sources(&[DataSource { name: "t".into(), path: root.path().into() }]).unwrap().sha256()
    };
    let here = sha(&files);
    assert_eq!(here.len(), 64);
    assert_eq!(here, sha(&files));
    assert_ne!(here, sha(&[("a.txt", b"one"), ("b/c.txt", b"twO")]));
    assert_ne!(here, sha(&[("a.txt", b"one"), ("b/d.txt", b"two")]));
    assert_ne!(here, sha(&[("a.txt", b"on"), ("b/c.txt", b"etwo")]));
}

#[test]
fn json_lines_are_documents_alone_and_in_a_folder() {
    let root = folder(&[("shard.jsonl", b"{\"text\":\"one\\n\",\"id\":4}\n\n{\"text\":\"two\"}\n")]);
    let alone = read(&root.path().join("shard.jsonl")).unwrap();
    assert_eq!(ids(&alone), ["shard.jsonl#1", "shard.jsonl#3"]);
    assert_eq!(alone.documents[0].text, "one\n");
    assert_eq!(alone, read(root.path()).unwrap());
}

#[test]
fn a_large_file_in_a_folder_is_cut_and_a_small_one_is_not() {
    let large = "a line of text\n".repeat(80_000);
    let root = folder(&[("large.txt", large.as_bytes()), ("small.txt", &large.as_bytes()[..900_000])]);
    let task = read(root.path()).unwrap();
    assert!(task.documents.len() > 200);
    assert_eq!(task.bytes(), large.len() + 900_000);
    assert_eq!(task.documents.last().unwrap().text.len(), 900_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// The parts of one file are the file, whatever its lines; each is a few kilobytes and ends where a line ends if
    /// lines are of a usual length.
    #[test]
    fn the_parts_of_a_file_are_the_file(lines in prop::collection::vec("[a-zé🦀]{0,60}", 1..900), breaks in any::<bool>()) {
        let text = "x".to_owned() + &lines.join(if breaks { "\n" } else { "" });
        let root = folder(&[("one.txt", text.as_bytes())]);
        let task = read(&root.path().join("one.txt")).unwrap();
        let parts: Vec<&str> = task.documents.iter().map(|document| document.text.as_str()).collect();
        prop_assert_eq!(parts.concat(), text);
        let (last, before) = parts.split_last().unwrap();
        for part in before {
            prop_assert!((4096..=8200).contains(&part.len()), "{} bytes", part.len());
            prop_assert!(!breaks || part.ends_with('\n'));
        }
        prop_assert!(last.len() <= 8200);
    }
}

#[rstest]
#[case("plain", "has no `=`")]
#[case("=path", "lacks a name or a path")]
#[case("name=", "lacks a name or a path")]
#[case("a/b=path", "`a/b` cannot name a task")]
#[case(".a=path", "`.a` cannot name a task")]
fn a_malformed_argument_is_refused(#[case] argument: &str, #[case] problem: &str) {
    let message = argument.parse::<DataSource>().unwrap_err().to_string();
    assert!(message.contains(problem) && message.contains("NAME=PATH"), "{message}");
}

#[test]
fn a_path_may_hold_an_equals_sign() {
    let source: DataSource = "law=/a=b/c".parse().unwrap();
    assert_eq!(source, DataSource { name: "law".into(), path: "/a=b/c".into() });
}

#[rstest]
#[case::missing("gone.txt", "no such file or folder; correct the path after `t=`")]
#[case::not_text("latin.txt", "not UTF-8 at byte 3; convert the file")]
#[case::empty_file("empty.txt", "task `t` finds no text here; name a folder")]
#[case::empty_folder("empty", "task `t` finds no text here; name a folder")]
#[case::bad_json("bad.jsonl", "line 2: expected value")]
#[case::no_text("none.jsonl", "line 1: no field `text`, nor `messages`; write one JSON object a line")]
#[case::text_is_a_number("number.jsonl", "line 1: `text` is not a string")]
fn a_bad_input_is_named_with_its_remedy(#[case] path: &str, #[case] problem: &str) {
    let root = folder(&[
        ("latin.txt", b"caf\xe9"),
        ("empty.txt", b"\n\n"),
        ("empty/.hidden", b"text"),
        ("bad.jsonl", b"{\"text\":\"fine\"}\n{\"text\": oops}\n"),
        ("none.jsonl", b"{\"content\":\"x\"}\n"),
        ("number.jsonl", b"{\"text\":3}\n"),
    ]);
    let path = root.path().join(path);
    let message = read(&path).unwrap_err().to_string();
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    assert!(message.contains(problem), "{message}");
}

#[test]
fn two_tasks_of_one_name_or_none_at_all_are_refused() {
    let root = folder(&[("a.txt", b"one")]);
    let source = DataSource { name: "t".into(), path: root.path().into() };
    let message = read_sources(&[source.clone(), source]).unwrap_err().to_string();
    assert!(message.contains("`t` is used twice; give every task a name of its own"), "{message}");
    let message = read_sources(&[]).unwrap_err().to_string();
    assert!(message.contains("give at least one NAME=PATH"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_folder_that_links_to_itself_is_refused() {
    let root = folder(&[("a/b.txt", b"one")]);
    std::os::unix::fs::symlink(root.path(), root.path().join("a/loop")).unwrap();
    let message = read(root.path()).unwrap_err().to_string();
    assert!(message.contains("a/loop") && message.contains("remove the link"), "{message}");
}

/// Text that is missing is not passed over.
#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_named() {
    let root = folder(&[("a.txt", b"one")]);
    std::os::unix::fs::symlink("gone.txt", root.path().join("b.txt")).unwrap();
    let message = read(root.path()).unwrap_err().to_string();
    assert!(message.contains("b.txt: is a link to gone.txt, which is not there; remove the link"), "{message}");
}
