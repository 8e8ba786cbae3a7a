//! Attention in bf16 on a GPU's tensor cores, heads of 64 or 128 values, by the kernels of `attention.cu`: nothing of size T·S is written.
//!
//! y_i = Σ_{j ≤ i} softmax_j(q_i·k_j / √D) v_j, and backward, with log-sums l_i = log Σ_j exp(q_i·k_j / √D) and Δ_i = Σ_d dy_id y_id,
//! P = exp(Q Kᵀ / √D − l), dS = P ⊙ (dY Vᵀ − Δ), dQ = dS K / √D, dK = dSᵀ Q / √D, dV = Pᵀ dY (Dao, 2023, arXiv 2307.08691).
//! A card of compute capability 9.0 has a form of its own ([`attention_hopper`]).
//! Shapes: q, y, dy, dq `[B, T, H, D]`, k, v, dk, dv `[B, S, K, D]`, l `[B, H, T]` in f32. The bits are the same in every run.

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor};

use super::attention::{Attention, Shape};
use super::attention_hopper;
use super::kernel::{Argument, Grid, Kernel, THREADS, address, attribute, card, is_hopper, is_read, room, room_like};

static HEADS_OF_64: Kernel = Kernel::new(
    "attention_64",
    concat!(
        "#define ROW_VALUES 64\n",
        include_str!("numbers.cu"),
        include_str!("tiles.cu"),
        include_str!("softmax.cu"),
        include_str!("attention.cu"),
        include_str!("attention_backward.cu")
    ),
);
static HEADS_OF_128: Kernel = Kernel::new(
    "attention_128",
    concat!(
        "#define ROW_VALUES 128\n",
        include_str!("numbers.cu"),
        include_str!("tiles.cu"),
        include_str!("softmax.cu"),
        include_str!("attention.cu"),
        include_str!("attention_backward.cu")
    ),
);

// Rows of tiles, by the names that they have in the kernels' text.
const QUERIES: usize = 128;
const KEYS: usize = 64;
const DECODE_ROWS: usize = 16;
const DECODE_KEYS: usize = 64;
const DQ_QUERIES: usize = 128;
const DQ_KEYS: usize = 32;
const DKV_KEYS: usize = 64;
const DKV_QUERIES: usize = 64;

/// Threads of every block that multiplies tiles.
const MULTIPLYING: u32 = 128;

/// Copies between the memories take as many bytes at once.
const ALIGNMENT: u64 = 16;

/// Whether the kernels read these: bf16 on a card that has room for their tiles, heads of 64 or 128 values.
///
/// # Errors
/// What the driver reports.
pub(super) fn takes(of: [&Tensor; 3]) -> Result<bool> {
    let Some(head_dim @ (64 | 128)) = of[0].dims().last().copied() else { return Ok(false) };
    for tensor in of {
        let small = tensor.dims().iter().all(|n| i32::try_from(*n).is_ok());
        // What is not contiguous is copied to a place of its own first.
        let read = tensor.device().is_cuda() && tensor.dtype() == DType::BF16;
        if !read || !small || tensor.elem_count() == 0 || (is_read(tensor) && address(tensor)? % ALIGNMENT != 0) {
            return Ok(false);
        }
    }
    let there = attribute(card(of[0])?, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(there >= dkv_bytes(head_dim) && there >= dq_bytes(head_dim))
}

fn kernels(s: Shape) -> &'static Kernel {
    if s.head_dim == 64 { &HEADS_OF_64 } else { &HEADS_OF_128 }
}

/// Bytes of a tile's rows.
fn tile(rows: usize, head_dim: usize) -> usize {
    2 * rows * head_dim
}

fn dq_bytes(head_dim: usize) -> usize {
    tile(2 * DQ_QUERIES + 4 * DQ_KEYS, head_dim)
}

/// The queries' log-sums and Δ lie beside the tiles, of this step and of the next.
fn dkv_bytes(head_dim: usize) -> usize {
    tile(2 * DKV_KEYS + 4 * DKV_QUERIES, head_dim) + 2 * DKV_QUERIES * 8
}

fn multiplying(blocks: (usize, usize), shared_bytes: usize) -> Grid {
    Grid { blocks, threads: MULTIPLYING, shared_bytes: shared_bytes as u32 }
}

/// What the kernels' texts call `Shape`.
fn arguments(s: Shape) -> [Argument; 6] {
    let [queries, keys, room, heads, kv_heads] = [s.queries, s.keys, s.room, s.heads, s.kv_heads].map(Argument::count);
    [queries, keys, room, heads, kv_heads, Argument::Number(s.scale() as f32)]
}

/// y, and the log-sums `[B, H, T]`: of few queries by parts of their keys, on a card of compute capability 9.0 by its warpgroups.
///
/// # Errors
/// What the driver reports.
pub(super) fn forward(op: &Attention) -> Result<(Tensor, Tensor)> {
    if op.shape.queries * op.shape.group() <= DECODE_ROWS {
        decode(op)
    } else if is_hopper(card(&op.q_bthd)?)? {
        attention_hopper::forward(op)
    } else {
        portable_forward(op)
    }
}

#[allow(unsafe_code)]
fn portable_forward(op: &Attention) -> Result<(Tensor, Tensor)> {
    let (s, q, device) = (op.shape, &op.q_bthd, card(&op.q_bthd)?);
    let y = room_like(q)?;
    let log_sums = room((s.batch, s.heads, s.queries), DType::F32, q.device())?;
    let grid = multiplying((s.batch * s.heads, s.queries.div_ceil(QUERIES)), tile(QUERIES + 2 * KEYS, s.head_dim));
    let tensors = [q, &op.k_bskd, &op.v_bskd, &y, &log_sums].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    // SAFETY: the signature of attention_forward; q, k and v are in bf16, as `takes` has seen, and of the shapes that `Attention::new` has
    // compared, y and the log-sums, which are new, of those that they are read with.
    unsafe {
        kernels(s).launch_function("attention_forward", device, &grid, &[&tensors[..], &arguments(s)].concat())?;
    }
    Ok((y, log_sums))
}

/// Few queries: blocks take a part of the keys each, so many that every multiprocessor has two.
#[allow(unsafe_code)]
fn decode(op: &Attention) -> Result<(Tensor, Tensor)> {
    let (s, q, device) = (op.shape, &op.q_bthd, card(&op.q_bthd)?);
    let y = room_like(q)?;
    let log_sums = room((s.batch, s.heads, s.queries), DType::F32, q.device())?;
    let steps = s.keys.div_ceil(DECODE_KEYS);
    let blocks = 2 * attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let parts = blocks.div_ceil(s.batch * s.kv_heads).clamp(1, steps);
    let span = steps.div_ceil(parts) * DECODE_KEYS;
    let parts = s.keys.div_ceil(span);
    let rows = s.batch * s.heads * s.queries;
    let sums = room((rows, parts, s.head_dim), DType::F32, q.device())?;
    let stats = room((rows, parts, 2), DType::F32, q.device())?;
    let [of_sums, of_stats] = [Argument::of(&sums)?, Argument::of(&stats)?];
    let grid = multiplying((s.batch * s.kv_heads, parts), tile(DECODE_ROWS + 4 * DECODE_KEYS, s.head_dim));
    let [of_q, of_k, of_v] = [q, &op.k_bskd, &op.v_bskd].map(Argument::of);
    let tensors = [of_q?, of_k?, of_v?, of_sums, of_stats];
    let all = [&tensors[..], &arguments(s), &[Argument::count(span)]].concat();
    // SAFETY: the signature of attention_decode, as above; the sums and stats of every row and part are new.
    unsafe { kernels(s).launch_function("attention_decode", device, &grid, &all)? };
    let grid = Grid { blocks: (rows, 1), threads: s.head_dim as u32, shared_bytes: 0 };
    let [parts, queries, heads] = [parts, s.queries, s.heads].map(Argument::count);
    let scale = Argument::Number(s.scale() as f32);
    let all = [of_sums, of_stats, Argument::of(&y)?, Argument::of(&log_sums)?, parts, queries, heads, scale];
    // SAFETY: the signature of attention_merge; the sums and stats are those just written, y and the log-sums are new.
    unsafe { kernels(s).launch_function("attention_merge", device, &grid, &all)? };
    Ok((y, log_sums))
}

/// dq, dk, dv: by its warpgroups on a card of compute capability 9.0 that has room for dS.
///
/// # Errors
/// What the driver reports.
pub(super) fn backward(op: &Attention, y: &Tensor, dy: &Tensor, log_sums: &Tensor) -> Result<[Tensor; 3]> {
    let q = &op.q_bthd;
    if dy.shape() != q.shape() || dy.dtype() != DType::BF16 {
        candle_core::bail!("causal_attention: dy {:?} in {:?}, y {:?} in bf16", dy.shape(), dy.dtype(), q.shape());
    }
    let dy = if address(dy)? % ALIGNMENT == 0 { dy.clone() } else { dy.force_contiguous()? };
    let device = card(q)?;
    if is_hopper(device)? && attention_hopper::has_backward(op.shape, device)? {
        attention_hopper::backward(op, y, &dy, log_sums)
    } else {
        portable_backward(op, y, &dy, log_sums)
    }
}

#[allow(unsafe_code)]
fn portable_backward(op: &Attention, y: &Tensor, dy: &Tensor, log_sums: &Tensor) -> Result<[Tensor; 3]> {
    let (s, q, device, kernels) = (op.shape, &op.q_bthd, card(&op.q_bthd)?, kernels(op.shape));
    let (dq, dk, dv) = (room_like(q)?, room_like(&op.k_bskd)?, room_like(&op.v_bskd)?);
    let rows = room((s.batch, s.heads, s.queries, 2), DType::F32, q.device())?;
    let [of_dy, of_rows] = [Argument::of(dy)?, Argument::of(&rows)?];

    let [count, queries, heads] = [s.batch * s.queries * s.heads, s.queries, s.heads].map(Argument::count);
    let all = [Argument::of(y)?, of_dy, Argument::of(log_sums)?, of_rows, count, queries, heads];
    let warps = THREADS as usize / 32;
    let grid = Grid { blocks: ((s.batch * s.queries * s.heads).div_ceil(warps), 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of attention_rows; y and dy are of the shape and type of q, the log-sums as the forward has written them, and the
    // rows new.
    unsafe { kernels.launch_function("attention_rows", device, &grid, &all)? };

    let [of_q, of_k, of_v] = [q, &op.k_bskd, &op.v_bskd].map(Argument::of);
    let inputs = [of_q?, of_k?, of_v?, of_dy, of_rows];
    let grid = multiplying((s.batch * s.heads, s.queries.div_ceil(DQ_QUERIES)), dq_bytes(s.head_dim));
    let all = [&inputs[..], &[Argument::of(&dq)?], &arguments(s)].concat();
    // SAFETY: the signature of attention_dq; the inputs as above, and dq, of the shape and type of q, is new.
    unsafe { kernels.launch_function("attention_dq", device, &grid, &all)? };

    let grid = multiplying((s.batch * s.kv_heads, s.keys.div_ceil(DKV_KEYS)), dkv_bytes(s.head_dim));
    let all = [&inputs[..], &[Argument::of(&dk)?, Argument::of(&dv)?], &arguments(s)].concat();
    // SAFETY: the signature of attention_dkv; the inputs as above, and dk and dv, of the shape and type of k and v, are new.
    unsafe { kernels.launch_function("attention_dkv", device, &grid, &all)? };
    Ok([dq, dk, dv])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rstest::rstest;

    use super::super::attention;
    use super::*;

    /// Numbers between -2 and 2 without a pattern: what is behind the point of large multiples of sines.
    fn noise(shape: (usize, usize, usize, usize), step: f64) -> Result<Tensor> {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let sines = Tensor::arange(0f32, count as f32, &Device::Cpu)?.affine(step, 0.0)?.sin()?.affine(43758.5, 0.0)?;
        (&sines - sines.floor()?)?.affine(4.0, -2.0)?.reshape(shape)?.to_dtype(DType::BF16)
    }

    /// ‖a − b‖ ⁄ ‖b‖.
    fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
        let a = a.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let [error, norm] = [(a - b)?, b.clone()].map(|x| x.sqr()?.sum_all()?.to_scalar::<f32>());
        Ok((error? / norm?).sqrt())
    }

    /// The form for every card is the formula on a card that has another one too, and so is that one.
    #[rstest]
    #[case::less_than_a_tile(3, 17, 17, 4, 4)]
    #[case::more_than_a_tile(1, 129, 129, 4, 2)]
    #[case::behind_a_cache(2, 30, 200, 3, 1)]
    #[case::many_tiles(1, 700, 701, 2, 1)]
    fn each_form_is_the_formula(
        #[case] b: usize,
        #[case] t: usize,
        #[case] s: usize,
        #[case] h: usize,
        #[case] k: usize,
        #[values(64, 128)] d: usize,
    ) -> Result<()> {
        let device = match Device::new_cuda(0) {
            Ok(device) => device,
            Err(error) => {
                println!("skipped: no GPU: {error}");
                return Ok(());
            }
        };
        let inputs = [noise((b, t, h, d), 12.9)?, noise((b, s, k, d), 78.2)?, noise((b, s, k, d), 37.7)?];
        let dy = noise((b, t, h, d), 93.9)?;
        let [q, key, v] = inputs.each_ref().map(|x| x.to_dtype(DType::F32));
        let (y, saved) = attention::forward(&q?, &key?, &v?)?;
        let [dq, dk, dv] = attention::backward(&saved, &dy.to_dtype(DType::F32)?)?;
        let expected = [y, dq, dk, dv];

        let [q, key, v] = inputs.each_ref().map(|x| x.to_device(&device));
        let (op, dy) = (Attention::new(&q?, &key?, &v?, s)?, dy.to_device(&device)?);
        let (y, log_sums) = portable_forward(&op)?;
        let [dq, dk, dv] = portable_backward(&op, &y, &dy, &log_sums)?;
        let mut forms = vec![[y, dq, dk, dv]];
        if is_hopper(card(&dy)?)? {
            let (y, log_sums) = attention_hopper::forward(&op)?;
            let [dq, dk, dv] = attention_hopper::backward(&op, &y, &dy, &log_sums)?;
            forms.push([y, dq, dk, dv]);
        }
        for (form, found) in forms.iter().enumerate() {
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = difference(found, expected)?;
                // bf16 has eight bits.
                assert!(error <= 1e-2, "form {form}, output {at}: {error:.1e}");
            }
        }
        Ok(())
    }
}
