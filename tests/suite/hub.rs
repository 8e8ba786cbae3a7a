//! Models by their names on the hub, of a server on this machine that answers as the hub does.

mod server;

use std::fs;
use std::path::Path;

use experiments::hub::{Hub, HubName, found};
use rstest::rstest;
use sha2::{Digest as _, Sha256};
use tempfile::{TempDir, tempdir};
use tinyonn::checkpoint::{is_on_paper, load_model, read_arch};

use crate::models::{CPU, message};
use server::{Fault, Server};

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
    let both = ["org/name@v2", "no file or folder of that name", &server.address(), "./org/name@v2 is always a path"];
    assert!(both.iter().chain(words).all(|word| said.contains(word)), "{said}");
    assert!(fs::read_dir(cache.path()).unwrap().next().is_none());
}

/// A model's name with something behind it that names nothing of the hub's, which no file here has for a name either.
#[rstest]
#[case("org/name@")]
#[case("org/name@v2:")]
#[case("org/name:weights.bin")]
#[case("org/name@../v2")]
fn what_stands_behind_a_name_must_name_something(#[case] given: &str) {
    let said = message(found(Path::new(given)));
    let behind = format!("`{}` is neither a revision nor a GGUF file", &given[ID.len()..]);
    let words = [given, "no file or folder of that name", &behind, "OWNER/NAME:FILE.gguf"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
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
    server.add("../../../../evil.safetensors", b"evil");
    server.add("evil.safetensors", b"evil");
    assert!(message(hub(&server, &cache).model(&name(ID))).contains("names no files of weights"));
}

/// What lies in a folder but the cache.
fn beside(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.ends_with("cache")).collect()
}

/// A hub that is broken or hostile is refused by name at its first file, and writes nothing beside the cache, nor a file into it.
#[rstest]
#[case::tag_of_the_root(Fault::Tag("/tmp/x/evil"), "entity tag")]
#[case::tag_that_climbs(Fault::Tag("../../x"), "entity tag")]
#[case::no_tag(Fault::Tag(""), "entity tag")]
#[case::other_content(Fault::Tag("0000000000000000000000000000000000000000000000000000000000000000"), "SHA-256")]
#[case::commit_that_climbs(Fault::Commit("../../x"), "of commit ../../x")]
#[case::other_commit(Fault::Commit("ffffffffffffffffffffffffffffffffffffffff"), "of commit ffff")]
#[case::in_circles(Fault::Loop, "more than 10 redirects")]
#[case::nowhere(Fault::Nowhere, "redirects to nowhere")]
fn a_hub_that_lies_is_refused(#[case] fault: Fault, #[case] word: &str) {
    let (server, dir) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    server.fail(fault);
    let hub = Hub { endpoint: server.address(), cache: dir.path().join("a/cache"), token: None, offline: false };
    let said = message(hub.model(&name(ID)));
    assert!(said.contains(word) && said.contains("config.json"), "{said}");
    assert_eq!(beside(dir.path()).len(), usize::from(hub.cache.exists()));
    assert!(!hub.cache.exists() || beside(&dir.path().join("a")).is_empty());
    let model = hub.cache.join("models--org--name");
    assert!(!model.join("snapshots").exists() && !model.join("refs").exists());
    let mut blobs = fs::read_dir(model.join("blobs")).into_iter().flatten().map(|blob| blob.unwrap().path());
    assert!(blobs.all(|blob| blob.extension().is_some_and(|extension| extension == "lock")));
}

/// What a part of an earlier run holds, what a server makes of ranges, and where a connection ends: the file is the same.
#[rstest]
#[case::whole_to_a_range(Some(Fault::Whole), Part::Begun)]
#[case::none_behind(Some(Fault::Unsatisfied), Part::Begun)]
#[case::unmeasured(Some(Fault::Unmeasured), Part::None)]
#[case::unmeasured_part(Some(Fault::Unmeasured), Part::Begun)]
#[case::begun(None, Part::Begun)]
#[case::whole(None, Part::Whole)]
#[case::whole_and_wrong(None, Part::Wrong)]
#[case::begun_wrongly(None, Part::BegunWrongly)]
#[case::too_long(Some(Fault::Unsatisfied), Part::TooLong)]
fn a_broken_download_is_mended(#[case] fault: Option<Fault>, #[case] part: Part) {
    let (server, cache) = (Server::of_folder(&fixture("gguf")), tempdir().unwrap());
    let content = fs::read(fixture("gguf/qwen2_f16.gguf")).unwrap();
    let tag: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let blobs = cache.path().join("models--org--name/blobs");
    let held = match part {
        Part::None => None,
        Part::Begun => Some(content[..900].to_vec()),
        Part::Whole => Some(content.clone()),
        Part::Wrong => Some(vec![7; content.len()]),
        Part::BegunWrongly => Some(vec![7; 900]),
        Part::TooLong => Some(vec![7; content.len() + 3]),
    };
    fs::create_dir_all(&blobs).unwrap();
    if let Some(held) = held {
        fs::write(blobs.join(format!("{tag}.part")), held).unwrap();
    }
    // Cut off as well, a server that has nothing behind a first byte would be asked in vain.
    if !matches!(fault, Some(Fault::Unsatisfied)) {
        server.cut("qwen2_f16.gguf", 700);
    }
    fault.into_iter().for_each(|fault| server.fail(fault));
    let file = hub(&server, &cache).model(&name("org/name:qwen2_f16.gguf")).unwrap();
    assert!(fs::read(file).unwrap() == content);
    let left: Vec<_> = fs::read_dir(&blobs).unwrap().map(|blob| blob.unwrap().file_name()).collect();
    assert_eq!(left, [tag.as_str()], "neither a part nor a lock is left");
    assert!(part != Part::Whole || server.bodies() == 0, "what is whole is not asked for");
}

/// What an earlier run left of a file.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    None,
    Begun,
    Whole,
    Wrong,
    BegunWrongly,
    TooLong,
}

/// Files lie on other hosts, which the token is not for.
#[test]
fn a_token_is_not_shown_to_others() {
    let (server, store) = (Server::of_folder(&fixture(SHARDED)), Server::of_folder(&fixture(SHARDED)));
    let cache = tempdir().unwrap();
    server.fail(Fault::Elsewhere(store.address()));
    let hub = Hub { token: Some("hf_secret".into()), ..hub(&server, &cache) };
    let dir = hub.model(&name(ID)).unwrap();
    load_model(&dir, &CPU, None).unwrap();
    assert!(store.bodies() > 0 && server.bodies() == 0);
    assert!(store.tokens().is_empty(), "{:?}", store.tokens());
    assert_eq!(server.tokens().len(), server.asked().len());
}

/// A new commit costs only what is new in it.
#[test]
fn what_another_commit_brought_is_not_fetched_again() {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    let dir = hub(&server, &cache).model(&name(ID)).unwrap();
    let fetched = server.bodies();
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(hub(&server, &cache).model(&name(ID)).unwrap(), dir);
    load_model(&dir, &CPU, None).unwrap();
    assert_eq!(server.bodies(), fetched);
}

/// A hub that cannot answer is done without where the cache has all that is asked for, and only there.
#[rstest]
fn a_hub_in_trouble_is_done_without(#[values(401, 429, 500, 503)] status: u16) {
    let (server, cache) = (Server::of_folder(&fixture(SHARDED)), tempdir().unwrap());
    let paper = hub(&server, &cache).paper(&name(ID)).unwrap();
    let fetched = |status| {
        server.refuse(status);
        hub(&server, &cache).model(&name(ID))
    };
    assert!(message(fetched(status)).contains(&status.to_string()), "half a model is none");
    assert_eq!(hub(&server, &cache).paper(&name(ID)).unwrap(), paper);
    assert!(message(Hub { offline: true, ..hub(&server, &cache) }.model(&name(ID))).contains("HF_HUB_OFFLINE"));
    let whole = Server::of_folder(&fixture(SHARDED));
    assert_eq!(hub(&whole, &cache).model(&name(ID)).unwrap(), paper);
    assert_eq!(fetched(status).unwrap(), paper);
    assert!(message(fetched(404)).contains("404"));
    fs::remove_file(paper.join("model-00002-of-00003.safetensors")).unwrap();
    assert!(message(fetched(status)).contains(&status.to_string()), "a shard is lacking");
}

/// What exists is a path, whatever it is called; so is what cannot be a name.
#[test]
fn what_exists_is_a_path() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("org/name");
    fs::create_dir_all(&model).unwrap();
    assert_eq!(found(&model).unwrap(), model);
    // The tests run in their package's folder, where `suite` is one.
    for path in ["./org/nowhere", "nowhere", "../a/b", "a/b/c", "suite/nowhere", "suite/x:y.gguf", "org/model.gguf"] {
        assert_eq!(found(Path::new(path)).unwrap(), Path::new(path));
    }
}
