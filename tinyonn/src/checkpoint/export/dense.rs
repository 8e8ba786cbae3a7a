//! Back to a plain dense folder: upcycling never touched a dense weight, so taking the routers away restores the model.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::contents::{Contents, repair_name, tensor};
use super::write_folder;
use crate::checkpoint::mmap::TensorInfo;
use crate::checkpoint::not_finite::NotFinite;
use crate::checkpoint::params::{HEAD, expected_tensors, mixture_prefix};
use crate::checkpoint::replicas::base_name;
use crate::checkpoint::tinyonn_folder::{TinyOnnFolder, dense_config};
use crate::files::StagedFolder;
use crate::model::ActiveMode;
use crate::moe::{Combine, KEPT, Neurons, REPAIR, REPAIR_DOWN};
use crate::{Error, Result};

/// Writes the dense model of the Tiny-ONN folder `from` to the new folder `to`: each weight byte for byte as stored, the dense
/// model's own configuration, the tokenizer's files. Partition, routers and choices of neurons are left behind: the result runs all experts.
///
/// ```
/// use tinyonn::checkpoint::{ModelFolder, export_dense, upcycle_folder};
/// use tinyonn::files::StagedFolder;
/// use tinyonn::imaging::Partition;
/// use tinyonn::moe::variant;
///
/// # let parent = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let [sparse, back] = ["sparse", "back"].map(|name| parent.path().join(name));
/// # let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let (dense, staged) = (ModelFolder::open(dense)?, StagedFolder::new(&sparse)?);
/// let arch = dense.arch()?;
/// let owners = vec![(0..arch.intermediate_size).map(|i| i as u32 % 8).collect(); arch.num_hidden_layers];
/// upcycle_folder(&dense, &staged, variant("Mixtral")?, (Partition::Random, &owners), 0)?;
/// staged.publish()?;
/// export_dense(&sparse, &back)?;
/// assert_eq!(ModelFolder::open(&back)?.sha256()?, dense.sha256()?); // not a bit has changed
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `from` is no Tiny-ONN folder; replicas that have learnt and are dispatched; `to` exists and is not empty; the system refuses a file.
pub fn export_dense(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let staged = StagedFolder::new(to)?;
    export_dense_into(from, &staged)?;
    staged.publish()
}

/// As [`export_dense`], into the folder `staged`, tensor by tensor; the tensors that hold values that are no finite numbers, and how many.
///
/// ```
/// use tinyonn::checkpoint::export_dense_into;
/// use tinyonn::files::StagedFolder;
///
/// fn export(from: &str, to: &str) -> tinyonn::Result<()> {
///     let staged = StagedFolder::new(to)?;
///     for (name, values) in export_dense_into(from, &staged)? {
///         eprintln!("{name} holds {values} values that are no finite numbers");
///     }
///     staged.publish()
/// }
/// # let _ = export;
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// As of [`export_dense`].
pub fn export_dense_into(from: impl AsRef<Path>, staged: &StagedFolder) -> Result<NotFinite> {
    let source = TinyOnnFolder::open(from)?;
    write(&source, &Contents::of(&source)?, staged, Some(ActiveMode::All)).map(|(_, not_finite)| not_finite)
}

/// The dense weights, all active; or, of a fixed set of neurons in its routed pass, what that computes.
pub(super) fn write(
    source: &TinyOnnFolder,
    contents: &Contents,
    staged: &StagedFolder,
    active: Option<ActiveMode>,
) -> Result<(Vec<String>, NotFinite)> {
    let spec = &source.variant().spec;
    if spec.neurons == Neurons::Pruned && !contents.repaired.is_empty() && active.is_none() {
        let problem = "its fixed set of neurons was repaired, and a dense model holds either the weights or the repair";
        let remedy = "say which: --active all for the weights as they are, --active routed for the kept neurons and their repair";
        return Err(Error::variant(spec.name.clone(), problem, remedy));
    }
    let routed = active.unwrap_or(source.config().active) == ActiveMode::Routed;
    let (made, left_out) = if spec.neurons == Neurons::Pruned && routed {
        contents.refuse_bias("a dense model")?;
        (pruned(source)?, Vec::new())
    } else {
        (merged(source, contents)?, contents.left_out_all_active(source))
    };
    let dense = expected_tensors(source.arch());
    // A head that is stored though it is tied was there when the dense model came.
    let copied = |name: &str| dense.contains_key(name) || name == HEAD;
    let config = dense_config(source.folder().config());
    Ok((left_out, write_folder(source.folder(), staged, &config, copied, &made)?))
}

/// W_d of every layer, of which the neurons that are not kept have zeros, `[d, I]`, and what else a repair moves.
fn pruned(source: &TinyOnnFolder) -> Result<Vec<(String, Tensor)>> {
    let mut made = Vec::new();
    for layer in 0..source.arch().num_hidden_layers {
        let name = format!("{}.down_proj.weight", mixture_prefix(layer));
        let kept = repair_name(layer, KEPT);
        let (Some(down_di), Some(kept_i)) = (tensor(source, &name)?, tensor(source, &kept)?) else {
            return Err(Error::tensor(kept, "is missing", "calibrate the model again with exp_sparsify"));
        };
        let repaired_di = match tensor(source, &repair_name(layer, REPAIR_DOWN))? {
            Some(delta_id) => (down_di + delta_id.t()?)?,
            None => down_di,
        };
        made.push((name.clone(), as_stored(source, &name, &repaired_di.broadcast_mul(&kept_i)?)?));
        for (projection, delta) in ["gate_proj", "up_proj"].into_iter().zip(REPAIR) {
            let name = format!("{}.{projection}.weight", mixture_prefix(layer));
            if let (Some(w_id), Some(delta_id)) = (tensor(source, &name)?, tensor(source, &repair_name(layer, delta))?)
            {
                made.push((name.clone(), as_stored(source, &name, &(w_id + delta_id)?)?));
            }
        }
    }
    Ok(made)
}

/// W + Σ ΔW_n / N of every weight to which a replica adds something: what replicas that are merged compute, all active.
fn merged(source: &TinyOnnFolder, contents: &Contents) -> Result<Vec<(String, Tensor)>> {
    let (spec, folder) = (&source.variant().spec, source.folder());
    let Some(delta) = &contents.delta else { return Ok(Vec::new()) };
    if spec.combine != Combine::Merge {
        let remedy =
            "keep the Tiny-ONN checkpoint: replicas that have learnt and are dispatched are no longer one dense MLP";
        return Err(Error::tensor(delta, "is what an expert has learnt, which a dense model has no place for", remedy));
    }
    let mut made: Vec<(String, Tensor)> = Vec::new();
    for name in expected_tensors(source.arch()).into_keys() {
        let deltas =
            folder.tensors().map(|(other, _)| other).filter(|other| *other != name && base_name(other) == name);
        let mut sum: Option<Tensor> = None;
        for delta in deltas {
            let Some(delta) = tensor(source, delta)? else { continue };
            sum = Some(sum.map_or(Ok(delta.clone()), |sum| sum + delta)?);
        }
        if let (Some(sum), Some(base)) = (sum, tensor(source, &name)?) {
            let mean = (sum / spec.experts().max(1) as f64)?;
            made.push((name.clone(), as_stored(source, &name, &(base + mean)?)?));
        }
    }
    Ok(made)
}

/// A tensor in the type in which `name` is stored.
pub(super) fn as_stored(source: &TinyOnnFolder, name: &str, tensor: &Tensor) -> Result<Tensor> {
    let stored = source.folder().source().info(name).and_then(TensorInfo::computed);
    Ok(tensor.to_dtype(stored.unwrap_or(DType::F32))?.to_device(&Device::Cpu)?.contiguous()?)
}
