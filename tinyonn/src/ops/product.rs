//! `accumulate(dst, a, b)`: a product of matrices put, or added, where it belongs; candle's `matmul` has neither a place nor a sum.
//!
//! Shapes: a `[m, k]`, b `[k, n]`, dst `[m, n]`, which may be a part of a larger tensor; a and b may be transposed views. f32 on the
//! CPU is `gemm`, called as candle calls it: put, not added, it has the bits of `matmul`. A product added over two calls differs from
//! one long product where k > 512 (`gemm` blocks k). On a GPU it is cuBLAS, whose sums are f32: bf16 products may go to f32 sums.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
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
    #[cfg(feature = "cuda")]
    if on_a_card::takes(dst, a, b) {
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        dst: &mut CudaStorage,
        dst_layout: &Layout,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> Result<()> {
        on_a_card::product((dst, dst_layout), (a, a_layout), (b, b_layout), self.add)
    }
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use std::ffi::{c_int, c_void};

    use candle_core::backend::BackendStorage as _;
    use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
    use candle_core::cuda_backend::cudarc::cublas::sys::{
        cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
    };
    use candle_core::{CudaStorage, DType, Layout, Result, Tensor};

    use super::super::kernel::address_in;

    /// Whether cuBLAS has this product: a and b in one type, f32 or bf16, dst in it or in f32.
    pub(super) fn takes(dst: &Tensor, a: &Tensor, b: &Tensor) -> bool {
        let (types, of_dst) = ([a.dtype(), b.dtype()], dst.dtype());
        let known = types == [DType::F32; 2] && of_dst == DType::F32
            || types == [DType::BF16; 2] && matches!(of_dst, DType::F32 | DType::BF16);
        let there = [dst, a, b].into_iter().all(|tensor| tensor.device().is_cuda() && tensor.elem_count() > 0);
        there
            && known
            && dst.is_contiguous()
            && [a, b].into_iter().all(|tensor| Matrix::lies(tensor.layout()).is_some())
    }

    fn data_type(dtype: DType) -> Result<cudaDataType_t> {
        match dtype {
            DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
            DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
            other => candle_core::bail!("a product in {other:?} on a card"),
        }
    }

    /// A matrix whose rows, or whose columns, lie one behind the other.
    struct Matrix {
        address: u64,
        dtype: cudaDataType_t,
        shape: (usize, usize),
        operation: cublasOperation_t,
        /// Values from one row, or column, to the next.
        step: usize,
    }

    impl Matrix {
        /// How a matrix lies, as cuBLAS, which reads columns, sees its transpose; and the step.
        fn lies(layout: &Layout) -> Option<(cublasOperation_t, usize)> {
            let (&[rows, columns], &[row, column]) = (layout.dims(), layout.stride()) else { return None };
            if (column == 1 || columns == 1) && (row >= columns || rows == 1) {
                Some((cublasOperation_t::CUBLAS_OP_N, row.max(columns)))
            } else if (row == 1 || rows == 1) && (column >= rows || columns == 1) {
                Some((cublasOperation_t::CUBLAS_OP_T, column.max(rows)))
            } else {
                None
            }
        }

        fn new(storage: &CudaStorage, layout: &Layout) -> Result<Self> {
            let (Some((operation, step)), &[rows, columns]) = (Self::lies(layout), layout.dims()) else {
                candle_core::bail!("a product of {:?} on a card", layout.shape())
            };
            let (address, dtype) = (address_in(storage, layout.start_offset())?, data_type(storage.dtype())?);
            Ok(Self { address, dtype, shape: (rows, columns), operation, step })
        }
    }

    fn size(count: usize) -> Result<c_int> {
        c_int::try_from(count).map_err(candle_core::Error::wrap)
    }

    /// Row by row, a b is what columns read as bᵀ aᵀ.
    #[allow(unsafe_code)]
    pub(super) fn product(
        (dst, dst_layout): (&mut CudaStorage, &Layout),
        (a, a_layout): (&CudaStorage, &Layout),
        (b, b_layout): (&CudaStorage, &Layout),
        add: bool,
    ) -> Result<()> {
        let (a, b) = (Matrix::new(a, a_layout)?, Matrix::new(b, b_layout)?);
        let ((m, k), (k_b, n)) = (a.shape, b.shape);
        let Some((start, _)) = dst_layout.contiguous_offsets().filter(|(start, end)| k == k_b && end - start == m * n)
        else {
            candle_core::bail!("a product of {m} × {k} and {k_b} × {n} into {:?}", dst_layout.shape())
        };
        let (out, dtype, cublas) = (address_in(dst, start)?, data_type(dst.dtype())?, dst.device().cublas_handle());
        let (alpha, beta) = (1f32, if add { 1f32 } else { 0f32 });
        let (m, n, k) = (size(m)?, size(n)?, size(k)?);
        // SAFETY: `Matrix::new` has seen how both lie, and their shapes go together; every address is of a storage that is borrowed until this returns, on the
        // card and in the stream of the handle; dst is contiguous, has m·n values and overlaps neither input: candle refuses aliases.
        let done = unsafe {
            gemm_ex(
                *cublas.handle(),
                b.operation,
                a.operation,
                n,
                m,
                k,
                (&raw const alpha).cast::<c_void>(),
                b.address as *const c_void,
                b.dtype,
                size(b.step)?,
                a.address as *const c_void,
                a.dtype,
                size(a.step)?,
                (&raw const beta).cast::<c_void>(),
                out as *mut c_void,
                dtype,
                n,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(candle_core::Error::wrap)
    }
}
