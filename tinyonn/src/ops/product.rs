//! `accumulate(dst, a, b)`: a product of matrices put, or added, where it belongs; candle's `matmul` has neither a place nor a sum.
//!
//! Shapes: a `[m, k]`, b `[k, n]`, dst `[m, n]`, which may be a part of a larger tensor; a and b may be transposed views. f32 on the
//! CPU is `gemm`, called as candle calls it: put, not added, it has the bits of `matmul`. A product added over two calls differs from
//! one long product where k > 512 (`gemm` blocks k).

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor};
use gemm::Parallelism;

use super::lanes;

/// dst = a b, or dst += a b.
///
/// # Errors
/// Shapes or devices that do not go together.
pub(super) fn accumulate(dst: &Tensor, a: &Tensor, b: &Tensor, add: bool) -> Result<()> {
    let ((m, k), (k_b, n)) = (a.dims2()?, b.dims2()?);
    if k != k_b || dst.dims() != [m, n] {
        candle_core::bail!("a product {:?} × {:?} into {:?}", a.shape(), b.shape(), dst.shape());
    }
    if lanes::fused(&[dst, a, b]) {
        return dst.inplace_op3(a, b, &Product { add });
    }
    let mut product = a.to_dtype(dst.dtype())?.matmul(&b.to_dtype(dst.dtype())?)?;
    if add {
        product = (dst + product)?;
    }
    dst.reshape(m * n)?.slice_set(&product.reshape(m * n)?, 0, 0)
}

struct Product {
    add: bool,
}

/// A matrix of f32 in main memory.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (&[rows, columns], &[row, column]) = (layout.dims(), layout.stride()) else {
            candle_core::bail!("a product of {:?}", layout.shape())
        };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let last = rows.saturating_sub(1) * row + columns.saturating_sub(1) * column;
        if rows * columns > 0 && last >= values.len() {
            candle_core::bail!("a matrix {:?} that ends beyond its values", layout.shape());
        }
        Ok(Self { values, shape: (rows, columns), strides: (row, column) })
    }
}

impl InplaceOp3 for Product {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    #[allow(unsafe_code)]
    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        dst_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<()> {
        let (a, b) = (Matrix::new(a, a_layout)?, Matrix::new(b, b_layout)?);
        let ((m, k), n) = (a.shape, b.shape.1);
        let CpuStorage::F32(values) = dst else { candle_core::bail!("a product into another type than f32") };
        let Some((start, end)) = dst_layout.contiguous_offsets() else { candle_core::bail!("a product into columns") };
        let out = &mut values[start..end];
        assert!(b.shape.0 == k && out.len() == m * n);
        let threads = candle_core::utils::get_num_threads();
        let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
        // SAFETY: `Matrix::new` has seen that every element that these sizes and strides reach lies in its slice, `out` is
        // contiguous and holds m·n values, is borrowed for writing and overlaps neither input: candle refuses aliases.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                self.add,
                a.values.as_ptr(),
                a.strides.1 as isize,
                a.strides.0 as isize,
                b.values.as_ptr(),
                b.strides.1 as isize,
                b.strides.0 as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        Ok(())
    }
}
