//! Where a training leaves its state, so that it goes on behind a kill: `state-STEP.safetensors`, one file a state.
//!
//! A state holds of every slot the weight θ (under its own name), its moments (`m/NAME`, `v/NAME`) and step counts (`steps/NAME`, u32) as its rule has them, the
//! weights of the best step so far (`best/NAME`) where held-out text is looked at, the biases of a selection, and in its metadata, as JSON under `tinyonn.state`, a version, the step, what was summed up since the last line of the log, and the settings. The batch of a step is a function of seed
//! and step ([`crate::data::Sampler`]), so N steps are n steps, a kill and N − n more, bit for bit on one device.
//!
//! A file is written beside its name and renamed: a kill or a full disk at any moment, on any of several ranks, leaves the states before it.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{TrainState, shared_state};
use crate::checkpoint::{Entry, Held, MappedSafetensors, Order, ParamStore, write_entries};
use crate::differing::differing;
use crate::error::is_full;
use crate::interrupt::Interrupt;
use crate::{Error, Result, files};

/// Where, and how often, a training saves its state.
///
/// The same training called again with the same folder goes on behind the last state; called with other settings, it refuses and names
/// them. Whoever has the result removes the folder.
///
/// ```
/// use candle_core::{Device, Var};
/// use serde_json::json;
/// use tinyonn::checkpoint::Role;
/// use tinyonn::interrupt::Interrupt;
/// use tinyonn::train::checkpoints::{are_in, differences};
/// use tinyonn::train::{Checkpoints, Memory, Saving, Slot, TrainState};
///
/// # let dir = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let dir = dir.path().join("states");
/// let new = || TrainState::new(vec![Slot::new("w", Role::Expert, 0, Var::new(&[1f32], &Device::Cpu)?)], &Memory::DEFAULT);
/// let checkpoints = Checkpoints { dir: dir.clone(), every: 100, keep: 2, interrupt: Interrupt::default() };
/// let saving = Saving { checkpoints: &checkpoints, settings: json!({ "rate": 0.001 }) };
/// let mut state = new()?;
/// state.step = 7;
/// saving.save(&state, json!({ "seen": 5 }))?;
/// assert!(are_in(&dir)?);
///
/// let mut again = new()?;
/// let tally: Option<serde_json::Value> = saving.resume(&mut again)?;
/// assert_eq!((again.step, tally), (7, Some(json!({ "seen": 5 }))));
/// // Under other settings it would be another training.
/// let other = Saving { checkpoints: &checkpoints, settings: json!({ "rate": 0.01 }) };
/// assert!(other.resume::<serde_json::Value>(&mut again).unwrap_err().to_string().contains("`rate` was 0.001 and is 0.01"));
/// assert_eq!(differences(&json!({ "a": 1 }), &json!({ "a": 2 })), ["`a` was 1 and is 2"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// The folder of the states.
    pub dir: PathBuf,
    /// Steps between two states.
    pub every: u64,
    /// How many of the last states stay.
    pub keep: usize,
    /// What may ask the training to stop: it then saves and returns [`Error::Interrupted`].
    pub interrupt: Interrupt,
}

/// The states of one training: where they lie, and what they are of.
#[derive(Debug)]
pub struct Saving<'a> {
    /// Where they lie.
    pub checkpoints: &'a Checkpoints,
    /// What decides every bit of the training, by name.
    pub settings: Value,
}

/// The key of a state's metadata under which [`About`] stands, as JSON.
pub(super) const METADATA: &str = "tinyonn.state";
/// Of what this program writes, and reads.
const VERSION: u32 = 1;
const OPTIMIZER: [&str; 3] = ["m", "v", "steps"];

/// What a state says of itself.
#[derive(Serialize, Deserialize)]
pub(super) struct About {
    version: u32,
    pub(super) step: u64,
    pub(super) tally: Value,
    /// The least value of what is kept beside the last weights, where something is.
    #[serde(default)]
    best: Option<f64>,
    pub(super) settings: Value,
}

/// The tensors of a state, by name.
#[derive(Default)]
pub(super) struct StateTensors {
    /// Those that one rank writes.
    pub(super) whole: Vec<(String, Tensor)>,
    /// Those of which each of several ranks writes a part; of these tensors type and shape alone say something.
    pub(super) shared: Vec<(String, Tensor)>,
    /// The parts of this rank: of which tensor, behind how many of its values, and the values.
    pub(super) owned: Vec<(String, usize, Tensor)>,
}

/// What a state of any version says.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Saving<'_> {
    /// Writes `state`, and `tally` with it; older states than the last [`Checkpoints::keep`] are removed behind that. Of several ranks each writes what it steps into
    /// the one file, which has its name once all have: a state of one rank and a state of several are the same.
    ///
    /// # Errors
    /// The system refuses it: the states before it stay, and the message says so.
    pub fn save(&self, state: &TrainState, tally: Value) -> Result<PathBuf> {
        let (path, tensors) = (place(&self.checkpoints.dir, state.step), state.tensors()?);
        let written = if is_first(state) {
            self.write_state(state, tally, (&path, &tensors))
        } else {
            shared_state::fill(state, &path, &tensors)
        };
        // Others stay until it has its name: whoever ends before that ends what the first one waits for, and a launcher ends all when one has ended.
        written?;
        state.meet()?;
        Ok(path)
    }

    fn write_state(&self, state: &TrainState, tally: Value, (path, tensors): (&Path, &StateTensors)) -> Result<()> {
        let dir = &self.checkpoints.dir;
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let about =
            About { version: VERSION, step: state.step, tally, best: state.best(), settings: self.settings.clone() };
        let written = match state.ranks() {
            Some(_) => shared_state::write(state, path, &about, tensors),
            None => write(path, &about, &tensors.whole),
        };
        written.map_err(|e| {
            let before = match self.states() {
                Ok(states) if !states.is_empty() => {
                    format!("the state of step {} stays", states[states.len() - 1].0)
                }
                _ => "there is no state before it".to_owned(),
            };
            // The file that was being filled has no name that anybody knows.
            let (problem, remedy) = match e {
                Error::Io { source, .. } if is_full(source.kind()) => (source.to_string(), "make room there"),
                Error::Io { source, .. } => (source.to_string(), "mend that"),
                other => (other.to_string(), "mend that"),
            };
            let remedy = format!("{remedy}, and give the same command again; {before}");
            Error::file(path, format!("cannot be written: {problem}"), remedy)
        })?;
        let states = self.states()?;
        for (_, old) in &states[..states.len().saturating_sub(self.checkpoints.keep.max(1))] {
            fs::remove_file(old).map_err(|e| Error::io(old, e))?;
        }
        Ok(())
    }

    /// Puts the last state into `state` and returns its tally; `None` where none was saved.
    ///
    /// # Errors
    /// A state of other settings, which are named, or of another version; a file that is not whole.
    pub fn resume<T: DeserializeOwned>(&self, state: &mut TrainState) -> Result<Option<T>> {
        if is_first(state) {
            self.clear_half_written();
        }
        let Some((saved, about)) = last(&self.checkpoints.dir)? else { return Ok(None) };
        self.refuse_other(&about.settings)?;
        let tally = serde_json::from_value(about.tally).map_err(|e| unreadable(saved.path(), &e))?;
        state.restore((about.step, about.best), &saved)?;
        Ok(Some(tally))
    }

    /// Removes what a process that was killed while it saved had written: its name has that process's number, so that no other one replaces it.
    fn clear_half_written(&self) {
        for entry in fs::read_dir(&self.checkpoints.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".state-") && name.ends_with(".writing") {
                // What cannot be removed is no more than room.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn refuse_other(&self, settings: &Value) -> Result<()> {
        let names = differences(settings, &self.settings);
        if names.is_empty() {
            return Ok(());
        }
        let problem = format!("holds a training that was cut off, of other settings: {}", names.join("; "));
        let remedy = "give those to go on with it, or remove the folder to begin anew";
        Err(Error::file(&self.checkpoints.dir, problem, remedy))
    }

    fn states(&self) -> Result<Vec<(u64, PathBuf)>> {
        states(&self.checkpoints.dir)
    }
}

/// Whether this is the only rank, or the first of several.
fn is_first(state: &TrainState) -> bool {
    state.ranks().is_none_or(|ranks| ranks.rank() == 0)
}

/// Where the state of `step` lies.
pub(super) fn place(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("state-{step:08}.safetensors"))
}

/// Writes a state to `path`, whole or not at all.
pub(super) fn write(path: &Path, about: &About, tensors: &[(String, Tensor)]) -> Result<()> {
    let (about, entries) = (about.json(path)?, entries(tensors)?);
    files::write_with(path, |staged| write_entries(staged, &entries, (METADATA, &about)).map(drop))
}

/// Tensors as the file of a state has them.
pub(super) fn entries(tensors: &[(String, Tensor)]) -> Result<Vec<Entry<'_>>> {
    tensors.iter().map(|(name, tensor)| Entry::of_tensor(name, tensor, Order::Memory)).collect()
}

impl About {
    /// As the metadata of the file `path` hold it.
    pub(super) fn json(&self, path: &Path) -> Result<String> {
        let unfit =
            |e: serde_json::Error| Error::file(path, format!("cannot hold what was summed up: {e}"), "report this");
        serde_json::to_string(self).map_err(unfit)
    }
}

/// The last state in `dir`, and what it says of itself; `None` where there is none.
///
/// # Errors
/// A state of another version; a file that is not whole.
pub(super) fn last(dir: &Path) -> Result<Option<(MappedSafetensors, About)>> {
    let Some((_, path)) = states(dir)?.pop() else { return Ok(None) };
    let saved = MappedSafetensors::open(&path)?;
    let about = saved.metadata(METADATA).ok_or_else(|| Error::file(&path, "says nothing of a training", BEFORE))?;
    let version = serde_json::from_str::<Version>(about).map_err(|e| unreadable(&path, &e))?.version;
    if version != VERSION {
        let problem = format!("is a state of version {version}, this program reads version {VERSION}");
        return Err(Error::file(&path, problem, "go on with the program that wrote it, or remove its folder"));
    }
    let about = serde_json::from_str(about).map_err(|e| unreadable(&path, &e))?;
    Ok(Some((saved, about)))
}

/// What to do about a state that cannot be read.
const BEFORE: &str = "remove it: the state before it serves, if there is one";

fn unreadable(path: &Path, error: &serde_json::Error) -> Error {
    Error::file(path, format!("cannot be read: {error}"), BEFORE)
}

/// Whether `dir` holds a state.
///
/// # Errors
/// A folder that cannot be read.
pub fn are_in(dir: &Path) -> Result<bool> {
    Ok(!states(dir)?.is_empty())
}

/// Steps and files of the states in `dir`, the first one first.
fn states(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(dir, e))?,
    };
    let mut states = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        states.extend(step_of(&path).filter(|_| path.is_file()).map(|step| (step, path)));
    }
    states.sort();
    Ok(states)
}

fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("state-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// `NAME was A and is B` for each setting, named by its path, in which the two differ.
#[must_use]
pub fn differences(was: &Value, is: &Value) -> Vec<String> {
    let said = |(name, was, is): (String, &Value, &Value)| format!("`{name}` was {was} and is {is}");
    differing(was, is).into_iter().map(said).collect()
}

/// SHA-256 of every entry of `store`: a training that goes on must find the weights that it began with.
///
/// # Errors
/// What the device reports.
pub(crate) fn digest(store: &ParamStore) -> Result<String> {
    let mut digest = files::Digest::new();
    for (name, var) in store.iter() {
        digest.text(name);
        digest.bytes(&crate::checkpoint::raw_bytes(name, var)?);
    }
    Ok(digest.hex())
}

/// What a state holds under `name`: of which parameter, and what of it.
pub(super) fn held(name: &str) -> (&str, Held) {
    match name.split_once('/') {
        Some(("m" | "v", parameter)) => (parameter, Held::Moments),
        Some(("steps", parameter)) => (parameter, Held::Counts),
        Some(("best", parameter)) => (parameter, Held::Values),
        _ => (name, Held::Values),
    }
}

/// The names of what is kept of a slot beside its weight.
pub(super) fn optimizer_names(name: &str) -> [String; 3] {
    OPTIMIZER.map(|kind| format!("{kind}/{name}"))
}
