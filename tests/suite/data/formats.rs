//! What a file is read as: known by what is in it, not by what it is called.

use std::fs;
use std::path::Path;

use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{DataSource, Task};

const LINES: &str = "{\"text\":\"one\"}\n\n  {\"id\": [1, {}], \"text\":\"two\"}\n";

fn read(path: &Path) -> tinyonn::Result<Task> {
    DataSource { name: "t".into(), path: path.to_path_buf() }.read()
}

fn texts(path: &Path) -> Vec<String> {
    read(path).unwrap().documents.into_iter().map(|document| document.text).collect()
}

fn written(name: &str, content: impl AsRef<[u8]>) -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

#[rstest]
fn json_lines_are_known_by_their_content(
    #[values("a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.txt", "a")] name: &str,
    #[values("", "\u{feff}", "\n \n")] before: &str,
) {
    let (dir, path) = written(name, format!("{before}{LINES}"));
    assert_eq!(texts(&path), ["one", "two"]);
    assert_eq!(texts(dir.path()), ["one", "two"]);
}

#[test]
fn a_first_line_longer_than_what_is_read_at_once_is_still_known() {
    for size in [70_000, 3_000_000] {
        let long = "x".repeat(size);
        let (_dir, path) = written("a.json", format!("{{\"text\":\"{long}\"}}\n{LINES}"));
        assert_eq!(texts(&path), [long.as_str(), "one", "two"]);
    }
}

/// Letters of several bytes where no text begins, in a line that is looked through for what Python writes.
#[rstest]
#[case("{\"text\":\"one\", é: NaN}")]
#[case("{\"text\":\"one\"} \u{feff}")]
fn a_line_with_letters_outside_of_its_texts_is_refused(#[case] line: &str) {
    let (_dir, path) = written("a.jsonl", format!("{line}\n"));
    assert!(read(&path).unwrap_err().to_string().contains("a.jsonl: line 1: "));
}

/// Prose that looks a little like it, and objects in a folder of other things, are prose.
#[rstest]
#[case::a_brace("{ is a brace\n{\"text\":\"one\"}\n")]
#[case::spread_over_lines("{\n  \"text\": \"one\"\n}\n")]
#[case::prose_behind("{\"text\":\"one\"}\nand so on\n")]
#[case::two_in_a_line("{\"text\":\"one\"} {\"text\":\"two\"}\n")]
fn what_only_looks_like_it_is_prose(#[case] content: &str) {
    let (dir, path) = written("a.json", content);
    assert_eq!(texts(&path), [content]);
    assert_eq!(texts(dir.path()), [content]);
}

#[test]
fn an_object_without_text_is_refused_where_it_was_named_and_prose_in_a_folder() {
    let (dir, path) = written("package.json", "{\"name\":\"x\"}\n");
    assert!(read(&path).unwrap_err().to_string().contains("line 1: no field `text`"));
    assert_eq!(texts(dir.path()), ["{\"name\":\"x\"}\n"]);
    let (_dir, path) = written("a.json", "[ {\"text\": \"one\"}, {\"text\": \"two\"}]");
    let message = read(&path).unwrap_err().to_string();
    assert!(message.contains("one JSON array") && message.contains("jq -c '.[]'"), "{message}");
}

#[rstest]
#[case(b"\x1f\x8b\x08\x00\xff", "gzip", "gunzip -k ")]
#[case(b"\x28\xb5\x2f\xfd\x04\xff", "zstd", "zstd -d ")]
#[case(b"\xfd7zXZ\x00\xff", "xz", "unxz")]
#[case(b"BZh91AY\xff", "bzip2", "bunzip2")]
#[case(b"PK\x03\x04\xff", "zip", "unzip")]
#[case(b"PAR1\x15\x04\xff", "Parquet", "to_json")]
#[case(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS", "git lfs pull")]
fn what_is_packed_is_refused_by_name_whatever_it_is_called(
    #[case] content: &[u8],
    #[case] is: &str,
    #[case] remedy: &str,
    #[values("a.jsonl.gz", "a.jsonl", "a.parquet", "a.txt")] name: &str,
) {
    let (dir, path) = written(name, content);
    fs::write(dir.path().join("b.txt"), "text beside it").unwrap();
    for named in [&path, dir.path()] {
        let message = read(named).unwrap_err().to_string();
        assert!(message.starts_with(&path.display().to_string()), "{message}");
        assert!(message.contains(is) && message.contains(remedy), "{message}");
    }
}

#[test]
fn an_archive_among_text_is_left_out_like_a_picture() {
    let (dir, _) = written("fixture.bin.gz", b"\x1f\x8b\x08\x00\xff");
    fs::write(dir.path().join("b.txt"), "text").unwrap();
    assert_eq!(texts(dir.path()), ["text"]);
}

#[rstest]
fn a_byte_order_mark_is_no_text(#[values(1, 300_000)] lines: usize) {
    let text = "a line\n".repeat(lines);
    let (dir, path) = written("a.txt", format!("\u{feff}{text}"));
    assert_eq!(texts(&path).concat(), text);
    assert_eq!(texts(dir.path()).concat(), text);
    // Bytes are counted as the file has them.
    fs::write(&path, b"\xef\xbb\xbfcaf\xe9").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("not UTF-8 at byte 6"));
}

#[test]
fn files_put_together_bring_their_marks() {
    let (_dir, path) = written("a.jsonl", "\u{feff}{\"text\":\"one\"}\n\u{feff}{\"text\":\"two\"}\n");
    assert_eq!(texts(&path), ["one", "two"]);
}

/// As Python's `json.dumps` writes them.
#[rstest]
#[case::not_a_number(
    r#"{"text": "NaN \"NaN", "score": NaN, "more": [Infinity, -Infinity, {"NaN": NaN}]}"#,
    "NaN \"NaN"
)]
#[case::too_large(r#"{"score": 1e999, "text": "one"}"#, "one")]
#[case::half_a_surrogate_pair(r#"{"other": "\ud83d", "text": "one", "\udc00": 1}"#, "one")]
#[case::twice(r#"{"text": 3, "text": "the last"}"#, "the last")]
fn what_is_not_read_may_be_anything(#[case] line: &str, #[case] text: &str) {
    let (_dir, path) = written("a.jsonl", line);
    assert_eq!(texts(&path), [text]);
}

#[test]
fn what_is_not_read_may_lie_deep() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let (_dir, path) = written("a.jsonl", format!("{{\"tree\": {deep}, \"text\": \"one\"}}"));
    assert_eq!(texts(&path), ["one"]);
}

#[rstest]
#[case::in_the_text(r#"{"text": "a \ud83d"}"#, "line 1: ")]
#[case::a_number_for_a_text(r#"{"text": NaN}"#, "`text` is not a string")]
#[case::no_object("[1]", "expected an object")]
#[case::half(r#"{"text": "one", "score": N}"#, "line 1: expected value")]
fn what_is_read_must_be_right(#[case] line: &str, #[case] problem: &str) {
    let (_dir, path) = written("a.jsonl", line);
    let message = read(&path).unwrap_err().to_string();
    assert!(message.contains(problem), "{message}");
}
