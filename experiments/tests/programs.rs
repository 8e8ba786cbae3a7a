//! The programs as a user starts them: what cannot be done is one line on standard error and exit code 2, and leaves nothing under
//! the name that was to be written.
//!
//! A package's binaries are known to its own tests alone, so these stand apart from the suite.
#![allow(clippy::unwrap_used)]

#[cfg(unix)]
#[path = "programs/arguments.rs"]
mod arguments;
#[path = "programs/attention.rs"]
mod attention;
#[path = "programs/benchmark.rs"]
mod benchmark;
#[path = "programs/book.rs"]
mod book;
#[path = "programs/copies.rs"]
mod copies;
#[path = "programs/directions.rs"]
mod directions;
#[path = "programs/eval.rs"]
mod eval;
#[path = "programs/evidence.rs"]
mod evidence;
#[path = "programs/expand.rs"]
mod expand;
#[path = "programs/export.rs"]
mod export;
#[path = "programs/generate.rs"]
mod generate;
#[path = "programs/given_text.rs"]
mod given_text;
#[cfg(feature = "hub")]
#[path = "programs/hub.rs"]
mod hub;
#[path = "programs/interrupts.rs"]
mod interrupts;
#[path = "programs/kept_formats.rs"]
mod kept_formats;
#[path = "programs/models.rs"]
mod models;
#[path = "programs/not_finite.rs"]
mod not_finite;
#[path = "programs/phase1_shards.rs"]
mod phase1_shards;
#[path = "programs/places.rs"]
mod places;
#[path = "programs/ranks.rs"]
mod ranks;
#[path = "programs/resume.rs"]
mod resume;
#[path = "programs/stored_scans.rs"]
mod stored_scans;
#[path = "programs/variants.rs"]
mod variants;
#[path = "programs/vocabulary.rs"]
mod vocabulary;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::checkpoint::{ModelFolder, ParamStore};
use tinyonn::data::{Corpus, TextTokenizer, arithmetic, sorting};
use tinyonn::decoder::{Arch, CausalLm};

const PHASE2: &str = env!("CARGO_BIN_EXE_exp_phase2");
const UPCYCLE: &str = env!("CARGO_BIN_EXE_exp_upcycle");
const EXPORT: &str = env!("CARGO_BIN_EXE_exp_export");
const VERIFY: &str = env!("CARGO_BIN_EXE_exp_verify");
const SCAN: &str = env!("CARGO_BIN_EXE_exp_scan");
const BENCHMARK: &str = env!("CARGO_BIN_EXE_exp_benchmark");
const VARIANTS: &str = env!("CARGO_BIN_EXE_exp_variants");

const VOCAB: usize = 280;

/// A run of phase 2 that takes a moment.
const RUN: &str = "length = 16\nscan_tokens = 300\ntest_tokens = 200\n[router]\nsteps = 2\n[smk]\nsteps = 2\nbatch = 4";

fn config() -> Arch {
    let json = json!({
        "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 120, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    });
    Arch::from_json(&json, "config.json").unwrap()
}

/// A folder with `dense`, a model and its tokenizer, and two tasks of text, `a.txt` and `b.txt`.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: TempDir::new().unwrap() };
        let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&config(), &vb).map(drop));
        ModelFolder::save(place.path("dense"), &config().to_json(), &store.unwrap(), None).unwrap();
        let corpus = Corpus { tasks: vec![arithmetic(0, 12_000), sorting(0, 12_000)] };
        TextTokenizer::train(&corpus, VOCAB).unwrap().save(place.path("dense/tokenizer.json")).unwrap();
        for (task, name) in corpus.tasks.iter().zip(["a.txt", "b.txt"]) {
            let text: String = task.documents.iter().map(|document| document.text.as_str()).collect();
            fs::write(place.path(name), text).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str, arguments: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).args(arguments.split_whitespace());
        command
    }

    fn run(&self, program: &str, arguments: &str) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    /// Everything below, but the text of what is cached.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.dir.path().to_path_buf()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path.clone());
                }
                found.insert(path);
            }
        }
        found
    }

    /// Changes `config.json` of the dense model.
    fn configure(&self, key: &str, value: Value) {
        let path = self.path("dense/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }

    /// The dense model with `name` replaced by what `f` makes of it, or without it.
    fn change(&self, name: &str, f: impl FnOnce(Tensor) -> Option<Tensor>) {
        let mut store = ModelFolder::open(self.path("dense")).unwrap().load(&Device::Cpu, None).unwrap();
        let changed = f(store.remove(name).unwrap().as_detached_tensor());
        changed.into_iter().for_each(|tensor| store.insert(name, tensor).unwrap());
        fs::rename(self.path("dense"), self.path("whole")).unwrap();
        ModelFolder::save(self.path("dense"), &config().to_json(), &store, Some(&self.path("whole"))).unwrap();
        fs::remove_dir_all(self.path("whole")).unwrap();
    }
}

/// A plan names what would be trained, in numbers that can be checked, and leaves nothing behind; it refuses what the run would.
#[rstest]
#[case::of_a_model("--model dense", false)]
#[case::of_a_model_to_be("", true)]
fn a_dry_run_tells_and_does_nothing(#[case] model: &str, #[case] pretrains: bool) {
    let place = Place::new();
    fs::write(place.path("run.toml"), format!("cache = \"cache\"\n{RUN}")).unwrap();
    let before = place.files();
    let of = |more: &str| {
        let data = "--data a=a.txt --data b=b.txt --config run.toml --out out --dry-run";
        place.run(PHASE2, &format!("{model} {data} {more}"))
    };
    let output = of("");
    assert_done(&output);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.contains("pretraining: 1000 steps of 128 tokens"), pretrains, "{said}");
    assert!(said.contains("Surprise Min-K: 2 steps of 64 tokens") && said.contains("nothing was done"), "{said}");
    assert_eq!(place.files(), before);
    assert_refused(&of("--variant Nobody"), &["Nobody"]);
    fs::write(place.path("run.toml"), format!("{RUN}\nmemory.micro_batches = 3")).unwrap();
    assert_refused(&of(""), &["`smk.memory.micro_batches`", "4 rows", "3 equal parts"]);
}

/// What only a late stage would trip over is refused before the first.
#[rstest]
#[case::parts("memory.micro_batches = 3", &["`smk.memory.micro_batches`", "4 rows", "3 equal parts"])]
#[case::the_optimizer("optimizer.beta1 = 1.5", &["`smk.optimizer.beta1`", "1.5"])]
#[case::routers_by_nothing("[router]\nfit = \"sgd\"\nsteps = 0", &["`router.steps`", "use 1 or more"])]
#[case::the_routers_rate("[router]\nrate = -1.0", &["`router.rate`", "-1"])]
#[case::its_earlier_name("adamw.beta1 = 1.5", &["`smk.optimizer.beta1`", "1.5"])]
fn what_a_late_stage_cannot_take_is_refused_first(#[case] setting: &str, #[case] says: &[&str]) {
    let place = Place::new();
    let run = if setting.starts_with("[router]") { "" } else { RUN };
    fs::write(place.path("run.toml"), format!("{run}\n{setting}")).unwrap();
    let output = place.run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out");
    assert_refused(&output, says);
    assert!(!place.path("out").exists());
}

/// One line with all `words`, exit code 2, nothing on standard output.
fn assert_refused(output: &Output, words: &[&str]) {
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
    assert_failed(output, words);
}

/// As [`assert_refused`], behind lines that say how far stages came.
fn assert_failed(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && said.lines().last() == Some(errors[0]), "{said}");
    assert!(words.iter().all(|word| errors[0].contains(word)), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What keeps a dense model from being read keeps every program from doing anything.
#[rstest]
#[case::no_folder(|place: &Place| fs::remove_dir_all(place.path("dense")).unwrap(), &["dense", "is not there"])]
#[case::no_config(|place: &Place| fs::remove_file(place.path("dense/config.json")).unwrap(), &["has no config.json"])]
#[case::no_weights(|place: &Place| fs::remove_file(place.path("dense/model.safetensors")).unwrap(), &["neither model.safetensors"])]
#[case::truncated(|place: &Place| {
    let path = place.path("dense/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 7]).unwrap();
}, &["model.safetensors", "truncated"])]
#[case::absent_shard(|place: &Place| {
    fs::remove_file(place.path("dense/model.safetensors")).unwrap();
    let index = json!({ "weight_map": { "model.norm.weight": "model-00001-of-00002.safetensors" } });
    fs::write(place.path("dense/model.safetensors.index.json"), index.to_string()).unwrap();
}, &["model-00001-of-00002.safetensors", "missing", "copy or download"])]
#[case::wrong_shape(|place: &Place| place.configure("intermediate_size", json!(119)), &["mlp.up_proj.weight", "[120, 16], expected [119, 16]"])]
#[case::missing_tensor(|place: &Place| place.change("model.norm.weight", |_| None), &["missing (1): `model.norm.weight`"])]
#[case::unknown_model_type(|place: &Place| place.configure("model_type", json!("gpt2")), &["config.json", "model_type", "gpt2", "qwen3"])]
fn a_model_that_cannot_be_read(#[case] damage: fn(&Place), #[case] words: &[&str]) {
    let place = Place::new();
    damage(&place);
    let before = place.files();
    let programs = [
        (UPCYCLE, "--model dense --variant TinyOnn --out out"),
        (VERIFY, "dense dense"),
        (SCAN, "--model dense --data a=a.txt --data b=b.txt --out out"),
        (PHASE2, "--model dense --data a=a.txt --data b=b.txt --out out"),
    ];
    for (program, arguments) in programs {
        assert_refused(&place.run(program, arguments), words);
        assert_eq!(place.files(), before, "{program}");
    }
}

#[rstest]
#[case::unknown_variant(UPCYCLE, "--model dense --variant Tiny --out out", &["variant `Tiny`", "known: ", "TinyOnn"])]
#[case::unknown_variant_of_a_run(PHASE2, "--model dense --variant Tiny --out out", &["variant `Tiny`", "known: ", "TinyOnn"])]
#[case::unknown_variant_of_a_scan(SCAN, "--model dense --variant Tiny --data a=a.txt --out out", &["variant `Tiny`", "known: ", "TinyOnn"])]
#[case::no_text(PHASE2, "--model dense --data a=a.txt --data b=none.txt --out out", &["none.txt", "no such file", "`b=`"])]
#[case::no_text_to_scan(SCAN, "--model dense --data b=none.txt --out out", &["none.txt", "no such file"])]
#[case::empty_text(PHASE2, "--model dense --data a=a.txt --data b=empty.txt --out out", &["empty.txt", "finds no text"])]
#[case::empty_text_to_scan(SCAN, "--model dense --data b=empty.txt --out out", &["empty.txt", "finds no text"])]
#[case::short_text(PHASE2, "--model dense --data a=a.txt --data b=short --config fits.toml --out out", &["`b`", "too few"])]
#[case::one_task(PHASE2, "--model dense --data a=a.txt --out out", &["--data", "twice"])]
#[case::long_sequences(SCAN, "--model dense --data a=a.txt --length 65 --out out", &["`length`", "65", "64"])]
#[case::long_sequences_of_a_run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --out out --config long.toml", &["`length`", "65", "64"])]
#[case::long_sequences_to_compare(VERIFY, "dense dense --length 65", &["65", "--length 64"])]
#[case::rate_that_is_no_number(PHASE2, "--config nan.toml --out out", &["nan.toml", "`smk.optimizer.rate`", "finite"])]
#[case::no_model_to_count_on(VARIANTS, "--model none", &["none", "is not there"])]
#[case::share_below_zero(env!("CARGO_BIN_EXE_exp_sparsify"), "--model dense --data a=a.txt --active-share -0.5 --out out", &["`active_share`", "-0.5"])]
#[case::bad_file(PHASE2, "--config wrong.toml --out out", &["wrong.toml", "line 2", "stepz"])]
#[case::used_folder(UPCYCLE, "--model dense --variant TinyOnn --out used", &["used", "not empty", "--overwrite"])]
#[case::used_folder_of_a_run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --out used", &["used", "--overwrite"])]
#[case::used_folder_of_a_scan(SCAN, "--model dense --data a=a.txt --out used", &["used", "--overwrite"])]
#[case::foreign_folder(UPCYCLE, "--model dense --variant TinyOnn --out used --overwrite", &["used", "config.json"])]
#[case::foreign_folder_of_a_run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --out used --overwrite", &["used", "config.json"])]
#[case::its_own_input(UPCYCLE, "--model dense --variant TinyOnn --out dense --overwrite", &["dense", "is read"])]
#[case::its_own_input_of_a_scan(SCAN, "--model dense --data a=a.txt --out dense --overwrite", &["dense", "is read"])]
#[case::used_file(SCAN, "--model dense --tokens ids.json --dump a.txt", &["a.txt: exists", "--overwrite"])]
#[case::no_folder_for_a_dump(SCAN, "--model dense --tokens ids.json --dump no/image.safetensors", &["no: there is no such folder"])]
#[case::dense_to_dense(EXPORT, "--model dense --format dense --out out", &["config.json", "Tiny-ONN"])]
fn what_cannot_be_done(#[case] program: &str, #[case] arguments: &str, #[case] words: &[&str]) {
    let place = Place::new();
    fs::create_dir(place.path("used")).unwrap();
    fs::write(place.path("used/letter.txt"), "dear").unwrap();
    fs::write(place.path("empty.txt"), " \n").unwrap();
    fs::create_dir(place.path("short")).unwrap();
    for name in ["1", "2", "3"] {
        fs::write(place.path("short").join(name), name).unwrap();
    }
    fs::write(place.path("ids.json"), "[[1, 2, 3]]").unwrap();
    fs::write(place.path("long.toml"), "length = 65").unwrap();
    fs::write(place.path("fits.toml"), "length = 64").unwrap();
    fs::write(place.path("nan.toml"), "smk.optimizer.rate = nan").unwrap();
    fs::write(place.path("wrong.toml"), "[smk]\nstepz = 1").unwrap();
    let before = place.files();
    assert_refused(&place.run(program, arguments), words);
    assert_eq!(place.files(), before);
}

#[rstest]
#[case(SCAN, "--model dense --data a=a.txt --data b=b.txt --length 32 --out out", &["`scan`", "task `a` is NaN", "tensors"])]
#[case(PHASE2, "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out", &["`scan`", "task `a` is NaN", "tensors"])]
fn a_loss_that_is_no_number(#[case] program: &str, #[case] arguments: &str, #[case] words: &[&str]) {
    let place = Place::new();
    fs::write(place.path("run.toml"), "length = 32").unwrap();
    place.change("model.norm.weight", |norm| Some((norm * f64::NAN).unwrap().to_dtype(DType::F32).unwrap()));
    let before = place.files();
    assert_failed(&place.run(program, arguments), words);
    assert_eq!(place.files(), before);
}

#[test]
fn pretraining_at_too_high_a_rate_keeps_the_state_before_it() {
    let place = Place::new();
    fs::write(place.path("run.toml"), "cache = \"cache\"\nlength = 32\npretrain.optimizer.rate = 1e30").unwrap();
    let output = place.run(PHASE2, "--data a=a.txt --data b=b.txt --config run.toml --out out");
    assert_failed(&output, &["`pretrain.optimizer.rate`", "at step 1 of pretraining", "lower the rate"]);
    assert!(!place.path("out").exists());
    let cached: Vec<PathBuf> = fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(cached.len() == 1 && cached[0].join("states/state-00000001.safetensors").exists(), "{cached:?}");
}

/// Runs where no file may grow beyond `blocks` of 1024 bytes: as on a full disk, a write then fails, and the shell's trap keeps the
/// signal from ending the process instead.
fn run_cramped(place: &Place, program: &str, arguments: &str, blocks: u32) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {program} {arguments}");
    Command::new("bash").arg("-c").arg(script).current_dir(place.dir.path()).output().unwrap()
}

#[rstest]
// Room for the tokenizer, but not for the weights; for nothing; for config.json alone.
#[case::weights(UPCYCLE, "--model dense --variant TinyOnn --out out", 40)]
#[case::nothing(UPCYCLE, "--model dense --variant TinyOnn --out out", 0)]
#[case::tokenizer(UPCYCLE, "--model dense --variant TinyOnn --out out", 4)]
#[case::no_image(SCAN, "--model dense --data a=a.txt --data b=b.txt --length 32 --out out", 0)]
#[case::image(SCAN, "--model dense --data a=a.txt --data b=b.txt --length 32 --out out", 30)]
#[case::report(SCAN, "--model dense --data a=a.txt --data b=b.txt --length 32 --out out", 44)]
#[case::run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out", 4)]
#[case::upcycled(PHASE2, "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out", 40)]
#[case::report_of_a_run(PHASE2, "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out", 150)]
#[case::dump(SCAN, "--model dense --tokens ids.json --dump out", 1)]
fn a_full_disk(#[case] program: &str, #[case] arguments: &str, #[case] blocks: u32) {
    let place = Place::new();
    let ids: Vec<u32> = (0..60).collect();
    fs::write(place.path("ids.json"), json!([ids]).to_string()).unwrap();
    fs::write(place.path("run.toml"), RUN).unwrap();
    let before = place.files();
    assert_failed(&run_cramped(&place, program, arguments, blocks), &["free some space"]);
    assert_eq!(place.files(), before);
    // The next run is not hindered; and where there is an old result, a full disk leaves it.
    assert_done(&place.run(program, arguments));
    let (whole, arguments) = (place.files(), format!("{arguments} --overwrite"));
    assert_failed(&run_cramped(&place, program, &arguments, blocks), &["free some space"]);
    assert_eq!(place.files(), whole);
    assert_done(&place.run(program, &arguments));
    assert_eq!(place.files(), whole);
}

#[test]
fn what_a_program_cannot_use_is_refused_not_ignored() {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant DeMix --out by-task"));
    assert_refused(&place.run(VERIFY, "dense by-task --active routed"), &["`--active`", "by-task", "--active all"]);
    assert_done(&place.run(VERIFY, "dense by-task --tolerance 0"));
    let replicas = place.run(UPCYCLE, "--model dense --variant Smear --partition random --out replicas");
    assert_refused(&replicas, &["`partition`", "replicas", "leave it out"]);
    fs::write(place.path("run.toml"), "partition = \"random\"").unwrap();
    let run = "--model dense --variant Smear --data a=a.txt --config run.toml --out run";
    assert_refused(&place.run(PHASE2, run), &["`partition`", "replicas", "leave it out"]);
    for strategy in ["coactivation", "activation", "sps", "taylor"] {
        let unread = format!("--model dense --variant TinyOnn --partition {strategy} --out unread");
        let words = ["`partition`", strategy, "upcycling reads none", "kmeans", "exp_phase2"];
        assert_refused(&place.run(UPCYCLE, &unread), &words);
    }
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --partition kmeans --out clustered"));
    let scan = place.run(SCAN, "--model by-task --partition random --data a=a.txt --out scan");
    assert_refused(&scan, &["`partition`", "by-task brings its own"]);
}

#[test]
fn the_way_there_and_back_over_what_was_there() {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --partition random --out sparse --overwrite"));
    for (program, arguments) in [
        (UPCYCLE, "--variant TinyOnn --out again"),
        (PHASE2, "--variant Depth3 --data a=a.txt --data b=b.txt --out again"),
    ] {
        let again = place.run(program, &format!("--model sparse {arguments}"));
        assert_refused(&again, &["sparse: is a Tiny-ONN checkpoint already", "exp_export --format dense"]);
    }
    assert_done(&place.run(EXPORT, "--model sparse --format dense --out back"));
    assert_done(&place.run(EXPORT, "--model sparse --format dense --out back --overwrite"));
    let weights = |name: &str| fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("back"), weights("dense"));
    assert_done(&place.run(VERIFY, "dense sparse --tolerance 0"));
    let names: BTreeSet<_> = fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a.txt", "b.txt", "back", "dense", "sparse"].map(Into::into).into());
}

#[test]
fn a_run_is_replaced_by_the_same_run() {
    let place = Place::new();
    fs::write(place.path("run.toml"), RUN).unwrap();
    let arguments = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out";
    assert_done(&place.run(PHASE2, arguments));
    fs::write(place.path("out/note.txt"), "old").unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap() };
    let (config, mut summary) = (read("out/config.json"), read("out/summary.json"));
    assert_done(&place.run(PHASE2, &format!("{arguments} --overwrite")));
    assert!(!place.path("out/note.txt").exists());
    let mut again = read("out/summary.json");
    for figures in [&mut summary, &mut again] {
        figures["seconds"] = Value::Null;
    }
    assert_eq!((&read("out/config.json")["settings"], again), (&config["settings"], summary));
    assert_eq!(config["settings"]["out"], "out");
}

/// The type that passes compute in stands in the record of a run, and another is refused by name.
#[test]
fn a_run_says_what_it_computes_in() {
    let place = Place::new();
    fs::write(place.path("run.toml"), RUN).unwrap();
    let arguments = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out";
    assert_done(&place.run(PHASE2, &format!("{arguments} --dtype bf16")));
    let config: Value = serde_json::from_slice(&fs::read(place.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["dtype"], "bf16");
    let refused = place.run(PHASE2, &format!("{arguments} --overwrite --dtype f16"));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("there is no `f16`; use f32 or bf16"), "{said}");
    let scan = "--model dense --data a=a.txt --length 32 --scan-file scan.safetensors";
    assert_done(&place.run(SCAN, &format!("{scan} --dtype bf16 --out one")));
    assert_refused(&place.run(SCAN, &format!("{scan} --out two")), &["scan.safetensors", "another dtype (bf16)"]);
}

#[rstest]
fn help_names_what_all_have(#[values(PHASE2, UPCYCLE, EXPORT, VERIFY, SCAN)] program: &str) {
    let help = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for flag in ["--seed", "--device", "--config"] {
        assert!(help.contains(flag), "{flag} is not in\n{help}");
    }
    for flag in ["--out", "--overwrite"] {
        assert_eq!(help.contains(flag), program != VERIFY, "{flag} in\n{help}");
    }
}

/// A path as the programs print it.
#[test]
fn the_default_folder_is_the_first_that_is_free() {
    let place = Place::new();
    for name in ["runs/scan", "runs/scan-2"] {
        let output = place.run(SCAN, "--model dense --data a=a.txt --length 32");
        assert_done(&output);
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(Path::new(name).join("report.html").to_str().unwrap())
        );
    }
}

fn printed(output: &Output) -> String {
    assert_done(output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `exp_variants | head -1`: whoever read has left, and the program ends as if it had been read.
#[test]
fn a_reader_may_leave() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = Command::new(VARIANTS).stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
}
