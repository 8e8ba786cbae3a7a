//! The text of the toolchain: what is taken, in an order that does not depend on what lies around it, and what is refused.

use std::fs;
use std::path::Path;

use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{DEFAULT_BYTES, Toolchain, toolchain_corpus};

use crate::models::message;

/// A cargo folder with two crates that the lock file names and one that it does not, and manual pages.
fn place() -> (TempDir, Toolchain) {
    let dir = TempDir::new().unwrap();
    let write = |path: &str, content: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let text = |word: &str, bytes: usize| word.repeat(bytes / word.len() + 1)[..bytes].to_owned();
    let lock = "[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"r\"\n\n\
                [[package]]\nname = \"b\"\nversion = \"2.0.0\"\nsource = \"r\"\n";
    write("Cargo.lock", lock.as_bytes());
    for name in ["a-1.0.0", "b-2.0.0", "other-1.0.0"] {
        let at = |path: &str| format!("cargo/registry/src/index/{name}/{path}");
        for file in 0..12 {
            write(&at(&format!("src/f{file}.rs")), text(&format!("fn {name}{file}() "), 30_000).as_bytes());
        }
        write(&at("src/short.rs"), b"mod a;");
        write(&at("src/long.rs"), text("fn long() ", 40_000).as_bytes());
        write(&at("README.md"), text(&format!("About {name}. "), 3000).as_bytes());
        write(&at("Cargo.toml.orig"), text("[package] ", 1500).as_bytes());
        write(&at("data.md"), &[0xff; 2000]);
    }
    write("man/rustc.1", text(".TH rustc ", 2000).as_bytes());
    let at = |path: &str| dir.path().join(path);
    let from = Toolchain { lock: at("Cargo.lock"), cargo_home: at("cargo"), manuals: at("man") };
    (dir, from)
}

#[test]
fn it_takes_the_locked_crates_text_until_a_task_is_full() {
    let (_dir, from) = place();
    let corpus = toolchain_corpus(&from).unwrap();
    assert_eq!(corpus.task_names(), ["rust", "prose", "manifests", "manuals"]);
    let documents: Vec<usize> = corpus.tasks.iter().map(|task| task.documents.len()).collect();
    // Ten files of 30 kB fill the 300 kB of a task; of prose and manifests there is one a crate, of pages one.
    assert_eq!((documents, DEFAULT_BYTES / 30_000), (vec![10, 2, 2, 1], 10));
    let ids: Vec<&String> = corpus.tasks.iter().flat_map(|task| &task.documents).map(|document| &document.id).collect();
    assert!(ids.iter().all(|id| !id.contains("other") && !id.contains("short") && !id.contains("long")), "{ids:?}");
    // Both crates speak: files are not taken in the order of their crates.
    assert!(["a-1.0.0/src", "b-2.0.0/src"].iter().all(|of| ids.iter().any(|id| id.starts_with(of))), "{ids:?}");
}

#[test]
fn it_is_the_same_wherever_it_lies_and_whatever_lies_beside_it() {
    let ((_one, from), (_two, other)) = (place(), place());
    fs::remove_dir_all(other.cargo_home.join("registry/src/index/other-1.0.0")).unwrap();
    assert_eq!(toolchain_corpus(&from).unwrap().sha256(), toolchain_corpus(&other).unwrap().sha256());
}

#[rstest]
#[case::a_crate(
    "cargo/registry/src/index/b-2.0.0",
    "the crate b 2.0.0 of Cargo.lock is not unpacked here; run `cargo fetch --locked`"
)]
#[case::all_crates("cargo", "holds no unpacked crate; run `cargo fetch --locked`")]
#[case::manuals("man", "holds no manual page; install the toolchain with rustup")]
fn what_is_missing_is_named_with_its_remedy(#[case] missing: &str, #[case] expected: &str) {
    let (dir, from) = place();
    fs::remove_dir_all(Path::new(dir.path()).join(missing)).unwrap();
    let said = message(toolchain_corpus(&from));
    assert!(said.contains(expected), "{said}");
}
