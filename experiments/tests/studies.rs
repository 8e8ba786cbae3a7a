//! exp_phase1, what goes on from it, and exp_compare, as a user starts them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;
use tinyonn::data::{arithmetic, sorting};

const PHASE1: &str = env!("CARGO_BIN_EXE_exp_phase1");
const PHASE2: &str = env!("CARGO_BIN_EXE_exp_phase2");
const COMPARE: &str = env!("CARGO_BIN_EXE_exp_compare");
const REPORT: &str = env!("CARGO_BIN_EXE_exp_report");
const FORGETTING: &str = env!("CARGO_BIN_EXE_exp_forgetting");
const SPARSIFY: &str = env!("CARGO_BIN_EXE_exp_sparsify");
const VERIFY: &str = env!("CARGO_BIN_EXE_exp_verify");

/// A model that is pretrained in a moment, and a run of both phases that takes one.
const SHAPE: &str = "cache = \"cache\"\nlength = 16\nscan_tokens = 300\ntest_tokens = 200\n[dense]\nvocab_size = 300\nhidden_size = 16\n\
                     intermediate_size = 120\nnum_hidden_layers = 2\nnum_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 8\n[pretrain]\n\
                     steps = 4\nbatch = 2\nwarmup = 1\n";
const RUN: &str = "study_tokens = 40\n";
const ROUTERS: &str = "[router]\nsteps = 2\n[smk]\nsteps = 2\nbatch = 4\n";
/// Two cells beside the best one.
const GRID: &str = "seeds = [3, 4]\ncorpora = [{ name = \"small\", data = [\"a=a.txt\", \"b=b.txt\"] }]\n";
const CELLS: &str = "[best]\ntop_k = [2, 3]\n[best.router]\nsteps = 2\n[[products]]\nlabels = [\"sps\", \"sps_permuted\", \"activation\", \"taylor\", \"taylor_magnitude\"]\nrouted = [false]\n";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for (task, name) in [arithmetic(0, 12_000), sorting(0, 12_000)].iter().zip(["a.txt", "b.txt"]) {
            let text: String = task.documents.iter().map(|document| document.text.as_str()).collect();
            fs::write(dir.path().join(name), text).unwrap();
        }
        fs::write(dir.path().join("run.toml"), format!("{RUN}{SHAPE}{ROUTERS}")).unwrap();
        fs::write(dir.path().join("grid.toml"), format!("{GRID}{SHAPE}{CELLS}")).unwrap();
        Self { dir }
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

    fn done(&self, program: &str, arguments: &str) -> String {
        let output = self.run(program, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// One line, before any work.
    fn refused(&self, program: &str, arguments: &str, words: &[&str]) {
        let said = self.failed(program, arguments, words);
        assert!(said.lines().count() == 1, "{said}");
    }

    /// One line, behind those that say how far stages came; returns all of them.
    fn failed(&self, program: &str, arguments: &str, words: &[&str]) -> String {
        let output = self.run(program, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && words.iter().all(|word| last.contains(word)), "{said}");
        said.into_owned()
    }

    /// The page in the folder `name` and all that is drawn beside it.
    fn drawn(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let dir = self.path(name);
        let figures = fs::read_dir(dir.join("figures")).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = figures.chain([dir.join("report.html")]).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// A page that is drawn again is the one that was drawn, to the byte, whether or not it is still there.
    fn draws_again(&self, name: &str) {
        let before = self.drawn(name);
        fs::write(self.path(name).join("report.html"), "something else").unwrap();
        fs::remove_dir_all(self.path(name).join("figures")).unwrap();
        let said = self.done(REPORT, name);
        assert!(said.contains("report.html"), "{said}");
        assert!(self.drawn(name) == before, "{name}");
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

/// The model that phase 1 pretrained, by neurons: the share that is asked for is the share that is measured.
fn sparsifies(place: &Place) {
    let cached = fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    let model = cached.strip_prefix(place.dir.path()).unwrap().display().to_string();
    let text = "--data a=a.txt --data b=b.txt --config sparse.toml";
    fs::write(place.path("negative.toml"), "ridge = -1.0\n").unwrap();
    fs::write(
        place.path("sparse.toml"),
        "length = 16\ncalibration_tokens = 300\nvalidation_tokens = 64\ntest_tokens = 200\n[distil]\nbatch = 2\n",
    )
    .unwrap();
    for (out, rest, repaired) in [
        ("gate", "--active-share 0.6", true),
        ("bare", "--active-share 0.6 --ridge 0 --worth norm", false),
        ("uniform", "--active-share 0.6 --shares uniform --choose top_k", true),
        ("distilled", "--active-share 0.6 --distil 3 --bias false", true),
        ("pruned", "--active-share 0.6 --variant Pruned", true),
    ] {
        let said = place.done(SPARSIFY, &format!("--model {model} {text} {rest} --out {out}"));
        assert!(said.contains("lossless  bit-equal") && said.contains("loss      a: dense"), "{said}");
        let summary = place.json(&format!("{out}/summary.json"));
        assert_eq!(summary["repaired_on"].as_u64().unwrap() > 0, repaired);
        assert_eq!(summary["distilled_to"].is_number(), out == "distilled");
        let asked = summary["asked"]
            .as_array()
            .unwrap()
            .iter()
            // What reads all of x says nothing of it.
            .map(|cut| {
                let [candidates, neurons] = ["candidates", "neurons"].map(|share| cut[share].as_f64().unwrap());
                (cut["inputs"].as_f64().unwrap_or(1.0) * candidates + 2.0 * neurons) / 3.0
            });
        let (layers, sum) = asked.fold((0.0, 0.0), |(layers, sum), share| (layers + 1.0, sum + share));
        assert!((sum / layers - 0.6).abs() < 1e-9, "{out} {}", sum / layers);
        // A threshold meets the share on calibration text alone, and the few neurons of a small layer are whole numbers.
        let taken = summary["operations"].as_f64().unwrap();
        assert!((taken - 0.6).abs() < 0.1, "{out} {taken}");
        let again = place.done(VERIFY, &format!("{out}/tiny-onn {model} --active all"));
        assert!(again.contains("bit-equal"), "{again}");
    }
    // Layers that are there already are distilled to the same bits.
    place.done(SPARSIFY, &format!("--model {model} {text} --active-share 0.6 --bias false --out plain"));
    place.done(SPARSIFY, "--from plain --distil 3 --out continued");
    let [whole, continued] = ["distilled", "continued"]
        .map(|dir| fs::read(place.path(&format!("{dir}/tiny-onn/model.safetensors"))).unwrap());
    assert!(whole == continued);
    let [whole, continued] = ["distilled", "continued"].map(|dir| place.json(&format!("{dir}/summary.json")));
    for key in ["loss", "rise", "distilled_to", "asked", "taken", "added", "calibrated_on", "repaired_on", "ridge"] {
        assert_eq!(whole[key], continued[key], "{key}");
    }
    for (from, words) in [
        ("plain --active-share 0.5", &["`active_share`", "is not what the run had"][..]),
        ("distilled", &["distilled already"]),
        ("plain --data a=b.txt --data b=a.txt", &["`data`", "the text is not what it was"]),
        (&model, &["has no summary.json", "exp_sparsify"]),
    ] {
        place.refused(SPARSIFY, &format!("--from {from} --distil 2 --out no"), words);
    }
    place.refused(SPARSIFY, &format!("{text} --out no"), &["`model`", "is needed"]);
    let refused =
        |rest: &str, words: &[&str]| place.refused(SPARSIFY, &format!("--model {model} {text} {rest} --out no"), words);
    refused("--active-share 0.05 --shares uniform", &["`active_share`: is 0.05", "fewer candidates or inputs"]);
    refused("--active-share 0.3 --shares uniform --choose top_k", &["`active_share`: is 0.3", "fewer candidates"]);
    refused("--active-share 0.9 --inputs 0.25", &["`active_share`: is 0.9", "0.750"]);
    refused("--candidates 0", &["`candidates`: is 0"]);
    // How far layers can be cut is known once their neurons' worth is.
    for (rest, words) in [
        ("--active-share 0.01", ["`active_share`: is 0.01", "cut down to"]),
        ("--candidates 0.5 --active-share 0.9", ["`active_share`: is 0.9", "candidates cost"]),
    ] {
        place.failed(SPARSIFY, &format!("--model {model} {text} {rest} --out no"), &words);
    }
    fs::write(place.path("untested.toml"), "test_tokens = 1\n").unwrap();
    fs::write(place.path("uncut.toml"), "[distil]\nbatch = 3\nmemory.micro_batches = 2\n").unwrap();
    for (file, words) in [("untested", ["`test_tokens`", "is 1"]), ("uncut", ["distil.memory", "not cut into 2"])] {
        let base = format!("--model {model} --data a=a.txt --data b=b.txt --config {file}.toml");
        place.refused(SPARSIFY, &format!("{base} --distil 2 --out no"), &words);
    }
    refused("--variant Pruned --candidates 0.5", &["`candidates`: is for a gate"]);
    refused("--variant Pruned --choose top_k", &["`choose`: is for a gate"]);
    let negative = format!("--model {model} --data a=a.txt --data b=b.txt --config negative.toml --out no");
    place.refused(SPARSIFY, &negative, &["`ridge`: is -1"]);
    refused("--active-share 1.5", &["`active_share`: is 1.5"]);
    refused("--variant TinyOnn", &["TinyOnn", "`group_router` is no linear router", "GroupedGate"]);
    place.refused(PHASE1, "--variant OwnGate --out no", &["OwnGate", "no hierarchy", "exp_sparsify"]);
    assert!(!place.path("no").exists());
}

#[test]
fn phase_2_goes_on_from_the_folder_of_phase_1() {
    let place = Place::new();
    let said = place.done(PHASE1, "--data a=a.txt --data b=b.txt --config run.toml --out one");
    assert!(said.contains("lossless  bit-equal") && said.contains("causal    without its"), "{said}");
    let names = ["report.html", "summary.json", "phase1.json", "config.json", "tiny-onn/model.safetensors"];
    assert!(names.iter().all(|name| place.path("one").join(name).exists()));
    let drawn = ["frontier", "brain-a", "contrast", "paths", "density-layer-0", "router-density-layer-0"];
    let studied =
        ["load-by-task-layer-0", "specificity-neuron", "specificity-amplified-expert", "ablated-neuron-sps-as-others"];
    for figure in drawn.into_iter().chain(studied) {
        for ending in ["svg", "png", "csv"] {
            assert!(place.path(&format!("one/figures/{figure}.{ending}")).exists(), "{figure}.{ending}");
        }
    }
    let planned = place.done(PHASE2, "--from one --out two --dry-run");
    assert!(planned.contains("Surprise Min-K: 2 steps") && planned.contains("nothing was done"), "{planned}");
    assert!(!planned.contains("pretraining") && !planned.contains("scan "), "{planned}");
    assert!(!place.path("two").exists());
    // As a run leaves it that is killed while it replaces that folder.
    fs::rename(place.path("one"), place.path(".one.replaced")).unwrap();
    place.done(PHASE2, "--from one --out two");
    place.done(PHASE2, "--data a=a.txt --data b=b.txt --config run.toml --out both");
    let [two, both] = ["two", "both"].map(|dir| place.json(&format!("{dir}/summary.json")));
    assert_eq!(two["smk"], both["smk"]);
    assert_eq!(two["loss"], both["loss"]);
    assert!(two["frontier"].is_object() && both["frontier"].is_null());
    // Without text, model or cache, and of another folder's name.
    let hidden = ["a.txt", "b.txt", "cache"].map(|name| (place.path(name), place.path(&format!("hidden-{name}"))));
    hidden.iter().for_each(|(from, to)| fs::rename(from, to).unwrap());
    ["one", "two", "both"].into_iter().for_each(|run| place.draws_again(run));
    hidden.iter().for_each(|(from, to)| fs::rename(to, from).unwrap());
    // Files of two runs in one folder.
    for (run, tasks, words) in [
        ("two", "[\"other\",", ["summary.json", "`dense` of the task `other`, which figures.json names"]),
        ("one", "[", ["figures.json", "is not of 1 tasks"]),
    ] {
        let path = place.path(run).join("figures.json");
        let figures = fs::read_to_string(&path).unwrap();
        fs::write(&path, figures.replacen("\"tasks\":[\"a\",", &format!("\"tasks\":{tasks}"), 1)).unwrap();
        place.refused(REPORT, run, &words);
        fs::write(&path, figures).unwrap();
    }
    let summary = place.path("two/summary.json");
    let told = fs::read_to_string(&summary).unwrap();
    fs::copy(place.path("both/summary.json"), &summary).unwrap();
    place.refused(REPORT, "two", &["two/summary.json", "is not the summary that figures.json", "of one run"]);
    fs::write(&summary, told).unwrap();
    for (from, to, words) in [
        ("\"load\":[[[", "\"load\":[[[0.5,", "`accuracy.load` is not of"),
        ("\"choices\":10", "\"choices\":0", "`spec`: level `expert` has 10 routers for 0 nodes"),
        ("\"top_k\":", "\"top_k\":9", "`spec`: top_k"),
    ] {
        let path = place.path("one/figures.json");
        let figures = fs::read_to_string(&path).unwrap();
        assert!(figures.contains(from), "{from}");
        fs::write(&path, figures.replacen(from, to, 1)).unwrap();
        place.refused(REPORT, "one", &["one/figures.json", words]);
        fs::write(&path, figures).unwrap();
    }
    sparsifies(&place);
    // What phase 1 decided is decided.
    fs::write(place.path("other.toml"), "scan_tokens = 299").unwrap();
    place.refused(PHASE2, "--from one --config other.toml --out three", &["`scan_tokens`", "exp_phase1"]);
    place.refused(PHASE2, "--from one --config other.toml --dry-run", &["`scan_tokens`", "exp_phase1"]);
    place.refused(PHASE2, "--from two --out three", &["has no phase1.json", "exp_phase1"]);
    place.refused(PHASE2, "--from one --out one --overwrite", &["one", "is read"]);
    // From another folder, and where the text was moved.
    fs::create_dir(place.path("below")).unwrap();
    let mut elsewhere = place.command(PHASE2, "--from ../one --dry-run");
    let output = elsewhere.current_dir(place.path("below")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(place.path("a.txt"), place.path("below/a.txt")).unwrap();
    place.refused(PHASE2, "--from one --dry-run", &["a.txt", "no such file", "`a=`"]);
    place.done(PHASE2, "--from one --data a=below/a.txt --data b=b.txt --dry-run");
    place.failed(PHASE2, "--from one --data a=b.txt --data b=b.txt --dry-run", &["`data`", "not what it was"]);
    let clap = place.run(PHASE2, "--from one --seed 3");
    assert_eq!(clap.status.code(), Some(2));
    assert!(!place.path("three").exists());
}

fn cells(dir: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    for subject in ["small-3", "small-4"] {
        let Ok(entries) = fs::read_dir(dir.join("subjects").join(subject).join("cells")) else { continue };
        let files =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        found.extend(files.map(|path| (path.clone(), fs::metadata(path).unwrap().modified().unwrap())));
    }
    found.sort();
    found
}

/// Killed whenever it likes, it keeps what is done, and its children end with it.
#[test]
fn a_comparison_that_was_killed_goes_on() {
    let place = Place::new();
    let arguments = "--config grid.toml --out compare --jobs 2";
    let mut child = place.command(COMPARE, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while cells(&place.path("compare")).is_empty() && started.elapsed() < Duration::from_mins(2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Its children notice that it is gone; then nothing new comes.
    let mut kept = cells(&place.path("compare"));
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = cells(&place.path("compare"));
        if now == kept {
            break;
        }
        kept = now;
    }
    let said = place.done(COMPARE, arguments);
    assert!(said.contains(&format!("{} cells in", 2 * 6 - kept.len())), "{said}");
    let after = cells(&place.path("compare"));
    assert_eq!(after.len(), 2 * 6);
    assert!(kept.iter().all(|cell| after.contains(cell)), "what was there is not run again");
    let results = fs::read_to_string(place.path("compare/RESULTS.md")).unwrap();
    assert!(results.lines().nth(2).unwrap().starts_with("**The claim"), "{results}");
    assert!(place.path("compare/report.html").exists());
    place.draws_again("compare");
    // Nothing is left to do, and the same is said again.
    let again = place.done(COMPARE, arguments);
    assert!(again.contains("0 cells in"), "{again}");
    assert_eq!(fs::read_to_string(place.path("compare/RESULTS.md")).unwrap(), results);
    place.refused(COMPARE, &format!("{arguments} --seeds 3,4,5"), &["was begun with other settings", "--out"]);
    // Written where it was written before, from whatever folder; and nobody's page is replaced.
    place.done(COMPARE, &format!("{arguments} --results elsewhere.md"));
    fs::remove_file(place.path("elsewhere.md")).unwrap();
    fs::create_dir(place.path("below")).unwrap();
    let mut report = place.command(COMPARE, "--report --out ../compare");
    assert!(report.current_dir(place.path("below")).output().unwrap().status.success());
    assert!(place.path("elsewhere.md").exists() && fs::read_dir(place.path("below")).unwrap().next().is_none());
    fs::write(place.path("elsewhere.md"), "mine").unwrap();
    place.refused(COMPARE, "--report --out compare", &["elsewhere.md", "--overwrite"]);
    place.done(COMPARE, "--report --out compare --overwrite");
    assert!(fs::read_to_string(place.path("elsewhere.md")).unwrap() != "mine");
}

/// A command a machine, into one folder: two of them want one pretrained model at once. What is missing is named, and done by the command without a shard.
#[test]
fn a_comparison_is_dealt_to_machines() {
    let place = Place::new();
    let arguments = "--config grid.toml --out compare --jobs 1";
    let start = |shard: &str| {
        let mut command = place.command(COMPARE, &format!("{arguments} --shard {shard}"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // Both of the second of two subjects.
    for machine in ["1/3", "2/3"].map(start) {
        let output = machine.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(": 3 cells in"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(!place.path("compare/RESULTS.md").exists());
    let again = place.done(COMPARE, &format!("{arguments} --shard 1/3"));
    assert!(again.contains("shard 1/3: 0 cells in") && again.contains("missing   shard 0/3: 7 records"), "{again}");
    assert!(!again.contains("missing   shard 1/3") && !again.contains("missing   shard 2/3"), "{again}");
    let said = place.done(COMPARE, arguments);
    assert!(said.contains("missing   shard 0/3") && said.contains("6 cells in"), "{said}");
    assert!(cells(&place.path("compare")).len() == 2 * 6 && place.path("compare/RESULTS.md").exists());
    assert!(!place.done(COMPARE, "--report --out compare").contains("missing"));
}

/// RESULTS.md lies beside the folder of fragments, and is written whole or not at all.
/// What cannot be begun leaves no folder that was.
#[rstest]
#[case::finals("--stage finals", &["`--stage`", "dense.adamw.2.5e-4.seed0.order0", "--stage screen"])]
#[case::report("--report", &["forgetting.json", "begin a study"])]
#[case::material("--material material", &["--model"])]
fn a_study_of_forgetting_is_refused_before_its_folder_is_made(#[case] arguments: &str, #[case] words: &[&str]) {
    let place = Place::new();
    let output = place.run(FORGETTING, &format!("{arguments} --out study"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(!place.path("study").exists());
}

#[test]
fn results_are_assembled_from_fragments() {
    let place = Place::new();
    let of_workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::create_dir(place.path("results")).unwrap();
    let there = fs::read_dir(of_workspace.join("results")).unwrap().map(Result::unwrap);
    // Drawings lie in folders of their own.
    for fragment in there.filter(|fragment| fragment.path().is_file()) {
        fs::copy(fragment.path(), place.path("results").join(fragment.file_name())).unwrap();
    }
    fs::write(place.path("RESULTS.md"), "my own notes").unwrap();
    place.refused(REPORT, "--results", &["RESULTS.md", "--overwrite"]);
    place.done(REPORT, "--results results --overwrite");
    let page = fs::read(place.path("RESULTS.md")).unwrap();
    assert!(page == fs::read(of_workspace.join("RESULTS.md")).unwrap());
    fs::write(place.path("results/compare.md"), "# Does ∫SPS route better than anything else?\n").unwrap();
    place.refused(REPORT, "--results", &["results/compare.md", "lacks the row", "exp_compare"]);
    assert!(fs::read(place.path("RESULTS.md")).unwrap() == page);
    place.refused(REPORT, "--results gone", &["gone", "No such"]);
}

/// What is no run, and one that has not the numbers of its page, is refused by name.
#[test]
fn a_page_that_cannot_be_drawn_again_is_refused() {
    let place = Place::new();
    place.refused(REPORT, "gone", &["gone", "no such folder"]);
    place.refused(REPORT, ".", &["is no run of exp_phase1, exp_phase2 or exp_scan", "figures.json"]);
    fs::create_dir(place.path("old")).unwrap();
    fs::write(place.path("old/summary.json"), "{}").unwrap();
    place.refused(REPORT, "old", &["old: has no figures.json", "of a version that wrote none", "run it again"]);
    fs::write(place.path("old/figures.json"), "{\"phases\": {\"tasks\": []}}").unwrap();
    place.refused(REPORT, "old", &["old/figures.json", "missing field", "or run it again"]);
    assert!(!place.path("old/report.html").exists());
}

/// Before hours of work, not behind them.
#[rstest]
#[case::a_page_of_the_users("mine.md", &["mine.md", "not written by a comparison", "--overwrite"])]
#[case::no_folder("no/RESULTS.md", &["no: there is no such folder"])]
#[case::a_folder(".", &["no file"])]
fn results_that_could_not_be_written_are_refused_at_first(#[case] results: &str, #[case] words: &[&str]) {
    let place = Place::new();
    fs::write(place.path("mine.md"), "my own notes").unwrap();
    place.refused(COMPARE, &format!("--config grid.toml --out compare --results {results}"), words);
    assert!(!place.path("compare").exists());
    assert_eq!(fs::read_to_string(place.path("mine.md")).unwrap(), "my own notes");
}

#[rstest]
#[case::unknown_key("[best]\nlabel_sources = 1", &["grid.toml", "line 2", "label_sources"])]
#[case::unknown_source("[best]\nlabels = \"spz\"", &["grid.toml", "there is no source `spz`", "activation"])]
#[case::no_seed("seeds = []", &["`seeds`", "is empty"])]
#[case::no_variant("[best]\nvariant = \"Nobody\"", &["variant `Nobody`"])]
fn what_cannot_be_compared(#[case] grid: &str, #[case] words: &[&str]) {
    let place = Place::new();
    fs::write(place.path("grid.toml"), grid).unwrap();
    place.refused(COMPARE, "--config grid.toml --out compare", words);
    assert!(!place.path("compare").exists());
}

/// Text that is not there is refused before anything is begun.
#[test]
fn a_text_that_is_not_there_is_refused_at_once() {
    let place = Place::new();
    let grid = format!("{GRID}{SHAPE}{CELLS}")
        .replace("corpora = [", "corpora = [{ name = \"gone\", data = [\"a=gone.txt\", \"b=b.txt\"] }, ");
    fs::write(place.path("grid.toml"), grid).unwrap();
    place.refused(COMPARE, "--config grid.toml --out compare --jobs 1", &["gone.txt", "no such file"]);
    assert!(!place.path("compare").exists() && !place.path("cache").exists());
}

/// A subject that fails is named with its own words, and the others are kept.
#[test]
fn a_subject_that_fails_fails_alone() {
    let place = Place::new();
    // Enough to divide, too little to train on.
    fs::write(place.path("short.jsonl"), (1..5).map(|at| format!("{{\"text\": \"{at} 2\"}}\n")).collect::<String>())
        .unwrap();
    let grid = format!("{GRID}{SHAPE}{CELLS}")
        .replace("corpora = [", "corpora = [{ name = \"short\", data = [\"a=short.jsonl\", \"b=b.txt\"] }, ");
    fs::write(place.path("grid.toml"), grid).unwrap();
    let words = ["short-3.log", "what is done is kept"];
    let said = place.failed(COMPARE, "--config grid.toml --out compare --jobs 1", &words);
    assert!(said.contains("compare: stopped at 12/24"), "{said}");
    assert_eq!(cells(&place.path("compare")).len(), 2 * 6);
}
