//! Attention in bf16 on a GPU, with heads of 64 or 128 values, by the kernels of `attention.cu`: nothing of size T·S is ever written.
//!
//! y_i = Σ_{j ≤ i} softmax_j(q_i·k_j / √D) v_j forward, and backward, from log-sums l and Δ_i = Σ_d dy_id y_id,
//! P = exp(Q Kᵀ / √D − l), dS = P ⊙ (dY Vᵀ − Δ), dQ = dS K / √D, dK = dSᵀ Q / √D, dV = Pᵀ dY (Dao, 2023, arXiv 2307.08691).
//! Shapes: q, y, dy, dq `[B, T, H, D]`, k, v, dk, dv `[B, S, K, D]`, l `[B, H, T]` f32. All outcomes are bit-equal from run to run.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute_enum};
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg as _};
use candle_core::{DType, Device, Result, Tensor};

use super::attention::{Attention, Shape};
use super::kernel::{Kernel, address};

static HEADS_OF_64: Kernel =
    Kernel::new("attention_64", concat!("#define HEAD_DIM 64\n", include_str!("attention.cu")));
static HEADS_OF_128: Kernel =
    Kernel::new("attention_128", concat!("#define HEAD_DIM 128\n", include_str!("attention.cu")));

// The tiles of attention.cu, by the same names.
const QUERIES: usize = 128;
const KEYS: usize = 64;
const DECODE_ROWS: usize = 16;
const DECODE_KEYS: usize = 64;
const DQ_QUERIES: usize = 128;
const DQ_KEYS: usize = 32;
const DKV_KEYS: usize = 64;
const DKV_QUERIES: usize = 64;

/// Bytes of a row's log-sum and Δ.
const ROW_STATS: usize = 8;

/// Copies between the memories take 16 bytes at once.
const ALIGNMENT: u64 = 16;

/// `Shape` of attention.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct KernelShape {
    queries: i32,
    keys: i32,
    room: i32,
    heads: i32,
    kv_heads: i32,
    scale: f32,
}

// SAFETY: five i32 and an f32 without room between them, as the kernels' struct has them.
#[allow(unsafe_code)]
unsafe impl DeviceRepr for KernelShape {}

impl KernelShape {
    fn new(s: Shape) -> Result<Self> {
        let [queries, keys, room, heads, kv_heads] =
            [s.queries, s.keys, s.room, s.heads, s.kv_heads].map(i32::try_from);
        Ok(Self {
            queries: queries?,
            keys: keys?,
            room: room?,
            heads: heads?,
            kv_heads: kv_heads?,
            scale: s.scale() as f32,
        })
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
enum Argument<'a> {
    Tensor(&'a Tensor),
    Integer(i32),
    Count(u64),
    Shape(KernelShape),
}

/// The kernels of a head size on a card.
struct Card<'a> {
    device: &'a CudaDevice,
    kernels: &'static Kernel,
}

/// Whether the kernels read these: bf16 on a card that has room for their tiles, and heads of 64 or 128 values.
///
/// # Errors
/// What the driver reports.
pub(super) fn takes(of: [&Tensor; 3]) -> Result<bool> {
    let Device::Cuda(device) = of[0].device() else { return Ok(false) };
    let head_dim = of[0].dims().last().copied().unwrap_or(0);
    if !matches!(head_dim, 64 | 128) {
        return Ok(false);
    }
    for tensor in of {
        // What is not contiguous is copied to its own place first.
        let read = tensor.device().is_cuda() && tensor.dtype() == DType::BF16 && tensor.elem_count() > 0;
        if !read || (tensor.is_contiguous() && address(tensor)? % ALIGNMENT != 0) {
            return Ok(false);
        }
    }
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let there = device.cuda_stream().context().attribute(attribute).map_err(candle_core::Error::wrap)?;
    Ok(there as usize >= dkv_bytes(head_dim))
}

const fn tile(rows: usize, head_dim: usize) -> usize {
    rows * head_dim * 2
}

const fn dkv_bytes(head_dim: usize) -> usize {
    tile(2 * DKV_KEYS + 4 * DKV_QUERIES, head_dim) + 2 * DKV_QUERIES * ROW_STATS
}

impl<'a> Card<'a> {
    fn new(op: &'a Attention) -> Result<Self> {
        let Device::Cuda(device) = op.q_bthd.device() else {
            candle_core::bail!("attention: the kernels run on a card, not on {:?}", op.q_bthd.device())
        };
        Ok(Self { device, kernels: if op.shape.head_dim == 64 { &HEADS_OF_64 } else { &HEADS_OF_128 } })
    }

    /// Blocks that keep every multiprocessor busy.
    fn blocks(&self) -> Result<usize> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let count = self.device.cuda_stream().context().attribute(attribute).map_err(candle_core::Error::wrap)?;
        Ok(2 * count.max(1) as usize)
    }

    #[allow(unsafe_code)]
    fn launch(
        &self,
        name: &str,
        grid: (usize, usize),
        threads: usize,
        bytes: usize,
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        let function = self.kernels.function(name, self.device)?;
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, bytes as i32).map_err(candle_core::Error::wrap)?;
        let addresses = arguments
            .iter()
            .map(|argument| if let Argument::Tensor(tensor) = argument { address(tensor) } else { Ok(0) })
            .collect::<Result<Vec<u64>>>()?;
        let stream = self.device.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        for (argument, address) in arguments.iter().zip(&addresses) {
            match argument {
                Argument::Tensor(_) => launch.arg(address),
                Argument::Integer(x) => launch.arg(x),
                Argument::Count(x) => launch.arg(x),
                Argument::Shape(shape) => launch.arg(shape),
            };
        }
        let shape = LaunchConfig {
            grid_dim: (u32::try_from(grid.0)?, u32::try_from(grid.1)?, 1),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: bytes as u32,
        };
        // SAFETY: the callers below give each kernel the arguments of its signature, in its order. The tensors are contiguous, of the shapes
        // that `Attention::new` has compared, on this card, and live until the launch is queued; those that are written are nobody else's
        // yet; everything on this card runs in one stream.
        unsafe { launch.launch(shape) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }

    /// A tensor whose every value the next kernel writes.
    #[allow(unsafe_code)]
    fn room(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        // SAFETY: bits of any kind are values of these types, and none is read before it is written.
        unsafe { Tensor::empty(shape, dtype, &Device::Cuda(self.device.clone())) }
    }
}

/// y, and the log-sums `[B, H, T]`.
///
/// # Errors
/// What the driver reports.
pub(super) fn forward(op: &Attention) -> Result<(Tensor, Tensor)> {
    use Argument::{Integer, Tensor as Of};
    let (s, card) = (op.shape, Card::new(op)?);
    let shape = Argument::Shape(KernelShape::new(s)?);
    let y = card.room(op.q_bthd.dims(), DType::BF16)?;
    let log_sums = card.room(&[s.batch, s.heads, s.queries], DType::F32)?;
    let [q, k, v] = [&op.q_bthd, &op.k_bskd, &op.v_bskd].map(Of);
    if s.queries * s.group() > DECODE_ROWS {
        let grid = (s.batch * s.heads, s.queries.div_ceil(QUERIES));
        let bytes = tile(QUERIES + 2 * KEYS, s.head_dim);
        card.launch("attention_forward", grid, 128, bytes, &[q, k, v, Of(&y), Of(&log_sums), shape])?;
        return Ok((y, log_sums));
    }
    // Few queries: blocks of a part of the keys each, as many as the card runs at once.
    let steps = s.keys.div_ceil(DECODE_KEYS);
    let wanted = card.blocks()?.div_ceil(s.batch * s.kv_heads).min(steps);
    let span = steps.div_ceil(wanted) * DECODE_KEYS;
    let parts = s.keys.div_ceil(span);
    let rows = s.batch * s.heads * s.queries;
    let sums = card.room(&[rows, parts, s.head_dim], DType::F32)?;
    let stats = card.room(&[rows, parts, 2], DType::F32)?;
    let grid = (s.batch * s.kv_heads, parts);
    let bytes = tile(DECODE_ROWS + 4 * DECODE_KEYS, s.head_dim);
    let arguments = [q, k, v, Of(&sums), Of(&stats), shape, Integer(i32::try_from(span)?)];
    card.launch("attention_decode", grid, 128, bytes, &arguments)?;
    let arguments = [Of(&sums), Of(&stats), Of(&y), Of(&log_sums), Integer(i32::try_from(parts)?), shape];
    card.launch("attention_merge", (rows, 1), s.head_dim, 0, &arguments)?;
    Ok((y, log_sums))
}

/// dq, dk, dv.
///
/// # Errors
/// What the driver reports.
pub(super) fn backward(op: &Attention, y: &Tensor, dy: &Tensor, log_sums: &Tensor) -> Result<[Tensor; 3]> {
    use Argument::{Count, Integer, Tensor as Of};
    let (s, card) = (op.shape, Card::new(op)?);
    let shape = Argument::Shape(KernelShape::new(s)?);
    let aligned = address(dy)? % ALIGNMENT == 0;
    let dy = if aligned { dy.clone() } else { dy.force_contiguous()? };
    let [dq, dk, dv] = [&op.q_bthd, &op.k_bskd, &op.v_bskd].map(|x| card.room(x.dims(), DType::BF16));
    let (dq, dk, dv) = (dq?, dk?, dv?);
    let rows = card.room(&[s.batch, s.heads, s.queries, 2], DType::F32)?;
    let count = s.batch * s.queries * s.heads;
    let [queries, heads] = [s.queries, s.heads].map(i32::try_from);
    let arguments = [Of(y), Of(&dy), Of(log_sums), Of(&rows), Count(count as u64), Integer(queries?), Integer(heads?)];
    card.launch("attention_rows", (count.div_ceil(8), 1), 256, 0, &arguments)?;
    let [q, k, v] = [&op.q_bthd, &op.k_bskd, &op.v_bskd].map(Of);
    let grid = (s.batch * s.heads, s.queries.div_ceil(DQ_QUERIES));
    let bytes = tile(2 * DQ_QUERIES + 4 * DQ_KEYS, s.head_dim);
    card.launch("attention_dq", grid, 128, bytes, &[q, k, v, Of(&dy), Of(&rows), Of(&dq), shape])?;
    let grid = (s.batch * s.kv_heads, s.keys.div_ceil(DKV_KEYS));
    let arguments = [q, k, v, Of(&dy), Of(&rows), Of(&dk), Of(&dv), shape];
    card.launch("attention_dkv", grid, 2 * DKV_KEYS, dkv_bytes(s.head_dim), &arguments)?;
    Ok([dq, dk, dv])
}
