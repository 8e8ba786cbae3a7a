//! Kernels of our own: CUDA C++ beside the operation that it speeds up, compiled by NVRTC when it is first used.
//!
//! The outcome is PTX for `compute_80`, which the driver translates for any card from there on; it depends on no card, so that a machine
//! without one can compile it too.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DevicePtr as _};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{DType, Result, Storage, Tensor};
use half::bf16;

/// Values that a block of [`THREADS`] threads goes over at most: `PART` of the kernels' texts.
pub(super) const PART: u64 = 1 << 14;

/// Threads of a block.
pub(super) const THREADS: u32 = 256;

/// A kernel, by the name of its function.
pub(super) struct Kernel {
    name: &'static str,
    text: &'static str,
    ptx: OnceLock<String>,
}

impl Kernel {
    pub(super) const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, ptx: OnceLock::new() }
    }

    /// Its function on `device`.
    pub(super) fn on(&self, device: &CudaDevice) -> Result<CudaFunction> {
        let ptx = if let Some(ptx) = self.ptx.get() {
            ptx
        } else {
            let options = CompileOptions { arch: Some("compute_80"), ..CompileOptions::default() };
            let compiled = compile_ptx_with_opts(self.text, options)
                .map_err(|e| candle_core::Error::msg(format!("the kernel `{}` does not compile: {e}", self.name)))?;
            self.ptx.get_or_init(|| compiled.to_src())
        };
        // Modules are kept by this name, whatever is given later.
        Ok(device.get_or_load_custom_func(self.name, &format!("tinyonn::{}", self.name), ptx)?.into_cuda_function())
    }
}

/// Where the values of a contiguous tensor begin on its card.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a kernel needs contiguous tensors on its card")
    };
    let stream = storage.device().cuda_stream();
    let first = match tensor.dtype() {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::F64 => storage.as_cuda_slice::<f64>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0,
        DType::U8 => storage.as_cuda_slice::<u8>()?.device_ptr(&stream).0,
        other => candle_core::bail!("no kernel reads {other:?}"),
    };
    Ok(first + (start * tensor.dtype().size_in_bytes()) as u64)
}

/// Whether a kernel reads it as f32 or bf16.
pub(super) fn is_read(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() && matches!(tensor.dtype(), DType::F32 | DType::BF16) && tensor.is_contiguous()
}
