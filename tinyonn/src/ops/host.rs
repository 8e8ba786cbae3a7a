//! The one door from the device to the host: copies that wait for all the device was asked to do before.
//!
//! A training step passes it once, a scan once a task, token labels once a batch; each copy is counted, so that a test can say so.
//! Everything else in a step stays on the device (a source rule bans `to_vec*` and `to_scalar` where it must).

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Result, Tensor};

static COPIES: AtomicU64 = AtomicU64::new(0);

/// Copies made so far by this process.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::host::{copies, in_memory, values};
///
/// let (before, x) = (copies(), Tensor::new(&[1f32, 2.0], &Device::Cpu)?);
/// assert_eq!(in_memory(&x)?, [1.0, 2.0]); // it lies here: nothing to wait for
/// assert_eq!(values(&x)?, [1.0, 2.0]);
/// assert!(copies() > before);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[must_use]
pub fn copies() -> u64 {
    COPIES.load(Ordering::Relaxed)
}

/// The values of several tensors of one device, each flat, in f64, by one copy.
///
/// # Errors
/// What the device reports.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::host;
///
/// let (a, b) = (Tensor::new(&[1u32, 2], &Device::Cpu)?, Tensor::new(0.5f32, &Device::Cpu)?);
/// assert_eq!(host::read(&[&a, &b])?, [vec![1.0, 2.0], vec![0.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn read(tensors: &[&Tensor]) -> Result<Vec<Vec<f64>>> {
    let flat = |tensor: &&Tensor| tensor.detach().flatten_all()?.to_dtype(DType::F64);
    let parts = tensors.iter().map(flat).collect::<Result<Vec<_>>>()?;
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    COPIES.fetch_add(1, Ordering::Relaxed);
    let all = Tensor::cat(&parts, 0)?.to_vec1::<f64>()?;
    let mut rest = all.as_slice();
    let cut = |part: &Tensor| {
        let (own, others) = rest.split_at(part.elem_count());
        rest = others;
        own.to_vec()
    };
    Ok(parts.iter().map(cut).collect())
}

/// The values of an f32 tensor (or of a type that f32 holds), flat, by one copy.
///
/// # Errors
/// What the device reports.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    COPIES.fetch_add(1, Ordering::Relaxed);
    tensor.detach().flatten_all()?.to_dtype(DType::F32)?.to_vec1()
}

/// The numbers of a u32 tensor, flat, by one copy.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::host;
///
/// assert_eq!(host::ids(&Tensor::new(&[[7u32], [u32::MAX]], &Device::Cpu)?)?, [7, u32::MAX]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What the device reports; a tensor of another type.
pub fn ids(tensor: &Tensor) -> Result<Vec<u32>> {
    COPIES.fetch_add(1, Ordering::Relaxed);
    tensor.flatten_all()?.to_vec1()
}

/// The values of a tensor, flat in f32: of one in main memory, where they only have to be read, without a counted copy.
///
/// # Errors
/// What the device reports.
pub fn in_memory(tensor: &Tensor) -> Result<Vec<f32>> {
    if tensor.device().is_cpu() {
        let flat = tensor.detach().to_dtype(DType::F32)?.flatten_all()?.contiguous()?;
        return super::lanes::with_values(&flat, |values: &[f32]| values.to_vec());
    }
    values(tensor)
}
