//! The norm of the gradient of all weights together: √Σ ‖g‖², `[1]` f64. Gradients are f32, f64 or bf16, of any shape; on a GPU those in f32
//! and bf16 take one launch.

use candle_core::{DType, Device, Result, Tensor};

use super::grad_site::wide;

/// √Σ ‖g‖² over `gradients`, which are on `device`.
///
/// # Errors
/// What the device reports.
pub(crate) fn grad_norm(gradients: &[&Tensor], device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if !gradients.is_empty() && gradients.iter().all(|gradient| super::kernel::is_read(gradient)) {
        return on_a_card::grad_norm(gradients, device);
    }
    let mut squares = Tensor::zeros(1, DType::F64, device)?;
    for gradient in gradients {
        squares = (squares + wide(gradient)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.reshape(1)?)?;
    }
    squares.sqrt()
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg as _};
    use candle_core::{DType, Device, Result, Tensor};

    use super::super::kernel::{Kernel, PART, THREADS, address};

    static GRAD_NORM: Kernel =
        Kernel::new("grad_norm", concat!(include_str!("numbers.cu"), include_str!("grad_norm.cu")));

    #[allow(unsafe_code)]
    pub(super) fn grad_norm(gradients: &[&Tensor], device: &Device) -> Result<Tensor> {
        let Device::Cuda(card) = device else { candle_core::bail!("grad_norm: gradients on a card, and {device:?}") };
        let (mut words, mut blocks) = (Vec::with_capacity(4 * gradients.len()), 0u64);
        for gradient in gradients {
            let count = gradient.elem_count() as u64;
            words.extend([address(gradient)?, count, blocks, u64::from(gradient.dtype() == DType::BF16)]);
            blocks += count.div_ceil(PART);
        }
        let Ok(grid) = u32::try_from(blocks) else {
            candle_core::bail!("grad_norm: {blocks} blocks are more than a launch has")
        };
        let (function, stream) = (GRAD_NORM.on(card)?, card.cuda_stream());
        let (words, count) = (card.clone_htod(&words)?, gradients.len() as u32);
        let (parts, done) = (card.alloc_zeros::<f64>(grid as usize)?, card.alloc_zeros::<u32>(1)?);
        let norm = Tensor::zeros(1, DType::F64, device)?;
        let out = address(&norm)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&words).arg(&count).arg(&parts).arg(&done).arg(&out);
        let shape = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel's signature, in its order. Every address is of a contiguous tensor on this card that
        // lives until the launch is queued, `norm` is nobody else's yet, and everything on this card runs in one stream.
        unsafe { launch.launch(shape) }.map_err(candle_core::Error::wrap)?;
        Ok(norm)
    }
}
