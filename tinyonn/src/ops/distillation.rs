//! The Kullback-Leibler divergence of a student's next token from a teacher's, both read from hidden states by one head, and its gradient
//! (Hinton et al., 2015, at temperature 1): KL_t = Σ_v p_tv (ln p_tv − ln q_tv), p = softmax(x′ Wᵀ), q = softmax(x Wᵀ), ∂KL_t/∂x_t = (q_t − p_t) W.
//!
//! Shapes: x (student) and x′ (teacher) `[t, d]`, W `[V, d]`, weights `[t]` f32. Tokens go in chunks of at most 2²⁵ logits of each (2²⁸ on a GPU), which nothing outlives:
//! value and gradient come together, on a GPU by one launch a chunk (`distillation.cu`). The head does not learn. Softmax and sums are f32 (f64 of f64).

use candle_core::{D, DType, Result, Tensor};

/// Logits of each model held at once in main memory ..
const CHUNK: usize = 1 << 25;
/// .. and on a GPU: 1 GiB of each in f32.
const CHUNK_ON_A_CARD: usize = 1 << 28;

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
        let [own_tv, aim_tv] = logits([x_td, teacher_td], &head_vd, (first, rows))?;
        let weight_t = weight_t.narrow(0, first, rows)?;
        #[cfg(feature = "cuda")]
        if super::kernel::are_read(&[&own_tv, &aim_tv]) {
            let (kl_t, dlogits_tv) = on_a_card::divergence(own_tv, &aim_tv, &weight_t)?;
            divergences.push(kl_t);
            gradients.push(dlogits_tv.matmul(&head_vd)?);
            continue;
        }
        let (kl_t, log_q_tv, p_tv) = plain([&own_tv, &aim_tv])?;
        divergences.push(kl_t);
        let weight_t1 = weight_t.to_dtype(wide)?.unsqueeze(1)?;
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
    let of = |chunk| {
        let [own_tv, aim_tv] = logits([x_td, teacher_td], &head_vd, chunk)?;
        #[cfg(feature = "cuda")]
        if super::kernel::are_read(&[&own_tv, &aim_tv]) {
            return on_a_card::values(&own_tv, &aim_tv);
        }
        Ok(plain([&own_tv, &aim_tv])?.0)
    };
    Tensor::cat(&chunks(x_td, &head_vd)?.map(of).collect::<Result<Vec<_>>>()?, 0)
}

/// Of each chunk the first row, and how many there are.
fn chunks(x_td: &Tensor, head_vd: &Tensor) -> Result<impl Iterator<Item = (usize, usize)>> {
    let most = if x_td.device().is_cuda() { CHUNK_ON_A_CARD } else { CHUNK };
    let (tokens, chunk) = (x_td.dim(0)?, (most / head_vd.dim(0)?.max(1)).max(1));
    Ok((0..tokens).step_by(chunk).map(move |first| (first, chunk.min(tokens - first))))
}

fn wide(x_td: &Tensor) -> DType {
    if x_td.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Of some rows the student's logits and the teacher's, `[t, V]`.
fn logits(hidden: [&Tensor; 2], head_vd: &Tensor, (first, rows): (usize, usize)) -> Result<[Tensor; 2]> {
    let of = |x_td: &Tensor| x_td.detach().narrow(0, first, rows)?.matmul(&head_vd.t()?);
    Ok([of(hidden[0])?, of(hidden[1])?])
}

/// KL `[t]`, ln q `[t, V]` and p `[t, V]`.
fn plain(logits: [&Tensor; 2]) -> Result<(Tensor, Tensor, Tensor)> {
    let log_probs = |logits_tv: &Tensor| {
        let logits_tv = logits_tv.to_dtype(wide(logits_tv))?;
        logits_tv.broadcast_sub(&logits_tv.log_sum_exp(D::Minus1)?.unsqueeze(1)?)
    };
    let (log_q_tv, log_p_tv) = (log_probs(logits[0])?, log_probs(logits[1])?);
    let p_tv = log_p_tv.exp()?;
    Ok(((&p_tv * (log_p_tv - &log_q_tv)?)?.sum(1)?, log_q_tv, p_tv))
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Kernel, card, room};

    const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("peak.cu"), include_str!("distillation.cu"));
    static KERNEL: Kernel = Kernel::new("divergence", TEXT);

    /// KL of each row, and weight · (q − p) in the place of the student's logits, which nobody else has.
    pub(super) fn divergence(own_tv: Tensor, aim_tv: &Tensor, weight_t: &Tensor) -> Result<(Tensor, Tensor)> {
        let weight_t = weight_t.to_dtype(DType::F32)?.contiguous()?;
        let kl_t = launched(&own_tv, aim_tv, Some(&weight_t))?;
        Ok((kl_t, own_tv))
    }

    /// KL of each row alone.
    pub(super) fn values(own_tv: &Tensor, aim_tv: &Tensor) -> Result<Tensor> {
        launched(own_tv, aim_tv, None)
    }

    #[allow(unsafe_code)]
    fn launched(own_tv: &Tensor, aim_tv: &Tensor, weight_t: Option<&Tensor>) -> Result<Tensor> {
        let ((t, v), kl_t) = (own_tv.dims2()?, room(own_tv.dim(0)?, DType::F32, own_tv.device())?);
        let arguments = [
            Argument::of(own_tv)?,
            Argument::of(aim_tv)?,
            weight_t.map_or(Ok(Argument::NOTHING), Argument::of)?,
            Argument::of(&kl_t)?,
            Argument::count(v),
            Argument::half(own_tv),
        ];
        // SAFETY: the signature of divergence: a block for each of t rows of v logits of both, of one type, as the caller has seen, and as many weights, if there are any;
        // divergences are new, and the student's logits, which are written where there are weights, are then given by value and of one product alone.
        unsafe { KERNEL.launch(card(own_tv)?, t, &arguments)? };
        Ok(kl_t)
    }
}
