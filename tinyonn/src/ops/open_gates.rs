//! How much work gates give: tokens by expert, and by how many experts they take.
//!
//! Legend: d decisions, each for some tokens; n experts. A gate that is not zero is open. Counts are exact in f32 up to 2²⁴ tokens.

use candle_core::{DType, Result, Tensor};

use super::lanes;

/// From gates `[d, n]` and the tokens that each decision is for, `[d]` or one each: the tokens of each expert `[n]`, and of each number of experts that
/// are taken at once, `[n + 1]`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::open_gates;
///
/// // Two decisions over two experts, the first for three tokens, the second for one.
/// let gate_dn = Tensor::new(&[[1f32, 0.0], [0.5, 0.5]], &Device::Cpu)?;
/// let [tokens_n, counts] = open_gates(&gate_dn, Some(vec![3.0, 1.0]))?;
/// assert_eq!(tokens_n.to_vec1::<f32>()?, [4.0, 1.0]);
/// assert_eq!(counts.to_vec1::<f32>()?, [0.0, 3.0, 1.0]); // three took one, one took both
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not go together; what the device reports.
pub fn open_gates(gate_dn: &Tensor, tokens_d: Option<Vec<f32>>) -> Result<[Tensor; 2]> {
    let ((decisions, experts), device) = (gate_dn.dims2()?, gate_dn.device());
    if let Some(tokens_d) = tokens_d.as_ref().filter(|tokens_d| tokens_d.len() != decisions) {
        candle_core::bail!("tokens of {} decisions, gates of {decisions}", tokens_d.len());
    }
    let gate_dn = gate_dn.detach();
    #[cfg(feature = "cuda")]
    if super::kernel::is_read(&gate_dn) && decisions * experts > 0 {
        return on_a_card::open_gates(&gate_dn, tokens_d);
    }
    let tokens_d = tokens_d.unwrap_or_else(|| vec![1.0; decisions]);
    if lanes::fused(&[&gate_dn]) && gate_dn.is_contiguous() && experts > 0 {
        let (mut tokens_n, mut counts) = (vec![0f32; experts], vec![0f32; experts + 1]);
        lanes::with_slices([&gate_dn], |[gates]| {
            for (gates, tokens) in gates.chunks_exact(experts).zip(&tokens_d) {
                let mut taken = 0;
                for (sum, gate) in tokens_n.iter_mut().zip(gates) {
                    let open = *gate != 0.0;
                    taken += usize::from(open);
                    *sum += if open { *tokens } else { 0.0 };
                }
                counts[taken] += tokens;
            }
        })?;
        return Ok([Tensor::from_vec(tokens_n, experts, device)?, Tensor::from_vec(counts, experts + 1, device)?]);
    }
    let tokens_1d = Tensor::from_vec(tokens_d, (1, decisions), device)?;
    let open_dn = gate_dn.ne(0f64)?.to_dtype(DType::F32)?;
    let taken_d1 = open_dn.sum_keepdim(1)?;
    let counts_1n = Tensor::arange(0f32, experts as f32 + 1.0, device)?.unsqueeze(0)?;
    let counts = tokens_1d.matmul(&taken_d1.broadcast_eq(&counts_1n)?.to_dtype(DType::F32)?)?.squeeze(0)?;
    Ok([tokens_1d.matmul(&open_dn)?.squeeze(0)?, counts])
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Grid, Kernel, THREADS, card, room};

    static KERNELS: Kernel =
        Kernel::new("open_gates", concat!(include_str!("numbers.cu"), include_str!("open_gates.cu")));

    /// Decisions and columns of a block.
    const DECISIONS: usize = 64;
    const COLUMNS: usize = 32;

    #[allow(unsafe_code)]
    pub(super) fn open_gates(gate_dn: &Tensor, tokens_d: Option<Vec<f32>>) -> Result<[Tensor; 2]> {
        let ((decisions, experts), device) = (gate_dn.dims2()?, gate_dn.device());
        let tokens_d = tokens_d.map(|tokens| Tensor::from_vec(tokens, decisions, device)).transpose()?;
        let (blocks, columns) = (decisions.div_ceil(DECISIONS), 2 * experts + 1);
        let (parts, sums) = (room((blocks, columns), DType::F32, device)?, room(columns, DType::F32, device)?);
        let arguments = [
            Argument::of(gate_dn)?,
            tokens_d.as_ref().map_or(Ok(Argument::NOTHING), Argument::of)?,
            Argument::of(&parts)?,
            Argument::count(decisions),
            Argument::count(experts),
            Argument::half(gate_dn),
        ];
        let grid = |blocks| Grid { blocks: (blocks, 1), threads: THREADS, shared_bytes: 0 };
        // SAFETY: the signature of open_gates: gates [d, n] of a type that is read, as the caller has seen, tokens of as many decisions in f32, if any, and a row
        // of sums in f32 for each block, which is new.
        unsafe { KERNELS.launch_function("open_gates", card(gate_dn)?, &grid(blocks), &arguments)? };
        let arguments =
            [Argument::of(&parts)?, Argument::of(&sums)?, Argument::count(blocks), Argument::count(columns)];
        // SAFETY: the signature of open_gates_sum: the rows just written and their sum, which is new.
        unsafe {
            KERNELS.launch_function("open_gates_sum", card(gate_dn)?, &grid(columns.div_ceil(COLUMNS)), &arguments)?;
        };
        Ok([sums.narrow(0, 0, experts)?, sums.narrow(0, experts, experts + 1)?])
    }
}
