//! Kernels of our own: CUDA C++ beside the operation that it speeds up, compiled by NVRTC when it is first used.
//!
//! The outcome is PTX for `compute_80`, which the driver translates for any card from there on, or for `compute_90a`, with instructions that
//! compute capability 9.0 has and no other; it depends on no card, so that a machine without one can compile it too. Texts of launches that may begin before the one
//! ahead of them has ended ([`Kernel::overlapping`]) are compiled for `compute_90` where cards can do that.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtod_async;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction_attribute_enum, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, cuLaunchKernelEx,
};
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DevicePtr as _};
use candle_core::cuda_backend::cudarc::nvrtc::sys::nvrtcVersion;
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{CudaStorage, DType, Device, Result, Shape, Storage, Tensor};
use half::bf16;

use super::ptx_cache::{self, Entry};
use super::tensor_map::TensorMap;

/// Values that a block of [`THREADS`] threads goes over at most: `PART` of the kernels' texts.
pub(super) const PART: u64 = 1 << 14;

/// Threads of a block.
pub(super) const THREADS: u32 = 256;

/// A text, by its name: that of its function, where it has one.
pub(super) struct Kernel {
    name: &'static str,
    text: &'static str,
    architecture: &'static str,
    overlaps: bool,
    ptx: OnceLock<String>,
    /// Of a card where launches overlap.
    overlapping_ptx: OnceLock<String>,
}

/// What the text of a kernel that overlaps is compiled for, on cards that can.
const OVERLAPPING: &str = "compute_90";

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    /// Where the values of a tensor begin ([`address`]).
    Address(u64),
    /// A number of things; a yes is one.
    Count(u64),
    /// Any other number.
    Number(f32),
    /// A tensor for the copy engine.
    Map(TensorMap),
}

impl Argument {
    /// The address of a tensor that is not there.
    pub(super) const NOTHING: Self = Self::Address(0);

    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        address(tensor).map(Self::Address)
    }

    pub(super) fn count(count: usize) -> Self {
        Self::Count(count as u64)
    }

    /// Whether its values are stored in bf16, and not in f32.
    pub(super) fn half(tensor: &Tensor) -> Self {
        Self::Count(u64::from(tensor.dtype() == DType::BF16))
    }
}

/// How a launch is cut up: blocks in two directions, threads of a block, and what they share of a multiprocessor's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: (usize, usize),
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

impl Kernel {
    pub(super) const fn new(name: &'static str, text: &'static str) -> Self {
        Self::of("compute_80", name, text)
    }

    const fn of(architecture: &'static str, name: &'static str, text: &'static str) -> Self {
        Self { name, text, architecture, overlaps: false, ptx: OnceLock::new(), overlapping_ptx: OnceLock::new() }
    }

    /// Of functions that all call `wait_for_the_launch_before` (`overlap.cu`) in every thread, before they read or write what other launches of the step write or read: from compute
    /// capability 9.0 on they are launched before the one ahead of them in the stream has ended.
    pub(super) const fn overlapping(name: &'static str, text: &'static str) -> Self {
        let mut kernel = Self::of("compute_80", name, text);
        kernel.overlaps = true;
        kernel
    }

    /// For cards that [`is_hopper`] names.
    pub(super) const fn for_hopper(name: &'static str, text: &'static str) -> Self {
        Self::of("compute_90a", name, text)
    }

    /// The function of its name on `device`.
    pub(super) fn on(&self, device: &CudaDevice) -> Result<CudaFunction> {
        self.function(self.name, device)
    }

    /// A function of the text on `device`.
    pub(super) fn function(&self, function: &str, device: &CudaDevice) -> Result<CudaFunction> {
        let overlaps = self.overlaps_on(device)?;
        let (kept, architecture) =
            if overlaps { (&self.overlapping_ptx, OVERLAPPING) } else { (&self.ptx, self.architecture) };
        let ptx = if let Some(ptx) = kept.get() {
            ptx
        } else {
            let ptx = self.compiled(architecture)?;
            kept.get_or_init(|| ptx)
        };
        // Modules are kept by this name, whatever is given later.
        Ok(device.get_or_load_custom_func(function, &format!("tinyonn::{}", self.name), ptx)?.into_cuda_function())
    }

    fn overlaps_on(&self, device: &CudaDevice) -> Result<bool> {
        let major = || attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        Ok(self.overlaps && major()? >= 9)
    }

    /// The text's PTX, of an earlier process where that was kept.
    fn compiled(&self, architecture: &'static str) -> Result<String> {
        let entry = Entry::new(ptx_cache::folder(), self.text, architecture, compiler()?);
        if let Some(ptx) = entry.read() {
            return Ok(ptx);
        }
        let options = CompileOptions { arch: Some(architecture), ..CompileOptions::default() };
        let compiled = compile_ptx_with_opts(self.text, options)
            .map_err(|e| candle_core::Error::msg(format!("the kernel `{}` does not compile: {e}", self.name)))?;
        let ptx = compiled.to_src();
        entry.write(&ptx);
        Ok(ptx)
    }

    /// Launches `blocks` blocks of [`THREADS`] threads; of none, nothing.
    ///
    /// # Safety
    /// As of [`Kernel::launch_function`].
    // SAFETY: it does nothing but launch; the caller vouches for the arguments.
    #[allow(unsafe_code)]
    pub(super) unsafe fn launch(&self, device: &CudaDevice, blocks: usize, arguments: &[Argument]) -> Result<()> {
        let grid = Grid { blocks: (blocks, 1), threads: THREADS, shared_bytes: 0 };
        // SAFETY: the caller vouches for the arguments.
        unsafe { self.launch_function(self.name, device, &grid, arguments) }
    }

    /// Launches a function of the text; of no blocks, nothing.
    ///
    /// # Safety
    /// `arguments` are those of the function's signature, in its order. Every address is of a contiguous tensor on `device` that lives until this returns, with as
    /// many values and of such a type as the kernel reads or writes there; what it writes, nothing else refers to.
    // SAFETY: as above.
    #[allow(unsafe_code)]
    pub(super) unsafe fn launch_function(
        &self,
        function: &str,
        device: &CudaDevice,
        grid: &Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        let (Ok(x), Ok(y)) = (u32::try_from(grid.blocks.0), u32::try_from(grid.blocks.1)) else {
            candle_core::bail!("{function}: {:?} blocks are more than a launch has", grid.blocks)
        };
        if x == 0 || y == 0 {
            return Ok(());
        }
        let (function, stream) = (self.function(function, device)?, device.cuda_stream());
        if grid.shared_bytes > 0 {
            // More than 48 KiB have to be asked for.
            let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, grid.shared_bytes as i32).map_err(candle_core::Error::wrap)?;
        }
        let mut words: Vec<*mut std::ffi::c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(word) | Argument::Count(word) => std::ptr::from_ref(word).cast_mut().cast(),
                Argument::Number(number) => std::ptr::from_ref(number).cast_mut().cast(),
                Argument::Map(map) => std::ptr::from_ref(map).cast_mut().cast(),
            })
            .collect();
        let mut overlap = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: Default::default(),
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let shape = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.overlaps_on(device)?),
        };
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        // SAFETY: the caller vouches for the arguments, which live until this returns, by when the driver has copied them; everything on a card runs in one stream.
        unsafe {
            cuLaunchKernelEx(&raw const shape, function.cu_function(), words.as_mut_ptr(), std::ptr::null_mut())
                .result()
        }
        .map_err(candle_core::Error::wrap)?;
        Ok(())
    }
}

/// NVRTC's version.
#[allow(unsafe_code)]
fn compiler() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are numbers of this function's own.
    unsafe { nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(candle_core::Error::wrap)?;
    Ok((major, minor))
}

/// Where the values of a contiguous tensor begin on its card.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a kernel needs contiguous tensors on its card")
    };
    address_in(storage, start)
}

/// Where the value `at` of a storage lies.
pub(super) fn address_in(storage: &CudaStorage, at: usize) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    let first = match storage.dtype() {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::F64 => storage.as_cuda_slice::<f64>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0,
        DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
        DType::U8 => storage.as_cuda_slice::<u8>()?.device_ptr(&stream).0,
        other => candle_core::bail!("no kernel reads {other:?}"),
    };
    Ok(first + (at * storage.dtype().size_in_bytes()) as u64)
}

/// The card of a tensor.
pub(super) fn card(tensor: &Tensor) -> Result<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device),
        other => candle_core::bail!("a kernel needs tensors on a card, not on {other:?}"),
    }
}

/// What the driver says of a card.
pub(super) fn attribute(device: &CudaDevice, of: CUdevice_attribute) -> Result<usize> {
    let value = device.cuda_stream().context().attribute(of).map_err(candle_core::Error::wrap)?;
    Ok(usize::try_from(value).unwrap_or(0))
}

/// Whether a card has compute capability 9.0.
pub(super) fn is_hopper(device: &CudaDevice) -> Result<bool> {
    let major = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?) == (9, 0))
}

/// Values of a block of [`THREADS`] threads that take a chunk of sixteen bytes each.
pub(super) fn in_chunks(tensor: &Tensor) -> usize {
    THREADS as usize * 16 / tensor.dtype().size_in_bytes()
}

/// Room for what a kernel writes whole.
#[allow(unsafe_code)]
pub(super) fn room(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: whoever asks for room fills all of it before it is read, by the launch that follows in the same stream.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// The values of a contiguous tensor in the place of those of another of its type, size and card.
#[allow(unsafe_code)]
pub(super) fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    let (source, target, stream) = (address(from)?, address(to)?, card(to)?.cuda_stream());
    let bytes = from.elem_count() * from.dtype().size_in_bytes();
    stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
    // SAFETY: the addresses are of tensors of so many bytes that live until the copy is queued in the stream that they are used in.
    unsafe { memcpy_dtod_async(target, source, bytes, stream.cu_stream()) }.map_err(candle_core::Error::wrap)
}

/// Room like `tensor`.
pub(super) fn room_like(tensor: &Tensor) -> Result<Tensor> {
    room(tensor.shape(), tensor.dtype(), tensor.device())
}

/// Whether a kernel reads them all, in one type.
pub(super) fn are_read(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| is_read(tensor) && tensor.dtype() == tensors[0].dtype())
}

/// Whether a kernel reads it as f32 or bf16: contiguous, and from an address on at which several values can be read at once.
pub(super) fn is_read(tensor: &Tensor) -> bool {
    let first = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    let readable = matches!(tensor.dtype(), DType::F32 | DType::BF16) && tensor.is_contiguous();
    tensor.device().is_cuda() && readable && first.is_multiple_of(16)
}
