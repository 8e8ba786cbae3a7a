//! A training of a model that grew goes on where it was: its state on disk becomes one of the larger model ([`Expansion`]).
//!
//! What learns grows as the model does. Moments and step counts go with the rows that they are of: slices that share their parent's neurons keep all of
//! them; new neurons begin with moments of zero at step zero; a replica's child, and the choice of a router that learns, have copies of their
//! parent's. The number of the step stays, so that the next batch is the one that would have come.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::checkpoints::{About, differences, digest, held, last, place, write};
use crate::checkpoint::{Expansion, Held, MappedSafetensors, ParamStore};
use crate::{Error, Result};

/// Writes into the folder `to`, which is made, the state of a training of the model that `expansion` grows, made of the last one in `from`; returns the number of its
/// step. [`train_smk`](super::train_smk) over `store` with the settings that it had goes on behind that step. `store` is what the expansion makes of the
/// weights that the old training began with; their values are the state's.
///
/// ```
/// use std::path::Path;
/// use tinyonn::checkpoint::{Expansion, ParamStore};
/// use tinyonn::train::{expand_state, refit_state};
///
/// /// The store of the grown model, and behind which step its training goes on.
/// fn grow(young: &ParamStore, expansion: &Expansion<'_>, [from, to, refitted]: [&Path; 3]) -> tinyonn::Result<(ParamStore, u64)> {
///     let grown = expansion.store(young)?;
///     expand_state(from, to, expansion, &grown)?;
///     // … routers are fitted anew in `grown` …
///     let step = refit_state(to, refitted, &grown)?;
///     Ok((grown, step))
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A folder without a state; a state of another model than the expansion is for, or of a training that is none of experts; whatever the system
/// reports.
pub fn expand_state(from: &Path, to: &Path, expansion: &Expansion<'_>, store: &ParamStore) -> Result<u64> {
    let (saved, mut about) = state_in(from)?;
    let [own, grown] = expansion.variants();
    let described = json!({ "model": expansion.arch_before().to_json(), "variant": own.spec });
    let its = |key: &str| about.settings.get(key).cloned().unwrap_or(Value::Null);
    let other = differences(&json!({ "model": its("model"), "variant": its("variant") }), &described);
    if let Some(first) = other.first() {
        let problem = format!("is of another model than the one that grows: {first}");
        return Err(Error::file(saved.path(), problem, "grow the model that the training was of"));
    }
    about.settings["model"] = expansion.arch().to_json();
    about.settings["variant"] = json!(grown.spec);
    // Of the experts that there were: what is counted from here on is of those that there are.
    about.tally["load"] = json!([]);
    about.tally["since_recycling"] = json!([]);
    carried((&saved, about), to, store, |parameter, value, kind| expansion.grown(parameter, value, kind))
}

/// The same of a training whose routers do not learn and were fitted anew in `store`: it goes on with them, from the last state in `from`.
///
/// # Errors
/// A folder without a state; whatever the system reports.
pub fn refit_state(from: &Path, to: &Path, store: &ParamStore) -> Result<u64> {
    let (saved, about) = state_in(from)?;
    carried((&saved, about), to, store, |parameter, value, _| Ok(vec![(parameter.to_owned(), value.clone())]))
}

fn state_in(dir: &Path) -> Result<(MappedSafetensors, About)> {
    last(dir)?.ok_or_else(|| {
        Error::file(dir, "holds no state", "name the folder of the states of a training that was stopped")
    })
}

/// Writes a state over `store`, of which `becomes` says what each tensor of the old one turns into.
fn carried(
    (saved, mut about): (&MappedSafetensors, About),
    to: &Path,
    store: &ParamStore,
    becomes: impl Fn(&str, &Tensor, Held) -> Result<Vec<(String, Tensor)>>,
) -> Result<u64> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for name in saved.names() {
        let (parameter, kind) = held(name);
        let kept = &name[..name.len() - parameter.len()];
        let values = becomes(parameter, &saved.load(name, &Device::Cpu)?, kind)?.into_iter();
        tensors.extend(values.map(|(parameter, value)| (format!("{kept}{parameter}"), value)));
    }
    about.settings["weights"] = json!(digest(store)?);
    std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    write(&place(to, about.step), &about, &tensors)?;
    Ok(about.step)
}
