//! AdamW on a GPU: a launch for all weights of a table, whatever their number.

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg as _};
use candle_core::{DType, Device, Result};

use super::adamw::AdamwStep;
use super::kernel::{Kernel, PART, THREADS, address, is_read};
use super::update_table::{Descriptor, UpdateTable};

static ADAMW: Kernel = Kernel::new("adamw", concat!(include_str!("numbers.cu"), include_str!("adamw.cu")));

/// Whether the kernel has the types of this weight.
pub(super) fn takes(of: &Descriptor<'_>) -> bool {
    let Some((v, counts)) = of.second else { return false };
    let work = of.work.is_none_or(|work| is_read(work) && work.dtype() == DType::BF16);
    let floats = [of.weight, of.gradient, of.m, v].into_iter().all(is_read);
    let wide = of.weight.dtype() == DType::F32 && counts.dtype() == DType::F64 && counts.is_contiguous();
    work && floats && wide && of.m.dtype() == v.dtype() && of.learn.is_contiguous()
}

/// Steps every weight of `table`, which are on one card and of the types that [`takes`] asks for.
#[allow(unsafe_code)]
pub(super) fn step(step: &AdamwStep, table: &UpdateTable<'_>) -> Result<()> {
    let Some(Device::Cuda(device)) = table.descriptors.first().map(|of| of.weight.device()) else { return Ok(()) };
    let (mut words, mut blocks) = (Vec::with_capacity(12 * table.descriptors.len()), 0u64);
    for of in table.descriptors {
        let Some((v, counts)) = of.second else { continue };
        let rows = of.learn.elem_count() as u64;
        let width = of.weight.elem_count() as u64 / rows;
        let half = |tensor: &candle_core::Tensor| u64::from(tensor.dtype() == DType::BF16);
        words.extend([address(of.weight)?, of.work.map_or(Ok(0), address)?, address(of.gradient)?]);
        words.extend([address(of.m)?, address(v)?, address(counts)?, address(of.learn)?, rows, width, blocks]);
        words.extend([half(of.gradient) + 2 * half(of.m), of.decay.to_bits()]);
        blocks += if rows == 1 { width.div_ceil(PART) } else { rows };
    }
    let Ok(grid) = u32::try_from(blocks) else {
        candle_core::bail!("adamw: {blocks} blocks are more than a launch has")
    };
    let (function, stream) = (ADAMW.on(device)?, device.cuda_stream());
    let (words, weights) = (device.clone_htod(&words)?, table.descriptors.len() as u32);
    let done = device.alloc_zeros::<u32>(table.descriptors.len())?;
    let (scale, finite) = (address(table.scale)?, address(table.finite)?);
    let mut launch = stream.launch_builder(&function);
    launch.arg(&words).arg(&weights).arg(&done).arg(&scale).arg(&finite);
    launch.arg(&step.rate).arg(&step.beta1).arg(&step.beta2).arg(&step.eps);
    let shape = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of the kernel's signature, in its order. Every address is of a contiguous tensor on this card that
    // `table` keeps alive until the launch is queued, with as many values of that type as `UpdateTable::check` and `takes` have seen; no
    // tensor that changes stands in it twice, and everything on this card runs in one stream.
    unsafe { launch.launch(shape) }.map_err(candle_core::Error::wrap)?;
    Ok(())
}
