//! Back to a plain dense folder: upcycling never touched a dense weight, so taking the routers away restores the model.

use std::path::Path;

use super::folder::ModelFolder;
use super::not_finite::NotFinite;
use super::params::{HEAD, expected_tensors};
use super::replicas::is_delta;
use super::tinyonn_folder::{TinyOnnFolder, dense_config};
use super::upcycle::copy_entries;
use crate::files::StagedFolder;
use crate::{Error, Result};

/// Writes the dense model of the Tiny-ONN folder `from` to the new folder `to`: each weight byte for byte as stored, the dense
/// model's own configuration, the tokenizer's files. Partition and routers are left behind: the result runs all experts.
///
/// # Errors
/// `from` is no Tiny-ONN folder; replicas that have learnt; `to` exists and is not empty; the system refuses a file.
pub fn export_dense(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let staged = StagedFolder::new(to)?;
    export_dense_into(from, &staged)?;
    staged.publish()
}

/// As [`export_dense`], into the folder `staged`, tensor by tensor; the tensors that hold values that are no finite numbers, and how many.
///
/// # Errors
/// As of [`export_dense`].
pub fn export_dense_into(from: impl AsRef<Path>, staged: &StagedFolder) -> Result<NotFinite> {
    let source = TinyOnnFolder::open(from)?;
    let folder: &ModelFolder = source.folder();
    let dense = expected_tensors(source.arch());
    if let Some((delta, _)) = folder.tensors().find(|(name, _)| is_delta(name)) {
        let remedy = "keep the Tiny-ONN checkpoint: replicas that have learnt are no longer one dense MLP";
        return Err(Error::tensor(delta, "is what an expert has learnt, which a dense model has no place for", remedy));
    }
    // A head that is stored though it is tied was there when the dense model came.
    let copied = |name: &str| dense.contains_key(name) || name == HEAD;
    copy_entries(folder, staged, &dense_config(folder.config()), copied, None)
}
