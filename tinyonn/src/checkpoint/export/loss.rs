//! What an export loses: the checkpoint and what was written of it, read back, compared on tokens.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use super::mixture_folder::load_mixture;
use super::{ExportFormat, Exported};
use crate::checkpoint::loaded::{LoadedModel, load_model};
use crate::checkpoint::tinyonn_folder::TinyOnnFolder;
use crate::checkpoint::verify::compare;
use crate::decoder::{Ask, Pass};
use crate::model::ActiveMode;
use crate::ops::host;
use crate::{Error, Result};

/// How far an export is from the checkpoint that it was made of, both computing in f32.
///
/// ```
/// use tinyonn::checkpoint::export::ExportLoss;
///
/// fn is_too_much(loss: &ExportLoss, most: f64) -> bool {
///     !loss.bit_equal && (loss.kl_divergence > most || loss.routing_agreement.is_some_and(|share| share < 0.9))
/// }
/// # let _ = is_too_much;
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportLoss {
    /// Tokens compared.
    pub tokens: usize,
    /// KL(checkpoint‖export) in nats, the mean over tokens.
    pub kl_divergence: f64,
    /// The share of tokens whose most probable next token is the same.
    pub top1_agreement: f64,
    /// max |Δlogit|.
    pub max_abs_difference: f64,
    /// Every logit has the same bits.
    pub bit_equal: bool,
    /// Where routers choose in both: experts taken by both over experts taken by either, the mean over tokens and layers.
    pub routing_agreement: Option<f64>,
}

/// Holds what lies in the folder `dir` against its `source`, in the mode that it stands for, on token ids `[B, T]`.
///
/// # Errors
/// A checkpoint that is routed by tasks, which tokens do not say; what keeps either from being read.
pub fn measure(
    source: &TinyOnnFolder,
    exported: &Exported,
    dir: &Path,
    ids: &Tensor,
    device: &Device,
) -> Result<ExportLoss> {
    let ours = match load_model(source.folder().dir(), device, Some(DType::F32))? {
        LoadedModel::TinyOnn(model, _) => LoadedModel::TinyOnn(model, exported.active),
        dense @ LoadedModel::Dense(_) => dense,
    };
    if ours.needs_tasks(exported.active) {
        let problem = format!(
            "`{}` is routed by the task of each sequence, which a text does not name",
            source.variant().spec.name
        );
        return Err(Error::setting("--active", problem, "export it all active (--active all)"));
    }
    let theirs = match exported.format {
        ExportFormat::Dense | ExportFormat::TinyOnn => load_model(dir, device, Some(DType::F32))?,
        ExportFormat::Qwen3Moe | ExportFormat::Mixtral => load_mixture(dir, device)?,
    };
    let comparison = compare(&ours, &theirs, ids, None, 1)?;
    let routed = exported.active == ActiveMode::Routed
        && exported.format != ExportFormat::Dense
        && !source.variant().spec.levels.is_empty();
    Ok(ExportLoss {
        tokens: comparison.tokens,
        kl_divergence: comparison.kl_divergence,
        top1_agreement: comparison.top1_agreement,
        max_abs_difference: comparison.max_abs_difference,
        bit_equal: comparison.bit_equal,
        routing_agreement: if routed { Some(routing_agreement(&ours, &theirs, ids)?) } else { None },
    })
}

/// |A ∩ B| / |A ∪ B| of the experts that the two take, the mean over tokens and layers.
fn routing_agreement(a: &LoadedModel, b: &LoadedModel, ids: &Tensor) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for row in 0..ids.dim(0)? {
        let ids = ids.narrow(0, row, 1)?;
        for (a, b) in gates(a, &ids)?.into_iter().zip(gates(b, &ids)?) {
            let (tokens, experts) = a.dims2()?;
            let [a, b] = [host::in_memory(&a)?, host::in_memory(&b)?];
            for (a, b) in a.chunks(experts.max(1)).zip(b.chunks(experts.max(1))) {
                let taken = |both: &dyn Fn(bool, bool) -> bool| {
                    a.iter().zip(b).filter(|(a, b)| both(**a != 0.0, **b != 0.0)).count() as f64
                };
                sum += taken(&|a, b| a && b) / taken(&|a, b| a || b).max(1.0);
            }
            count += tokens;
        }
    }
    Ok(sum / count.max(1) as f64)
}

/// The gates `[T, N]` of every layer, f32.
fn gates(model: &LoadedModel, ids: &Tensor) -> Result<Vec<Tensor>> {
    let pass = Pass { ask: Ask { gates: true, ..Ask::default() }, ..model.active().pass() };
    let (_, traces) = model.traced_logits(ids, &pass)?;
    let gates = traces.into_iter().filter_map(|trace| trace.gates);
    Ok(gates.map(|gate_tn| gate_tn.to_dtype(DType::F32)).collect::<candle_core::Result<_>>()?)
}
