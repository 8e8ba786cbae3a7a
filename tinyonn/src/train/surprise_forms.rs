//! How nearly the two forms of surprise agree: Spearman's rank correlation of `token` and `exact` over the active experts of a layer.
//!
//! ρ = cov(r, r′) / (σ_r σ_r′) of the ranks r and r′ of the experts under both forms, equals sharing their mean rank. It is 1 where both put the
//! experts into one order, 0 where one says nothing about the other. Surprise Min-K needs the order alone, so ρ says how much of `exact`, which
//! forms every gradient, is had by `token`, which forms those of the winners.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::Model;
use crate::data::Sampler;
use crate::decoder::{ImageAsk, Learn, Pass};
use crate::model::TinyOnnForCausalLm;
use crate::ops::{Grads, host};
use crate::{Error, Result};

/// ρ of each layer's active experts over the first `rows` rows of the batch of step 0; `None` of a layer where fewer than two are active, or all
/// are alike under one form.
///
/// One forward and one backward pass; no gradient is kept, and what is read comes by one copy.
///
/// ```
/// use tinyonn::data::Sampler;
/// use tinyonn::decoder::Pass;
/// use tinyonn::train::{Model, rank_correlations};
///
/// /// How nearly both forms of surprise rank the experts of each layer alike.
/// fn alike(model: Model<'_>, sampler: &Sampler<'_>) -> tinyonn::Result<Vec<Option<f64>>> {
///     rank_correlations(model, &Pass::routed(), (sampler, 4))
/// }
/// ```
///
/// # Errors
/// Replicas, whose surprise has one form; what the model reports.
pub fn rank_correlations(
    (store, cfg, variant): Model<'_>,
    routed: &Pass,
    (sampler, rows): (&Sampler<'_>, usize),
) -> Result<Vec<Option<f64>>> {
    let model = TinyOnnForCausalLm::new(cfg, variant, &store.frozen())?;
    let batch = sampler.batch_at(0)?;
    let cut = |tensor: &Tensor| tensor.narrow(0, 0, rows.min(tensor.dim(0)?))?.contiguous();
    let (inputs, targets) = (cut(&batch.inputs)?, cut(&batch.targets)?);
    let pass = routed.of_tasks(&batch.tasks[..inputs.dim(0)?]).kept();
    let forward = model.lm().forward(&inputs, &targets, &pass)?;
    let (b, t) = targets.dims2()?;
    let open = variant.spec.open_positions().min(t - 1);
    let scored = Tensor::ones((b, t - open), DType::F32, inputs.device())?;
    let dlosses = if open == 0 { scored } else { scored.pad_with_zeros(1, open, 0)? };
    let learn = Learn { image: Some(Arc::new(ImageAsk::Surprises)), ..Learn::default() };
    let answers = model.lm().backward(forward.saved, &dlosses, &learn, &mut Grads::none())?;
    let found: Vec<_> = answers.iter().filter_map(|answers| answers.surprises.as_ref()).collect();
    if found.len() < answers.len() {
        let problem = format!("the experts of `{}` are replicas, whose surprise has one form", variant.spec.name);
        return Err(Error::setting("experts_are", problem, "ask experts that are slices"));
    }
    let tensors: Vec<&Tensor> = found.iter().flat_map(|of| [&of.token_n, &of.exact_n, &of.active_n]).collect();
    let values = host::read(&tensors)?;
    let of_layer = |values: &[Vec<f64>]| {
        let active = |form: &[f64]| -> Vec<f64> {
            form.iter().zip(&values[2]).filter(|(_, active)| **active != 0.0).map(|(s, _)| *s).collect()
        };
        spearman(&active(&values[0]), &active(&values[1]))
    };
    Ok(values.chunks_exact(3).map(of_layer).collect())
}

/// Spearman's rank correlation of two lists of equal length; `None` where one of them has fewer than two different values.
///
/// ```
/// use tinyonn::train::surprise_forms::spearman;
///
/// assert_eq!(spearman(&[1.0, 2.0, 9.0], &[0.1, 0.2, 0.3]), Some(1.0));
/// assert_eq!(spearman(&[1.0, 2.0, 9.0], &[3.0, 2.0, 1.0]), Some(-1.0));
/// assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
/// ```
#[must_use]
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    // Of ranks from 1 to n, whatever is shared.
    let mean = f64::midpoint(1.0, a.len() as f64);
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let spread = (product(&a, &a) * product(&b, &b)).sqrt();
    (spread > 0.0).then(|| product(&a, &b) / spread)
}

/// The rank of each value, from 1; equals share their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |own: &f64| {
        let count = |of: std::cmp::Ordering| values.iter().filter(|other| other.total_cmp(own) == of).count() as f64;
        count(std::cmp::Ordering::Less) + f64::midpoint(1.0, count(std::cmp::Ordering::Equal))
    };
    values.iter().map(rank).collect()
}
