//! Back to a plain dense folder: upcycling never touched a dense weight, so taking the routers away restores the model.

use std::path::Path;

use candle_core::Device;
use serde_json::Value;

use super::folder::ModelFolder;
use super::params::expected_tensors;
use super::replicas::is_delta;
use super::store::ParamStore;
use super::tinyonn_folder::{TinyOnnFolder, dense_config};
use crate::{Error, Result};

/// Writes the dense model of the Tiny-ONN folder `from` to the new folder `to`: each weight byte for byte as stored, the dense
/// model's own configuration, the tokenizer's files. Partition and routers are left behind: the result runs all experts.
///
/// # Errors
/// `from` is no Tiny-ONN folder; `to` exists and is not empty; the system refuses a file.
pub fn export_dense(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (config, store) = dense_parts(&from)?;
    ModelFolder::save(to, &config, &store, Some(from.as_ref()))
}

/// What [`export_dense`] writes beside the tokenizer: the dense model's `config.json` and its weights as they are stored.
///
/// # Errors
/// `from` is no Tiny-ONN folder; replicas that have learnt.
pub fn dense_parts(from: impl AsRef<Path>) -> Result<(Value, ParamStore)> {
    let source = TinyOnnFolder::open(from)?;
    let dense = expected_tensors(source.arch());
    let mut store = source.load(&Device::Cpu, None)?;
    if let Some(delta) = store.names().find(|name| is_delta(name)) {
        let remedy = "keep the Tiny-ONN checkpoint: replicas that have learnt are no longer one dense MLP";
        return Err(Error::tensor(delta, "is what an expert has learnt, which a dense model has no place for", remedy));
    }
    let extra: Vec<String> = store.names().filter(|name| !dense.contains_key(*name)).map(str::to_owned).collect();
    for name in extra {
        store.remove(&name);
    }
    source.folder().restore_head(&mut store)?;
    Ok((dense_config(source.folder().config()), store))
}
