//! A stored tensor as a parameter, without a second copy of it: piece by piece into the buffer that the parameter keeps.

use candle_core::{DType, Device, Tensor, Var, WithDType};
use half::{bf16, f16};

use super::source::WeightSource;
use crate::Result;

/// The tensor `name` on `device`, as it lies in the file; floats in `dtype`, or as they are stored where `None`.
///
/// # Errors
/// What the source reports: no such tensor, or one of a type that no parameter has.
pub(super) fn read_var(source: &dyn WeightSource, name: &str, device: &Device, dtype: Option<DType>) -> Result<Var> {
    let stored = source.info(name).and_then(|info| Some((info.computed()?, info.shape.clone())));
    let Some((stored, shape)) = stored else { return Ok(Var::from_tensor(&source.load(name, device, dtype)?)?) };
    let from = Stored { source, name, dtype: stored, shape };
    match dtype.filter(|_| stored.is_float()).unwrap_or(stored) {
        DType::F32 => from.read::<f32>(device),
        DType::BF16 => from.read::<bf16>(device),
        DType::F16 => from.read::<f16>(device),
        DType::U32 => from.read::<u32>(device),
        _ => Ok(Var::from_tensor(&source.load(name, device, dtype)?)?),
    }
}

/// Bytes that are converted at once: of whole elements, whatever their type.
const PART: usize = 1 << 20;

struct Stored<'a> {
    source: &'a dyn WeightSource,
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
}

impl Stored<'_> {
    fn read<T: WithDType>(self, device: &Device) -> Result<Var> {
        let Self { source, name, dtype, shape } = self;
        let mut values: Vec<T> = Vec::with_capacity(shape.iter().product());
        source.pieces(name, &mut |piece| {
            for part in piece.chunks(PART) {
                let count = part.len() / dtype.size_in_bytes();
                let part = Tensor::from_raw_buffer(part, dtype, &[count], &Device::Cpu)?.to_dtype(T::DTYPE)?;
                values.extend(part.to_vec1::<T>()?);
            }
            Ok(())
        })?;
        Ok(Var::from_vec(values, shape, device)?)
    }
}
