//! The state of a training that several ranks write at once into one file: it is that of one rank, and has its name once all parts are there.
//!
//! The first rank makes the file under another name, with its header and room for all values, and tells the others where values begin and which process named it.
//! Each writes the values that it steps where they belong; when all have, the first one renames the file. Whoever cannot write ends, and all others with it: the
//! file never has its name.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use candle_core::Tensor;

use super::TrainState;
use super::checkpoints::{About, METADATA, StateTensors, entries};
use crate::checkpoint::{begin_entries, places, raw_bytes};
use crate::ops::host;
use crate::ranks::Collective;
use crate::{Error, Result, files};

/// The part of the first rank: it makes the file, writes what is its own and what is whole, waits for all, and gives the file its name.
pub(super) fn write(state: &TrainState, path: &Path, about: &About, tensors: &StateTensors) -> Result<()> {
    let (about, layout) = (about.json(path)?, Layout::of(tensors)?);
    files::write_with(path, |staged| {
        let before = begin_entries(staged, &entries(&layout.tensors)?, (METADATA, &about))?;
        told(state, [before as f64, f64::from(std::process::id())])?;
        let whole = tensors.whole.iter().map(|(name, values)| (name, 0, values));
        layout.fill(staged, before, whole.chain(owned(tensors)))?;
        state.meet()
    })
}

/// The part of any other rank.
pub(super) fn fill(state: &TrainState, path: &Path, tensors: &StateTensors) -> Result<()> {
    let layout = Layout::of(tensors)?;
    let [before, process] = told(state, [0.0; 2])?;
    let staged = files::staged_by(path, process as u32)?;
    layout.fill(&staged, before as u64, owned(tensors))?;
    state.meet()
}

fn owned(tensors: &StateTensors) -> impl Iterator<Item = (&String, usize, &Tensor)> {
    tensors.owned.iter().map(|(name, from, values)| (name, *from, values))
}

/// What the first rank says; the others say nothing.
fn told(state: &TrainState, own: [f64; 2]) -> Result<[f64; 2]> {
    let nobody = || Error::setting("ranks", "there are no others", "report this");
    let ranks: &dyn Collective = state.ranks().ok_or_else(nobody)?.as_ref();
    let said = host::read(&[&ranks.all_reduce(&Tensor::new(&own, state.finite().device())?)?])?.concat();
    Ok(said.try_into().unwrap_or(own))
}

/// Where each tensor of a file lies.
struct Layout {
    tensors: Vec<(String, Tensor)>,
    places: HashMap<String, u64>,
}

impl Layout {
    fn of(tensors: &StateTensors) -> Result<Self> {
        let tensors: Vec<(String, Tensor)> = tensors.whole.iter().chain(&tensors.shared).cloned().collect();
        let places = places(&entries(&tensors)?);
        Ok(Self { tensors, places })
    }

    /// Writes parts of tensors, each with its name and the number of values before it, into a file whose values begin behind `before` bytes.
    fn fill<'a>(
        &self,
        path: &Path,
        before: u64,
        parts: impl Iterator<Item = (&'a String, usize, &'a Tensor)>,
    ) -> Result<()> {
        let io = |e| Error::io(path, e);
        let mut file: File = OpenOptions::new().write(true).open(path).map_err(io)?;
        for (name, from, values) in parts {
            let missing = || Error::tensor(name, "has no place in the state", "report this");
            let start = before + self.places.get(name).ok_or_else(missing)?;
            let at = start + (from * values.dtype().size_in_bytes()) as u64;
            let bytes = raw_bytes(name, values)?;
            file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&bytes)).map_err(io)?;
        }
        file.sync_all().map_err(io)
    }
}
