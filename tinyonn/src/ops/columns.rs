//! Columns that an index names: the gates of neurons, of those of their experts; the values of neurons that learn.

use candle_core::{DType, Result, Tensor};

use super::lanes;

/// Column j of the outcome `[t, i]` is column `index_i[j]` of `values_tn`. Where the index names no column the answer is candle's, on a GPU zeros.
pub(super) fn columns(values_tn: &Tensor, index_i: &Tensor) -> Result<Tensor> {
    let (t, n) = values_tn.dims2()?;
    #[cfg(feature = "cuda")]
    if super::gather_kernel::takes(values_tn, index_i) {
        return super::gather_kernel::columns(values_tn, index_i);
    }
    if !lanes::fused(&[values_tn]) || !values_tn.is_contiguous() || index_i.dtype() != DType::U32 {
        return values_tn.index_select(index_i, 1);
    }
    let index = lanes::with_ids(&index_i.contiguous()?, <[u32]>::to_vec)?;
    if index.is_empty() || index.iter().any(|at| *at as usize >= n) {
        return values_tn.index_select(index_i, 1);
    }
    let mut out = vec![0f32; t * index.len()];
    lanes::with_slices([values_tn], |[values]| {
        lanes::by_rows(&mut out, index.len(), |first, out| {
            for (row, out) in out.chunks_exact_mut(index.len()).enumerate() {
                let values = &values[(first + row) * n..][..n];
                out.iter_mut().zip(&index).for_each(|(out, at)| *out = values[*at as usize]);
            }
        });
    })?;
    Tensor::from_vec(out, (t, index.len()), values_tn.device())
}
