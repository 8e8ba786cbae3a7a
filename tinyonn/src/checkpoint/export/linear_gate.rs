//! The linear part of a layer's routers: one row an expert, so that W x orders experts as one flat softmax gate does.
//!
//! Row n is the sum over the levels of the row of n's node. Of a linear router that is its row of W, or of W P; of a Gaussian one (s/r) Pᵀ (μ_c ⊙ λ), λ the mean over its choices of
//! 1/σ²: what is left of the log-density beside its square, which cancels where choices share their variances, and its constant. Constants (biases, ‖μ‖², priors), the
//! differences of variances, and the normalisation of each level by itself are lost: nothing is, for one level whose constants agree.
//!
//! Legend: d hidden, r routing width, p routers of a run, c choices of each, n experts.

use candle_core::Tensor;

use super::contents::tensor;
use crate::checkpoint::params::mixture_prefix;
use crate::checkpoint::tinyonn_folder::TinyOnnFolder;
use crate::moe::gaussian::below_diagonal;
use crate::moe::{Covariance, GaussianSpec, Project, Reduce, RouterKind, RouterSpec};
use crate::{Error, Result};

/// The gate `[n, d]` of a layer, f32.
///
/// # Errors
/// A cosine router, or one of a type of the user's: they have no linear part.
pub(super) fn linear_gate(source: &TinyOnnFolder, layer: usize) -> Result<Tensor> {
    let spec = &source.variant().spec;
    let mut gate_nd: Option<Tensor> = None;
    for (level, declared) in spec.levels.iter().enumerate() {
        let runs = declared.routers.iter().map(|run| rows(source, layer, run)).collect::<Result<Vec<_>>>()?;
        let nodes: Vec<u32> = spec.node_of_experts(level).into_iter().map(|node| node as u32).collect();
        let nodes_n = Tensor::new(nodes.as_slice(), &candle_core::Device::Cpu)?;
        let of_experts_nd = Tensor::cat(&runs, 0)?.index_select(&nodes_n, 0)?;
        gate_nd = Some(gate_nd.map_or(Ok(of_experts_nd.clone()), |sum| sum + of_experts_nd)?);
    }
    gate_nd.ok_or_else(|| Error::variant(spec.name.clone(), "it has no routers", "export it all active"))
}

/// The rows `[p·c, d]` of a run of equal routers.
fn rows(source: &TinyOnnFolder, layer: usize, run: &RouterSpec) -> Result<Tensor> {
    let part = |part: &str| {
        let name = format!("{}.{}_router.{part}", mixture_prefix(layer), run.name);
        tensor(source, &name)?.ok_or_else(|| Error::tensor(name, "is missing", "upcycle the dense model again"))
    };
    let none = |kind: &str| {
        let problem = format!("its `{}_router` is {kind}, which no linear gate stands for", run.name);
        let remedy = "export it as `tinyonn` where that covers it, or all active (--active all)";
        Err(Error::variant(source.variant().spec.name.clone(), problem, remedy))
    };
    match &run.kind {
        RouterKind::Linear | RouterKind::Random => part("weight"),
        RouterKind::LowRank { .. } => {
            let owner = source.variant().spec.shared_projection(source.arch().hidden_size).map_or("", |(run, _)| run);
            let name = format!("{}.{owner}_router.projection", mixture_prefix(layer));
            let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
            Ok(part("weight")?.matmul(&tensor(source, &name)?.ok_or_else(missing)?)?)
        }
        RouterKind::Gaussian(form) => {
            let projection = if form.project == Project::Identity { None } else { Some(part("projection")?) };
            let full = form.covariance == Covariance::SharedFull;
            let decorrelation = full.then(|| part("decorrelation")).transpose()?;
            let beside = [projection.as_ref(), decorrelation.as_ref()];
            gaussian_rows(form, [&part("mean")?, &part("log_variance")?, &part("scale")?], beside)
        }
        RouterKind::Cosine => none("a cosine"),
        RouterKind::Custom(path) => none(&format!("`{path}`")),
    }
}

fn gaussian_rows(
    form: &GaussianSpec,
    [mean_pcr, log_variance, scale]: [&Tensor; 3],
    [projection_rd, decorrelation_prr]: [Option<&Tensor>; 2],
) -> Result<Tensor> {
    let (p, c, r) = mean_pcr.dims3()?;
    let precision = log_variance.neg()?.exp()?.mean_keepdim(1)?;
    let scale = match form.reduce {
        Reduce::Mean => (scale / r as f64)?,
        Reduce::Sum => scale.clone(),
    };
    let rows_pcr = match decorrelation_prr {
        // Σ⁻¹ μ = (I + D)ᵀ Λ (I + D) μ.
        Some(decorrelation_prr) => {
            let below_prr = decorrelation_prr.broadcast_mul(&below_diagonal(r, mean_pcr.device())?)?;
            let whole_prr = below_prr.broadcast_add(&Tensor::eye(r, mean_pcr.dtype(), mean_pcr.device())?)?;
            let apart_pcr = mean_pcr.matmul(&whole_prr.transpose(1, 2)?)?;
            apart_pcr.broadcast_mul(&precision)?.matmul(&whole_prr)?
        }
        None => mean_pcr.broadcast_mul(&precision)?,
    };
    let rows = rows_pcr.broadcast_mul(&scale)?.reshape((p * c, r))?;
    Ok(match projection_rd {
        Some(projection_rd) => rows.matmul(projection_rd)?,
        None => rows,
    })
}
