//! The Kullback-Leibler divergence of a student's next token from a teacher's, both read from hidden states by one head, and its gradient
//! (Hinton et al., 2015, at temperature 1): KL_t = Σ_v p_tv (ln p_tv − ln q_tv), p = softmax(x′ Wᵀ), q = softmax(x Wᵀ), ∂KL_t/∂x_t = (q_t − p_t) W.
//!
//! Shapes: x (student) and x′ (teacher) `[t, d]`, W `[V, d]`, weights `[t]` f32. Tokens go in chunks of at most 2²⁵ logits of each, which nothing outlives:
//! value and gradient come together. The head does not learn. Softmax and sums are f32 (f64 of f64).

use candle_core::{D, DType, Result, Tensor};

/// Logits of each model held at once.
const CHUNK: usize = 1 << 25;

/// KL of each token `[t]` in nats, and the gradient of Σ_t weight_t · KL_t, `[t, d]` in the type of x.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::distillation;
///
/// let head = Tensor::randn(0f32, 1f32, (9, 4), &Device::Cpu)?;
/// let teacher = Tensor::randn(0f32, 1f32, (3, 4), &Device::Cpu)?;
/// let weights = Tensor::ones(3, candle_core::DType::F32, &Device::Cpu)?;
/// // Who says the same has nothing to learn.
/// let (kl, dx) = distillation::divergence(&teacher, &teacher, &head, &weights)?;
/// assert!(kl.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6 && dx.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn divergence(x_td: &Tensor, teacher_td: &Tensor, head_vd: &Tensor, weight_t: &Tensor) -> Result<(Tensor, Tensor)> {
    if x_td.dims2()? != teacher_td.dims2()? || weight_t.dims1()? != x_td.dim(0)? {
        candle_core::bail!(
            "distillation: {:?} rows of a student, {:?} of its teacher, {:?} weights",
            x_td.shape(),
            teacher_td.shape(),
            weight_t.shape()
        );
    }
    let head_vd = head_vd.detach();
    let wide = wide(x_td);
    let (mut divergences, mut gradients) = (Vec::new(), Vec::new());
    for (first, rows) in chunks(x_td, &head_vd)? {
        let (kl_t, log_q_tv, p_tv) = chunk((x_td, teacher_td), &head_vd, first, rows)?;
        divergences.push(kl_t);
        let weight_t1 = weight_t.narrow(0, first, rows)?.to_dtype(wide)?.unsqueeze(1)?;
        let dlogits_tv = (log_q_tv.exp()? - p_tv)?.broadcast_mul(&weight_t1)?;
        gradients.push(dlogits_tv.to_dtype(x_td.dtype())?.matmul(&head_vd)?);
    }
    if divergences.is_empty() {
        return Ok((weight_t.to_dtype(wide)?, x_td.zeros_like()?));
    }
    Ok((Tensor::cat(&divergences, 0)?, Tensor::cat(&gradients, 0)?))
}

/// KL of each token `[t]` alone, to the bits of [`divergence`]; of one token or more.
///
/// # Errors
/// As of [`divergence`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::distillation;
///
/// let head = Tensor::randn(0f32, 1f32, (9, 4), &Device::Cpu)?;
/// let [student, teacher] = [0f32, 1.0].map(|mean| Tensor::randn(mean, 1f32, (3, 4), &Device::Cpu));
/// let (student, teacher) = (student?, teacher?);
/// let found = distillation::values(&student, &teacher, &head)?;
/// let (kl, _) = distillation::divergence(&student, &teacher, &head, &Tensor::ones(3, DType::F32, &Device::Cpu)?)?;
/// assert_eq!(found.to_vec1::<f32>()?, kl.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn values(x_td: &Tensor, teacher_td: &Tensor, head_vd: &Tensor) -> Result<Tensor> {
    if x_td.dims2()? != teacher_td.dims2()? {
        candle_core::bail!(
            "distillation: {:?} rows of a student, {:?} of its teacher",
            x_td.shape(),
            teacher_td.shape()
        );
    }
    let head_vd = head_vd.detach();
    let of = |(first, rows)| Ok(chunk((x_td, teacher_td), &head_vd, first, rows)?.0);
    Tensor::cat(&chunks(x_td, &head_vd)?.map(of).collect::<Result<Vec<_>>>()?, 0)
}

/// Of each chunk the first row, and how many there are.
fn chunks(x_td: &Tensor, head_vd: &Tensor) -> Result<impl Iterator<Item = (usize, usize)>> {
    let (tokens, chunk) = (x_td.dim(0)?, (CHUNK / head_vd.dim(0)?.max(1)).max(1));
    Ok((0..tokens).step_by(chunk).map(move |first| (first, chunk.min(tokens - first))))
}

fn wide(x_td: &Tensor) -> DType {
    if x_td.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Of some rows KL `[t]`, ln q `[t, V]` and p `[t, V]`.
fn chunk(
    (x_td, teacher_td): (&Tensor, &Tensor),
    head_vd: &Tensor,
    first: usize,
    rows: usize,
) -> Result<(Tensor, Tensor, Tensor)> {
    let wide = wide(x_td);
    let log_probs = |x_td: &Tensor| {
        let logits_tv = x_td.detach().narrow(0, first, rows)?.matmul(&head_vd.t()?)?.to_dtype(wide)?;
        logits_tv.broadcast_sub(&logits_tv.log_sum_exp(D::Minus1)?.unsqueeze(1)?)
    };
    let (log_q_tv, log_p_tv) = (log_probs(x_td)?, log_probs(teacher_td)?);
    let p_tv = log_p_tv.exp()?;
    Ok(((&p_tv * (log_p_tv - &log_q_tv)?)?.sum(1)?, log_q_tv, p_tv))
}
