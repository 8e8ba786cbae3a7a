//! The text of the toolchain: what is taken, in an order that does not depend on what lies around it, and what is refused.

use std::fs;
use std::path::Path;

use rstest::rstest;
use tempfile::TempDir;
use tinyonn::data::{DEFAULT_BYTES, Toolchain, toolchain_corpus};

use crate::models::message;

/// Crates that the lock file names: 24 of owners of their own, and of one owner three; and `other`, which it does not name.
fn crates() -> Vec<(String, String)> {
    let address = |owner: &str, name: &str| format!("https://example.org/{owner}/{name}");
    let alone = (0..24).map(|at| (format!("c{at}"), address(&format!("Owner{at}"), "c")));
    let together = ["x", "y"].map(|name| (name.to_owned(), address("many", name)));
    // By their names these two are one family; the address of the first says otherwise.
    let by_name = [("z-a".to_owned(), address("many", "z")), ("z-b".to_owned(), String::new())];
    alone.chain(together).chain(by_name).collect()
}

/// A cargo folder with what the lock file names and a crate that it does not, and manual pages.
fn place() -> (TempDir, Toolchain) {
    let dir = TempDir::new().unwrap();
    let write = |path: &str, content: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let text = |word: &str, bytes: usize| word.repeat(bytes / word.len() + 1)[..bytes].to_owned();
    let mut lock = "[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n".to_owned();
    for (name, _) in crates() {
        lock = format!("{lock}\n[[package]]\nname = \"{name}\"\nversion = \"1.0.0\"\nsource = \"r\"\n");
    }
    write("Cargo.lock", lock.as_bytes());
    for (name, address) in crates().into_iter().chain([("other".into(), String::new())]) {
        let at = |path: &str| format!("cargo/registry/src/index/{name}-1.0.0/{path}");
        for file in 0..3 {
            write(&at(&format!("src/f{file}.rs")), text(&format!("fn {name}{file}() "), 7000).as_bytes());
        }
        write(&at("src/short.rs"), b"mod a;");
        write(&at("src/long.rs"), text("fn long() ", 10_000).as_bytes());
        write(&at("README.md"), text(&format!("About {name}. "), 3000).as_bytes());
        let package = if address.is_empty() { String::new() } else { format!("repository = \"{address}\"\n") };
        write(&at("Cargo.toml"), format!("[package]\nname = \"{name}\"\n{package}").as_bytes());
        write(&at("Cargo.toml.orig"), text("[package] ", 1500).as_bytes());
        write(&at("data.md"), &[0xff; 2000]);
    }
    write("man/cargo.1", text(".TH cargo ", 20_000).as_bytes());
    write("man/rustc.1", text(".TH rustc ", 2000).as_bytes());
    let at = |path: &str| dir.path().join(path);
    let from = Toolchain { lock: at("Cargo.lock"), cargo_home: at("cargo"), manuals: at("man") };
    (dir, from)
}

#[test]
fn it_takes_one_file_of_each_owner_of_the_locked_crates() {
    let (_dir, from) = place();
    let corpus = toolchain_corpus(&from).unwrap();
    assert_eq!(corpus.task_names(), ["rust", "prose", "manifests", "manuals"]);
    let documents: Vec<usize> = corpus.tasks.iter().map(|task| task.documents.len()).collect();
    // 24 owners of one crate each, one of three, and the crate without an address: by name `z`.
    assert_eq!(documents, [26, 26, 26, 2]);
    for task in &corpus.tasks[..3] {
        let of_many =
            task.documents.iter().filter(|document| ["x-", "y-", "z-a"].iter().any(|of| document.id.starts_with(of)));
        assert_eq!(of_many.count(), 1, "{}", task.name);
        assert!(task.documents.iter().any(|document| document.id.starts_with("z-b-")), "{}", task.name);
        let ids: Vec<&String> = task.documents.iter().map(|document| &document.id).collect();
        assert!(ids.iter().all(|id| !["other", "short", "long", "data"].iter().any(|not| id.contains(not))), "{ids:?}");
    }
}

#[test]
fn a_task_ends_when_it_is_full() {
    let (dir, from) = place();
    let manuals = dir.path().join("man");
    (0..20).for_each(|at| fs::write(manuals.join(format!("cargo-{at}.1")), ".TH cargo ".repeat(3000)).unwrap());
    let corpus = toolchain_corpus(&from).unwrap();
    let bytes = corpus.tasks[3].bytes();
    assert!((DEFAULT_BYTES - 30_000..=DEFAULT_BYTES).contains(&bytes), "{bytes}");
}

#[test]
fn it_is_the_same_wherever_it_lies_and_whatever_lies_beside_it() {
    let ((_one, from), (_two, other)) = (place(), place());
    fs::remove_dir_all(other.cargo_home.join("registry/src/index/other-1.0.0")).unwrap();
    assert_eq!(toolchain_corpus(&from).unwrap().sha256(), toolchain_corpus(&other).unwrap().sha256());
}

#[rstest]
#[case::a_crate(
    "cargo/registry/src/index/z-b-1.0.0",
    "the crate z-b 1.0.0 of Cargo.lock is not unpacked here; run `cargo fetch --locked`"
)]
#[case::all_crates("cargo", "holds no unpacked crate; run `cargo fetch --locked`")]
#[case::manuals("man", "holds no manual page; install the toolchain with rustup")]
fn what_is_missing_is_named_with_its_remedy(#[case] missing: &str, #[case] expected: &str) {
    let (dir, from) = place();
    fs::remove_dir_all(Path::new(dir.path()).join(missing)).unwrap();
    let said = message(toolchain_corpus(&from));
    assert!(said.contains(expected), "{said}");
}
