//! Runs that are killed at any moment: the same command goes on, and what comes of it in the end is what would have come of it at once.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::Value;
use tinyonn::checkpoint::MappedSafetensors;
use tinyonn::metrics;

use super::{PHASE2, Place, UPCYCLE, assert_done, assert_failed, assert_refused, run_cramped};

/// Pretraining and SMK in small steps.
const RUN: &str = "cache = \"cache\"\nlength = 16\nscan_tokens = 300\ntest_tokens = 200\n[dense]\nvocab_size = 280\nhidden_size = 16\n\
    intermediate_size = 120\nnum_hidden_layers = 1\n[pretrain]\nsteps = 80\nbatch = 2\nwarmup = 10\n[router]\nsteps = 2\n[smk]\nsteps = 400\n\
    batch = 2";
const ARGUMENTS: &str = "--data a=a.txt --data b=b.txt --config run.toml --out out --save-every 1";
const EVERY: u64 = 1;
/// Its steps.
const PRETRAINING: u64 = 80;
const KILLS: usize = 50;

/// SplitMix64: the moments need no better one.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

/// When a process is killed.
#[derive(Debug)]
enum Moment {
    /// So long after its start.
    After(Duration),
    /// So long after it saved so many states.
    Saved(u64, Duration),
    /// As it writes a state.
    Saving,
}

impl Moment {
    fn draw(random: &mut Random) -> Self {
        let micros = |random: &mut Random, most: u64| Duration::from_micros(random.below(most));
        match random.below(5) {
            0 => Self::After(micros(random, 150_000)),
            1 | 2 => Self::Saving,
            _ => Self::Saved(1 + random.below(3), micros(random, 4_000)),
        }
    }

    /// Returns at that moment, or when the process has ended.
    fn wait(&self, place: &Place, child: &mut Child) {
        let started = Instant::now();
        let had = last(place);
        while child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_mins(2), "{self:?} does not come");
            // On a fast disk a state may be written unseen: whatever was waited for, the chain is to have its kills.
            let came_on = last(place).saturating_sub(had);
            match self {
                Self::Saved(count, time) if came_on >= *count => return std::thread::sleep(*time),
                Self::Saved(..) => std::thread::yield_now(),
                _ if came_on >= 3 => return,
                Self::After(time) if started.elapsed() >= *time => return,
                Self::Saving if is_writing(place) => return,
                _ => std::thread::yield_now(),
            }
        }
    }
}

/// The folders of the states: of pretraining and of SMK.
fn folders(place: &Place) -> [Vec<PathBuf>; 2] {
    let cached = fs::read_dir(place.path("cache")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let staged = cached.filter(|path| path.extension().is_some_and(|end| end == "pretraining"));
    [staged.map(|path| path.join("states")).collect(), vec![place.path(".out.states")]]
}

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_writing(place: &Place) -> bool {
    let is_half = |path: PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".state-");
    folders(place).iter().flatten().flat_map(|dir| files(dir)).any(is_half)
}

/// Steps and files of the states in `dir`.
fn states(dir: &Path) -> Vec<(u64, PathBuf)> {
    let step =
        |path: &Path| path.file_name()?.to_str()?.strip_prefix("state-")?.strip_suffix(".safetensors")?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> = files(dir).filter_map(|path| Some((step(&path)?, path))).collect();
    found.sort();
    found
}

/// Steps that are saved, in both trainings: SMK begins when pretraining is done.
fn last(place: &Place) -> u64 {
    let [pretraining, smk] = folders(place);
    let step = |dirs: &[PathBuf]| dirs.iter().flat_map(|dir| states(dir)).map(|(step, _)| step).max();
    match (step(&smk), step(&pretraining)) {
        (Some(step), _) => PRETRAINING + step,
        (None, Some(step)) => step,
        (None, None) => {
            if place.path("cache").exists() && files(&place.path("cache")).any(|dir| dir.join("config.json").exists()) {
                PRETRAINING
            } else {
                0
            }
        }
    }
}

/// What a kill left can be gone on from: states are whole and say the step of their name, the log is ahead of them by no more than the interval.
fn assert_whole(place: &Place, before: u64) {
    assert!(last(place) >= before, "a state is gone: {} of {before}", last(place));
    let logs = |dir: &Path, stage: &str| match stage {
        "smk" => dir.join("metrics.jsonl"),
        _ => dir.with_file_name("pretrain.jsonl"),
    };
    for (stage, dirs) in ["pretrain", "smk"].into_iter().zip(folders(place)) {
        for dir in dirs {
            let states = states(&dir);
            for (step, path) in &states {
                let state = MappedSafetensors::open(path).unwrap();
                let about: Value = serde_json::from_str(state.metadata("tinyonn.state").unwrap()).unwrap();
                assert_eq!(about["step"], *step);
            }
            let log = logs(&dir, stage);
            let logged = if log.exists() { metrics::read(&log).unwrap() } else { Vec::new() };
            let reached = logged.iter().filter(|record| record.stage == stage).map(|record| record.step + 1).max();
            let saved = states.last().map_or(0, |(step, _)| *step);
            assert!(saved + EVERY >= reached.unwrap_or(0), "{stage}: saved {saved}, and reached {reached:?}");
        }
    }
}

/// Where `stage` began, of what the program said.
fn began(said: &str, stage: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.starts_with(&format!("{stage}: begins at ")))?;
    line.rsplit_once("at ")?.1.split_once('/')?.0.parse().ok()
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bits() {
    let seed = std::env::var("TINYONN_KILLS_SEED").map_or(0, |seed| seed.parse().unwrap());
    println!("TINYONN_KILLS_SEED={seed}");
    let (at_once, killed) = (Place::new(), Place::new());
    for place in [&at_once, &killed] {
        fs::write(place.path("run.toml"), RUN).unwrap();
    }
    assert_done(&at_once.run(PHASE2, ARGUMENTS));
    let mut random = Random(seed);
    let (mut kills, mut while_saving) = (0, 0);
    let mut begin = 0;
    while kills < KILLS && !killed.path("out").exists() {
        let moment = Moment::draw(&mut random);
        let said = killed.path("said");
        let mut child = killed
            .command(PHASE2, ARGUMENTS)
            .stderr(fs::File::create(&said).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        moment.wait(&killed, &mut child);
        let before = last(&killed);
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        while_saving += usize::from(is_writing(&killed));
        println!("{moment:?}: {} steps are saved", last(&killed));
        if killed.path("out").exists() {
            break;
        }
        assert_whole(&killed, before);
        // It went on behind the last state that the kill before had left.
        let said = fs::read_to_string(&said).unwrap();
        for (stage, offset) in [("pretraining", 0), ("Surprise Min-K", PRETRAINING)] {
            if let Some(step) = began(&said, stage) {
                assert_eq!(step, begin.max(offset) - offset, "{said}");
            }
        }
        begin = last(&killed);
    }
    println!("{kills} kills, {while_saving} of them within the writing of a state");
    fs::remove_file(killed.path("said")).unwrap();
    assert!(while_saving > 0 && kills > KILLS / 2, "{kills} kills, {while_saving} while a state was written");
    if !killed.path("out").exists() {
        assert_done(&killed.run(PHASE2, ARGUMENTS));
    }
    assert_same(&killed, &at_once);
}

/// Weights, log and figures, and what else lies there.
fn assert_same(killed: &Place, at_once: &Place) {
    let read = |place: &Place, name: &str| fs::read(place.path("out").join(name)).unwrap();
    for name in ["tiny-onn/model.safetensors", "metrics.jsonl"] {
        assert!(read(killed, name) == read(at_once, name), "{name} differs");
    }
    let figures = |place: &Place| {
        let mut summary: Value = serde_json::from_slice(&read(place, "summary.json")).unwrap();
        summary.as_object_mut().unwrap().remove("seconds");
        summary
    };
    assert_eq!(figures(killed), figures(at_once));
    let left = |place: &Place| -> Vec<String> {
        let entries = [place.path("."), place.path("cache")].into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(left(killed), left(at_once));
}

/// Killed when the old folder had been put aside and the new one had no name yet.
#[rstest]
#[case(UPCYCLE, "--model dense --variant TinyOnn --out out")]
#[case(PHASE2, "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out")]
fn an_old_folder_that_was_put_aside_is_there_before_work_begins(#[case] program: &str, #[case] arguments: &str) {
    let place = Place::new();
    fs::write(place.path("run.toml"), super::RUN).unwrap();
    assert_done(&place.run(program, arguments));
    let whole = place.files();
    let put_aside = || fs::rename(place.path("out"), place.path(".out.replaced")).unwrap();
    put_aside();
    assert_refused(&place.run(program, arguments), &["out: exists and is not empty", "--overwrite"]);
    assert_eq!(place.files(), whole);
    put_aside();
    assert_done(&place.run(program, &format!("{arguments} --overwrite")));
    assert_eq!(place.files(), whole);
}

/// A state is larger than all that is written before it.
#[rstest]
#[case::of_pretraining(0, "the state of step ")]
#[case::of_smk(1, "the state of step ")]
#[case::the_first(2, "there is no state before it")]
fn a_full_disk_keeps_the_state_before_it(#[case] stage: usize, #[case] before: &str) {
    let (at_once, full) = (Place::new(), Place::new());
    for place in [&at_once, &full] {
        fs::write(place.path("run.toml"), RUN.replace("intermediate_size = 120", "intermediate_size = 400")).unwrap();
    }
    assert_done(&at_once.run(PHASE2, ARGUMENTS));
    let saved =
        |place: &Place| folders(place).get(stage).into_iter().flatten().flat_map(|dir| states(dir)).collect::<Vec<_>>();
    if stage < 2 {
        let mut child = full.command(PHASE2, ARGUMENTS).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while saved(&full).is_empty() && started.elapsed() < Duration::from_mins(2) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let had = saved(&full);
    let words =
        ["state-", "cannot be written: File too large", "make room there, and give the same command again", before];
    let output = run_cramped(&full, PHASE2, ARGUMENTS, 170);
    assert_failed(&output, &words);
    assert_eq!(saved(&full), had);
    if let Some((step, _)) = had.last() {
        assert_failed(&output, &[&format!("the state of step {step} stays")]);
    }
    assert!(!is_writing(&full));
    assert_done(&full.run(PHASE2, ARGUMENTS));
    assert_same(&full, &at_once);
}
