//! A card as passes want it: its memory pool is kept warm, and nothing is noted of who uses a tensor; and what the driver says of it before anything is put there.
//!
//! Everything on a card runs in one stream, so that two events a tensor, by which several would wait for each other, are made for nobody. Tensors come from the driver's pool. Unless told otherwise it gives back whatever is not in use whenever a stream is waited for, and a training step, which
//! frees its activations as it goes and ends in a wait, then has the driver map most of its memory anew.
//!
//! ```no_run
//! use tinyonn::ops::card::{most_used, open};
//!
//! let card = open(0)?;
//! let x = candle_core::Tensor::zeros(1 << 20, candle_core::DType::F32, &card)?;
//! assert!(most_used(x.device())? >= 4 << 20);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::CudaContext;
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUmemPool_attribute, CUmemoryPool};
use candle_core::{Device, Result};

/// Opens the card with this number.
///
/// # Errors
/// What the driver reports: no card of this number, a driver that is too old.
pub fn open(ordinal: usize) -> Result<Device> {
    let opened = Device::new_cuda(ordinal)?;
    if let Device::Cuda(card) = &opened
        && card.cuda_stream().context().has_async_alloc()
    {
        keep(card)?;
        without_events(card);
    }
    Ok(opened)
}

/// The version of CUDA that the driver speaks, and the one that this program was built for: of 13.0, 13000.
///
/// ```no_run
/// use tinyonn::ops::card::{memory, versions};
///
/// let [driver, built_for] = versions()?;
/// let [free, all] = memory(0)?;
/// assert!(driver >= built_for && free <= all);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What the driver reports.
#[allow(unsafe_code)]
pub fn versions() -> Result<[u32; 2]> {
    let mut version = 0;
    // SAFETY: it writes one integer, into `version`, and needs nothing to have been called before.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(candle_core::Error::wrap)?;
    Ok([version as u32, sys::CUDA_VERSION])
}

/// Bytes of the memory of the card with this number that are free, and all of them.
///
/// # Errors
/// As of [`open`].
pub fn memory(ordinal: usize) -> Result<[u64; 2]> {
    let context = CudaContext::new(ordinal).map_err(candle_core::Error::wrap)?;
    let (free, total) = context.mem_get_info().map_err(candle_core::Error::wrap)?;
    let idle = if context.has_async_alloc() { idle(&context)? } else { 0 };
    Ok([free as u64 + idle, total as u64])
}

/// Bytes that the pool keeps and no tensor has.
#[allow(unsafe_code)]
fn idle(context: &CudaContext) -> Result<u64> {
    let [mut kept, mut used] = [0u64; 2];
    let (of_kept, of_used) = (
        CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
        CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    );
    // SAFETY: the device of a context that is open, whose pool is the driver's own; both attributes are u64.
    unsafe {
        let pool = device::get_default_mem_pool(context.cu_device()).map_err(candle_core::Error::wrap)?;
        mem_pool::get_attribute(pool, of_kept, (&raw mut kept).cast()).map_err(candle_core::Error::wrap)?;
        mem_pool::get_attribute(pool, of_used, (&raw mut used).cast()).map_err(candle_core::Error::wrap)?;
    }
    Ok(kept.saturating_sub(used))
}

#[allow(unsafe_code)]
fn without_events(card: &CudaDevice) {
    // SAFETY: no tensor is used by another stream than the one that all operations of the device run in; collectives that have one of their own wait by their own events.
    unsafe { card.disable_event_tracking() };
}

/// The pool gives nothing back while the process lives.
#[allow(unsafe_code)]
fn keep(card: &CudaDevice) -> Result<()> {
    let (pool, mut bytes) = (pool(card)?, u64::MAX);
    // SAFETY: the pool is the driver's own for this card, and the attribute is a u64.
    unsafe {
        mem_pool::set_attribute(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut bytes).cast())
    }
    .map_err(candle_core::Error::wrap)
}

/// The most bytes that tensors on this card have taken at once since the process began.
///
/// # Errors
/// A device that is no card; what the driver reports.
#[allow(unsafe_code)]
pub fn most_used(device: &Device) -> Result<u64> {
    let Device::Cuda(card) = device else { candle_core::bail!("{device:?} has no memory of its own") };
    let (pool, mut bytes) = (pool(card)?, 0u64);
    // SAFETY: as above.
    unsafe {
        mem_pool::get_attribute(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut bytes).cast())
    }
    .map_err(candle_core::Error::wrap)?;
    Ok(bytes)
}

#[allow(unsafe_code)]
fn pool(card: &CudaDevice) -> Result<CUmemoryPool> {
    let context = card.cuda_stream().context().clone();
    // SAFETY: the device of a context that is open.
    unsafe { device::get_default_mem_pool(context.cu_device()) }.map_err(candle_core::Error::wrap)
}
