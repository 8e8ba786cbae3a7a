//! Runs of values that are copied from one tensor into another, which may be parts of larger ones. On a GPU a copy of the driver's each: an operation of candle's that
//! writes at a place takes values one by one.

use candle_core::{DType, Device, Result, Tensor};

/// `from` in the place of what `to` holds: contiguous, on one device and of one type, and as many values.
///
/// # Errors
/// Tensors that do not go together; what the device reports.
pub(crate) fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    let same =
        from.dtype() == to.dtype() && from.elem_count() == to.elem_count() && from.device().same_device(to.device());
    if !same {
        candle_core::bail!("copy: {:?} of {:?} into {:?} of {:?}", from.shape(), from.dtype(), to.shape(), to.dtype());
    }
    #[cfg(feature = "cuda")]
    if to.device().is_cuda() {
        return super::kernel::copy(from, to);
    }
    let flat = |tensor: &Tensor| tensor.detach().flatten_all();
    flat(to)?.slice_set(&flat(from)?, 0, 0)
}

/// A row `[n]` in which each of `parts` begins at so many values. What stands between them is nobody's: it may be copied on with the rest, and is no number to compute with.
///
/// # Errors
/// A part that does not fit; what the device reports.
pub(crate) fn row(parts: &[(usize, Tensor)], n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    let row = if device.is_cuda() { super::kernel::room(n, dtype, device)? } else { Tensor::zeros(n, dtype, device)? };
    #[cfg(not(feature = "cuda"))]
    let row = Tensor::zeros(n, dtype, device)?;
    parts.iter().try_for_each(|(at, part)| copy(part, &row.narrow(0, *at, part.elem_count())?))?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use super::{copy, row};

    #[test]
    fn parts_are_laid_in_a_row_and_taken_out_of_it() -> Result<()> {
        let of = |values: &[f32]| Tensor::new(values, &Device::Cpu);
        let laid = row(&[(1, of(&[1.0, 2.0])?), (4, of(&[3.0])?)], 5, DType::F32, &Device::Cpu)?;
        assert_eq!(laid.to_vec1::<f32>()?, [0.0, 1.0, 2.0, 0.0, 3.0]);
        let target = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
        copy(&laid.narrow(0, 1, 2)?, &target.narrow(0, 1, 1)?)?;
        assert_eq!(target.to_vec2::<f32>()?, [[0.0, 0.0], [1.0, 2.0]]);
        assert!(copy(&laid, &target).is_err());
        Ok(())
    }
}
