//! [`attention_kernel`](super::attention_kernel) for cards of compute capability 9.0, by the kernels of `attention_hopper.cu`: the same values in the same
//! layouts.
//!
//! The backward writes dS in bf16, as far as queries see keys, and reads it once, some key heads at a time.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor};

use super::attention::{Attention, Shape};
use super::kernel::{Argument, Grid, Kernel, THREADS, attribute, card, room, room_like};
use super::tensor_map::TensorMap;

static HEADS_OF_64: Kernel = Kernel::for_hopper(
    "attention_hopper_64",
    concat!(
        "#define ROW_VALUES 64\n",
        include_str!("numbers.cu"),
        include_str!("tiles.cu"),
        include_str!("wgmma.cu"),
        include_str!("softmax.cu"),
        include_str!("attention_hopper.cu"),
        include_str!("attention_hopper_backward.cu")
    ),
);
static HEADS_OF_128: Kernel = Kernel::for_hopper(
    "attention_hopper_128",
    concat!(
        "#define ROW_VALUES 128\n",
        include_str!("numbers.cu"),
        include_str!("tiles.cu"),
        include_str!("wgmma.cu"),
        include_str!("softmax.cu"),
        include_str!("attention_hopper.cu"),
        include_str!("attention_hopper_backward.cu")
    ),
);

// Rows of tiles, by the names that they have in the kernels' text.
const QUERIES: usize = 128;
const BLOCK: usize = 64;
const DKV_KEYS: usize = 128;

/// dS that may exist at once where fewer heads would leave multiprocessors idle, and where they would not; of 4 × 2048 tokens with 16 heads it
/// has 277 MB.
const MOST_DS_BYTES: usize = 2 << 30;
const DS_BYTES: usize = 512 << 20;

/// Two warpgroups that multiply, and one that copies.
const MULTIPLYING_AND_COPYING: u32 = 384;
const MULTIPLYING: u32 = 256;

fn kernels(s: Shape) -> &'static Kernel {
    if s.head_dim == 64 { &HEADS_OF_64 } else { &HEADS_OF_128 }
}

/// Bytes of a tile's rows.
fn tile(rows: usize, head_dim: usize) -> usize {
    2 * rows * head_dim
}

fn grid(blocks: (usize, usize), threads: u32, shared_bytes: usize) -> Grid {
    Grid { blocks, threads, shared_bytes: shared_bytes as u32 }
}

/// What the kernels' texts call `Shape`.
fn arguments(s: Shape) -> [Argument; 6] {
    let [batch, queries, keys, heads, kv_heads] =
        [s.batch, s.queries, s.keys, s.heads, s.kv_heads].map(Argument::count);
    [batch, queries, keys, heads, kv_heads, Argument::Number(s.scale() as f32)]
}

/// y, and the log-sums `[B, H, T]`.
///
/// # Errors
/// What the driver reports.
#[allow(unsafe_code)]
pub(super) fn forward(op: &Attention) -> Result<(Tensor, Tensor)> {
    let (s, q, device) = (op.shape, &op.q_bthd, card(&op.q_bthd)?);
    let y = room_like(q)?;
    let log_sums = room((s.batch, s.heads, s.queries), DType::F32, q.device())?;
    let [of_q, of_y] = [q, &y].map(|x| TensorMap::of(x, s.queries).map(Argument::Map));
    let [of_k, of_v] = [&op.k_bskd, &op.v_bskd].map(|x| TensorMap::of(x, s.keys).map(Argument::Map));
    // Blocks stay, one a multiprocessor, and take one tile of work after the other.
    let most = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let blocks = (s.batch * s.heads * s.queries.div_ceil(QUERIES)).min(most);
    let grid = grid((blocks, 1), MULTIPLYING_AND_COPYING, tile(6 * 128, s.head_dim) + 80);
    let all = [&[of_q?, of_k?, of_v?, of_y?, Argument::of(&log_sums)?][..], &arguments(s)].concat();
    // SAFETY: the signature of attention_forward_hopper; q, k and v are in bf16, as `attention_kernel::takes` has seen, and of the shapes that
    // `Attention::new` has compared, y and the log-sums, which are new, of those that they are read with.
    unsafe { kernels(s).launch_function("attention_forward_hopper", device, &grid, &all)? };
    Ok((y, log_sums))
}

/// Bytes of dS of a head: tiles of 64 × 64, as far as queries see keys.
fn ds_bytes(s: Shape) -> usize {
    let (blocks, before) = (s.queries.div_ceil(BLOCK), (s.keys - s.queries).div_ceil(BLOCK));
    (blocks * (blocks + 1) / 2 + blocks * before) * tile(BLOCK, BLOCK)
}

/// Key heads whose dS exists at once: as many as [`DS_BYTES`] hold, but so many that there are two blocks of keys for every multiprocessor.
fn heads_at_once(s: Shape, device: &CudaDevice) -> Result<usize> {
    let blocks = 2 * attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let enough = blocks.div_ceil(s.keys.div_ceil(DKV_KEYS));
    let (all, most) = (s.batch * s.kv_heads, enough.max(DS_BYTES / (s.group() * ds_bytes(s))));
    Ok(all.div_ceil(all.div_ceil(most)))
}

/// Whether there is room for dS, by [`MOST_DS_BYTES`].
///
/// # Errors
/// What the driver reports.
pub(super) fn has_backward(s: Shape, device: &CudaDevice) -> Result<bool> {
    Ok(heads_at_once(s, device)? * s.group() * ds_bytes(s) <= MOST_DS_BYTES)
}

/// dq, dk, dv.
///
/// # Errors
/// What the driver reports.
#[allow(unsafe_code)]
pub(super) fn backward(op: &Attention, y: &Tensor, dy: &Tensor, log_sums: &Tensor) -> Result<[Tensor; 3]> {
    let (s, q, device, kernels) = (op.shape, &op.q_bthd, card(&op.q_bthd)?, kernels(op.shape));
    let (dq, dk, dv) = (room_like(q)?, room_like(&op.k_bskd)?, room_like(&op.v_bskd)?);
    let blocks = s.queries.div_ceil(BLOCK);
    let stats = room((s.batch * s.heads, blocks, 2, BLOCK), DType::F32, q.device())?;
    let of_stats = Argument::of(&stats)?;

    let [batch, queries, heads] = [s.batch, s.queries, s.heads].map(Argument::count);
    let all = [Argument::of(y)?, Argument::of(dy)?, Argument::of(log_sums)?, of_stats, batch, queries, heads];
    // Four rows a thread, D / 8 threads a row.
    let rows_of_block = 4 * THREADS as usize * 8 / s.head_dim;
    let of_rows = grid((s.batch * blocks, (BLOCK * s.heads).div_ceil(rows_of_block)), THREADS, 0);
    // SAFETY: the signature of attention_rows_hopper; y and dy are of the shape and type of q, as the caller has seen, the log-sums as the
    // forward has written them, and the stats new.
    unsafe { kernels.launch_function("attention_rows_hopper", device, &of_rows, &all)? };

    let most = heads_at_once(s, device)?;
    let ds = room(most * s.group() * ds_bytes(s), DType::U8, q.device())?;
    let of_ds = Argument::of(&ds)?;
    let [of_q, of_dy, of_dq] = [q, dy, &dq].map(|x| TensorMap::of(x, s.queries).map(Argument::Map));
    let [of_k, of_v, of_dk, of_dv] =
        [&op.k_bskd, &op.v_bskd, &dk, &dv].map(|x| TensorMap::of(x, s.keys).map(Argument::Map));
    let (of_k, of_dq) = (of_k?, of_dq?);
    let of_dkv = [of_q?, of_k, of_v?, of_dy?, of_dk?, of_dv?, of_stats, of_ds];
    let dkv_bytes = tile(2 * DKV_KEYS + 6 * BLOCK, s.head_dim) + 3 * 8 * BLOCK + 56;
    let dq_bytes = 3 * (tile(BLOCK, s.head_dim) + 2 * tile(BLOCK, BLOCK)) + 48;
    for from in (0..s.batch * s.kv_heads).step_by(most) {
        let count = most.min(s.batch * s.kv_heads - from);
        let blocks = grid((count, s.keys.div_ceil(DKV_KEYS)), MULTIPLYING_AND_COPYING, dkv_bytes);
        let all = [&of_dkv[..], &[Argument::count(from)], &arguments(s)].concat();
        // SAFETY: the signature of attention_dkv_hopper; the inputs as above, dk and dv, of the shape and type of k and v, are new, and there
        // is room for dS of as many key heads.
        unsafe { kernels.launch_function("attention_dkv_hopper", device, &blocks, &all)? };
        let blocks = grid((count * s.group(), s.queries.div_ceil(QUERIES)), MULTIPLYING, dq_bytes);
        let all = [&[of_k, of_dq, of_ds, Argument::count(from * s.group())][..], &arguments(s)].concat();
        // SAFETY: the signature of attention_dq_hopper; dS is what was just written, and dq, of the shape and type of q, is new.
        unsafe { kernels.launch_function("attention_dq_hopper", device, &blocks, &all)? };
    }
    Ok([dq, dk, dv])
}
