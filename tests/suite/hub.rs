//! Models by their names on the hub, of a server on this machine that answers as the hub does.

mod server;

use std::fs;
use std::path::Path;

use experiments::hub::{Hub, HubName, found};
use rstest::rstest;
use tempfile::{TempDir, tempdir};
use tinyonn::checkpoint::{is_on_paper, load_model, read_arch};

use crate::models::{CPU, message};
use server::Server;

/// A model of the families' fixtures: shards and their index.
const SHARDED: &str = "decoders/qwen2_untied_bf16_sharded";
const ID: &str = "org/name";

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn hub(server: &Server, cache: &TempDir) -> Hub {
    Hub { endpoint: server.address(), cache: cache.path().to_path_buf(), token: None, offline: false }
}

fn name(text: &str) -> HubName {
    HubName::parse(text).unwrap()
}

/// The shards and what is small are fetched once, linked as Python's tools link them, and read as the folder that they are.
#[test]
fn a_folder_is_fetched_once_and_read() {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    server.add("pytorch_model.bin", b"never asked for");
    server.add("consolidated.safetensors", b"never asked for");
    // A plan reads no weights.
    let paper = hub(&server, &cache).paper(&name(ID)).unwrap();
    assert_eq!(read_arch(&paper).unwrap(), read_arch(fixture(SHARDED)).unwrap());
    assert!(is_on_paper(&paper));
    let dir = hub(&server, &cache).model(&name(ID)).unwrap();
    assert_eq!(dir, paper);
    assert!(dir.ends_with(format!("models--org--name/snapshots/{}", server::COMMIT)));
    let refs = cache.path().join("models--org--name/refs/main");
    assert_eq!(fs::read_to_string(refs).unwrap(), server::COMMIT);
    let logits = |dir: &Path| {
        let model = load_model(dir, &CPU, None).unwrap();
        crate::models::bits(&model.logits(&crate::models::ids((1, 5)), &model.active().pass()).unwrap())
    };
    assert_eq!(logits(&dir), logits(&fixture(SHARDED)));
    assert!(dir.join("model-00001-of-00003.safetensors").symlink_metadata().unwrap().is_symlink());
    assert!(!dir.join("pytorch_model.bin").exists() && !dir.join("consolidated.safetensors").exists());

    let fetched = server.bodies();
    assert_eq!(hub(&server, &cache).model(&name(ID)).unwrap(), dir);
    assert_eq!(server.bodies(), fetched, "what the cache has is not fetched again");
    // Offline, and where the hub has gone away.
    let offline = Hub { offline: true, ..hub(&server, &cache) };
    assert_eq!(offline.model(&name(ID)).unwrap(), dir);
    let gone = hub(&server, &cache);
    drop(server);
    assert_eq!(gone.model(&name(ID)).unwrap(), dir);
    let said = message(offline.model(&name("org/other")));
    assert!(
        ["org/other", "no file or folder", "HF_HUB_OFFLINE", "./org/other"].iter().all(|w| said.contains(w)),
        "{said}"
    );
}

/// A cache that Python's tools made: a commit without a ref of its own is found, nothing is fetched.
#[test]
fn a_cache_that_is_there_is_read() {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    let first = hub(&server, &cache).model(&name(ID)).unwrap();
    fs::remove_dir_all(cache.path().join("models--org--name/refs")).unwrap();
    let offline = Hub { offline: true, ..hub(&server, &cache) };
    assert!(message(offline.model(&name(ID))).contains("HF_HUB_OFFLINE"));
    let of_commit = name(&format!("{ID}@{}", server::COMMIT));
    assert_eq!(offline.model(&of_commit).unwrap(), first);
    let bodies = server.bodies();
    assert_eq!(hub(&server, &cache).model(&of_commit).unwrap(), first);
    assert_eq!(server.bodies(), bodies);
}

#[test]
fn a_gguf_file_of_a_branch_is_fetched() {
    let (server, cache) = (Server::of_folder(&fixture("gguf")), tempdir().unwrap());
    let file = hub(&server, &cache).model(&name("org/name@dev/1:qwen2_f16.gguf")).unwrap();
    assert_eq!(fs::read(&file).unwrap(), fs::read(fixture("gguf/qwen2_f16.gguf")).unwrap());
    assert!(server.asked().iter().any(|path| path.starts_with("/api/models/org/name/revision/dev%2F1")));
    load_model(&file, &CPU, None).unwrap();
    // Of one that is split every part.
    let part = hub(&server, &cache).model(&name("org/name:llama3_split-00002-of-00003.gguf")).unwrap();
    load_model(&part, &CPU, None).unwrap();
    let said = message(hub(&server, &cache).model(&name(ID)));
    assert!(["no config.json", "GGUF files, such as OWNER/NAME:llama"].iter().all(|w| said.contains(w)), "{said}");
    let said = message(hub(&server, &cache).model(&name("org/name:none.gguf")));
    assert!(said.contains("no file none.gguf"), "{said}");
}

/// A connection that breaks in the middle of a file costs no byte twice.
#[test]
fn a_download_goes_on_where_it_was_cut_off() {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    server.cut("model-00002-of-00003.safetensors", 700);
    let dir = hub(&server, &cache).model(&name(ID)).unwrap();
    for entry in fs::read_dir(fixture(SHARDED)).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors" && !path.ends_with("reference.safetensors"))
        {
            let read = fs::read(dir.join(path.file_name().unwrap())).unwrap();
            assert!(read == fs::read(&path).unwrap(), "{}", path.display());
        }
    }
    assert!(server.ranges().iter().any(|range| range == "bytes=700-"), "{:?}", server.ranges());
}

/// What the hub refuses is said with both readings of the name and what to do.
#[rstest]
#[case::none(404, &["correct the name or the revision"])]
#[case::gated(401, &["private or gated", "HF_TOKEN"])]
#[case::broken(503, &["try again later"])]
fn refusals_name_both_readings(#[case] status: u16, #[case] words: &[&str]) {
    let (server, cache) = (Server::refusing(status), tempdir().unwrap());
    let said = message(hub(&server, &cache).model(&name("org/name@v2")));
    let both = ["org/name@v2", "no file or folder of that name", &server.address(), "./org/name is always a path"];
    assert!(both.iter().chain(words).all(|word| said.contains(word)), "{said}");
    assert!(fs::read_dir(cache.path()).unwrap().next().is_none());
}

#[test]
fn a_token_is_shown_to_the_hub() {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    let hub = Hub { token: Some("hf_secret".into()), ..hub(&server, &cache) };
    hub.model(&name(ID)).unwrap();
    assert!(server.tokens().iter().all(|token| token == "Bearer hf_secret") && !server.tokens().is_empty());
}

/// An index may not lead out of the cache.
#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    server.add("model.safetensors.index.json", br#"{ "weight_map": { "a": "../../../../evil.safetensors" } }"#);
    assert!(message(hub(&server, &cache).model(&name(ID))).contains("names no files of weights"));
}

/// What exists is a path, whatever it is called; so is what cannot be a name.
#[test]
fn what_exists_is_a_path() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("org/name");
    fs::create_dir_all(&model).unwrap();
    assert_eq!(found(&model).unwrap(), model);
    for path in ["./org/nowhere", "nowhere", "../a/b", "a/b/c"] {
        assert_eq!(found(Path::new(path)).unwrap(), Path::new(path));
    }
}
