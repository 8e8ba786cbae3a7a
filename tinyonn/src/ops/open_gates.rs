//! How much work gates give: tokens by expert, and by how many experts they take.
//!
//! Legend: d decisions, each for some tokens; n experts. A gate that is not zero is open. Counts are exact in f32 up to 2²⁴ tokens.

use candle_core::{DType, Result, Tensor};

use super::lanes;

/// From gates `[d, n]` and the tokens that each decision is for, `[d]`: the tokens of each expert `[n]`, and of each number of experts that
/// are taken at once, `[n + 1]`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::open_gates;
///
/// // Two decisions over two experts, the first for three tokens, the second for one.
/// let gate_dn = Tensor::new(&[[1f32, 0.0], [0.5, 0.5]], &Device::Cpu)?;
/// let [tokens_n, counts] = open_gates(&gate_dn, vec![3.0, 1.0])?;
/// assert_eq!(tokens_n.to_vec1::<f32>()?, [4.0, 1.0]);
/// assert_eq!(counts.to_vec1::<f32>()?, [0.0, 3.0, 1.0]); // three took one, one took both
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not go together; what the device reports.
pub fn open_gates(gate_dn: &Tensor, tokens_d: Vec<f32>) -> Result<[Tensor; 2]> {
    let ((decisions, experts), device) = (gate_dn.dims2()?, gate_dn.device());
    if tokens_d.len() != decisions {
        candle_core::bail!("tokens of {} decisions, gates of {decisions}", tokens_d.len());
    }
    let gate_dn = gate_dn.detach();
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
