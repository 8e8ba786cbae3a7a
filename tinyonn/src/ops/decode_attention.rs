//! Attention of one new position of a few sequences to all before it, in bf16 or f32, by one launch that a captured graph can hold (`decode_attention.cu`): how many
//! positions there are is read on the device, and the launch is the same for any number of them.
//!
//! Queries and keys are normalised and turned by the position's angles as [`norm_rope`](super::norm_rope) does, the new key and value are written to their place in the room,
//! and y = Σ_j softmax_j(q·k_j / √D) v_j over all positions up to the new one, as [`attention`](super::attention) has it. A key is read once for all query heads of its group.
//! Positions are dealt over parts of 64 and more, two blocks a multiprocessor; the last block of a key head puts them together, in their order: the bits are the same in every run.
//!
//! Shapes: q, k and v of the new position side by side `[B, (H + 2 K) D]`; keys and values `[B, room, K, D]`; y `[B, H D]`.

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor};

use super::Workspace;
use super::kernel::{Argument, Grid, Kernel, attribute, card, is_read};

static IN_BF16: Kernel = Kernel::overlapping(
    "decode_attention_bf16",
    concat!(
        "#define KEPT_IN_BF16 true\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("decode_attention.cu")
    ),
);
static IN_F32: Kernel = Kernel::overlapping(
    "decode_attention_f32",
    concat!(
        "#define KEPT_IN_BF16 false\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("decode_attention.cu")
    ),
);

const THREADS: u32 = 256;
/// Query heads of a key head, at most.
const MOST_GROUP: usize = 8;
/// Lanes that take a head, at least.
const LEAST_LANES: usize = 4;

/// What queries and keys go through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turning<'a> {
    /// The weights of the norms of queries and keys, and ε.
    pub(crate) norms: Option<([&'a Tensor; 2], f64)>,
    /// Cosines and sines of all positions `[room or more, D / 2]`, f32.
    pub(crate) angles: Option<[&'a Tensor; 2]>,
}

/// Where keys and values of earlier positions lie, and the new position's number `[1]` u32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past<'a> {
    pub(crate) keys_bskd: &'a Tensor,
    pub(crate) values_bskd: &'a Tensor,
    pub(crate) position: &'a Tensor,
}

/// Whether the kernels take heads of this kind.
pub(crate) fn takes(heads: usize, keys_bskd: &Tensor) -> Result<bool> {
    let (_, _, kv_heads, d) = keys_bskd.dims4()?;
    let lanes = d * keys_bskd.dtype().size_in_bytes() / 16;
    let fits = lanes.is_power_of_two() && (LEAST_LANES..=32).contains(&lanes) && heads.is_multiple_of(kv_heads);
    Ok(fits && heads / kv_heads <= MOST_GROUP && is_read(keys_bskd))
}

/// y `[B, H D]` in a tensor of the workspace.
#[allow(unsafe_code)]
pub(crate) fn forward(
    qkv: &Tensor,
    heads: usize,
    turning: Turning<'_>,
    past: Past<'_>,
    workspace: &mut Workspace,
) -> Result<Tensor> {
    let Past { keys_bskd, values_bskd, position } = past;
    let ((b, room, kv_heads, d), (dtype, device)) = (keys_bskd.dims4()?, (qkv.dtype(), qkv.device()));
    let fits = values_bskd.dims() == keys_bskd.dims() && qkv.dims() == [b, (heads + 2 * kv_heads) * d];
    let typed = [qkv, keys_bskd, values_bskd].iter().all(|x| is_read(x) && x.dtype() == dtype);
    let normed = turning.norms.is_none_or(|(weights, _)| {
        weights.iter().all(|weight| weight.dims() == [d] && weight.dtype() == dtype && weight.is_contiguous())
    });
    let turned = turning.angles.is_none_or(|angles| {
        angles.iter().all(|table| {
            table.dims().last() == Some(&(d / 2))
                && table.elem_count() >= room * d / 2
                && table.dtype() == DType::F32
                && is_read(table)
        })
    });
    let counted = position.elem_count() == 1 && position.dtype() == DType::U32;
    if !(fits && typed && normed && turned && counted && takes(heads, keys_bskd)?) {
        candle_core::bail!("decode_attention: q, k and v {:?} of {heads} heads, {turning:?}, {past:?}", qkv.shape());
    }
    let group = heads / kv_heads;
    let blocks = 2 * attribute(card(qkv)?, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let parts = blocks.div_ceil(b * kv_heads);
    let sums = workspace.take(&[b * heads, parts, d], DType::F32, device)?;
    let stats = workspace.take(&[b * heads, parts, 2], DType::F32, device)?;
    let arrived = workspace.take(&[b * kv_heads], DType::U32, device)?;
    let y = workspace.take(&[b, heads * d], dtype, device)?;
    let pair = |tensors: Option<[&Tensor; 2]>| match tensors {
        Some([first, second]) => Ok([Argument::of(first)?, Argument::of(second)?]),
        None => Ok::<_, candle_core::Error>([Argument::NOTHING; 2]),
    };
    let (norms, angles) = (pair(turning.norms.map(|(weights, _)| weights))?, pair(turning.angles)?);
    let tensors = [keys_bskd, values_bskd, position, &sums, &stats, &arrived, &y].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    let numbers = [heads, kv_heads, d, room].map(Argument::count);
    let eps = Argument::Number(turning.norms.map_or(0.0, |(_, eps)| eps as f32));
    let scale = Argument::Number(1.0 / (d as f32).sqrt());
    // Queries and a key; later the sums of every stream: a lane's chunk is a share of a warp's 32.
    let (chunk, threads) = (16 / dtype.size_in_bytes(), THREADS as usize);
    let shared_bytes = 4 * ((group + 1) * d).max(threads * chunk * group);
    let grid = Grid { blocks: (b * kv_heads, parts), threads: THREADS, shared_bytes: shared_bytes as u32 };
    let kernel = if dtype == DType::BF16 { &IN_BF16 } else { &IN_F32 };
    let arguments = [&[Argument::of(qkv)?], &norms[..], &angles, &tensors, &numbers, &[eps, scale]].concat();
    // SAFETY: the signature of decode_attention; all tensors are of the shapes and types that were compared, those of the workspace of the sizes that the launch's blocks write,
    // counts of arrivals zeros at first and left as such. The position is below the room, as whoever holds the cache sees to.
    unsafe { kernel.launch_function(&format!("decode_attention_{group}"), card(qkv)?, &grid, &arguments)? };
    Ok(y)
}
