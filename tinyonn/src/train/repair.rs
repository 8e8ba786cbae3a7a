//! Repairs a layer of which only some neurons take part, in closed form (DESIGN §4): what W_d of those that do should be, so that the stream comes out
//! as the dense model's.
//!
//! h `[t, I]` are the hidden values of the neurons taken, zero for others, e `[t, d]` what the layer leaves missing of the dense model's stream:
//! e = (r + MLP(norm r)) − s − h W_d, r the dense stream behind the attention and s the sparse one. ΔW and b minimise
//! Σ_t ‖e_t − h_t ΔW − b‖² + λ · mean diag(Σ h hᵀ) · ‖ΔW‖², b unpenalised. Of the rows one matrix is kept ([`ClassScatter`] of (h, e), f32 products added to
//! f64), so that nothing grows with the text; the system is solved by Cholesky in f64.

use candle_core::{DType, Device, Tensor};
use tinyonn_linalg::solve_positive_definite;

use crate::ops::{ClassScatter, Weigh};
use crate::{Error, Result};

/// λ is multiplied by this where the matrix is not positive definite, so often.
const RAISE: (f64, usize) = (10.0, 6);

/// What a layer is given.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::train::{Repair, RepairSums};
///
/// let mut sums = RepairSums::new(2);
/// sums.push(&Tensor::ones((4, 2), DType::F32, &Device::Cpu)?, &Tensor::zeros((4, 3), DType::F32, &Device::Cpu)?)?;
/// let found: Repair = sums.solve(0.1, false, &Device::Cpu)?;
/// assert_eq!((found.down_id.dims(), found.bias_d.dims()), (&[2, 3][..], &[3][..]));
/// assert!(found.ridge >= 0.1);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Repair {
    /// ΔW, a row a neuron `[I, d]`, f32.
    pub down_id: Tensor,
    /// b `[d]`, f32.
    pub bias_d: Tensor,
    /// The λ it was found with.
    pub ridge: f64,
}

/// The sums over a text that a repair follows from.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::train::RepairSums;
///
/// // e = 2 h + 1, of one neuron and one channel.
/// let h = Tensor::new(&[[0f32], [1.0], [2.0], [5.0]], &Device::Cpu)?;
/// let e = ((&h * 2.0)? + 1.0)?;
/// let mut sums = RepairSums::new(1);
/// sums.push(&h, &e)?;
/// let repair = sums.solve(1e-9, true, &Device::Cpu)?;
/// assert!((repair.down_id.to_vec2::<f32>()?[0][0] - 2.0).abs() < 1e-5);
/// assert!((repair.bias_d.to_vec1::<f32>()?[0] - 1.0).abs() < 1e-5);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RepairSums {
    neurons: usize,
    scatter: ClassScatter,
}

impl RepairSums {
    /// Nothing seen, of a layer of so many neurons.
    #[must_use]
    pub fn new(neurons: usize) -> Self {
        Self { neurons, scatter: ClassScatter::new(Weigh::Rows) }
    }

    /// More tokens: h `[t, I]` and e `[t, d]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn push(&mut self, h_ti: &Tensor, e_td: &Tensor) -> Result<()> {
        let rows = Tensor::cat(&[&h_ti.to_dtype(DType::F32)?, &e_td.to_dtype(DType::F32)?], 1)?;
        Ok(self.scatter.push(&rows, 0)?)
    }

    /// ΔW and b (zero without `bias`) under λ = `ridge`; ten times more, as often as that is needed, where the matrix is not positive definite.
    ///
    /// # Errors
    /// No tokens; values that are no finite numbers.
    pub fn solve(mut self, ridge: f64, bias: bool, device: &Device) -> Result<Repair> {
        self.scatter.close()?;
        let (i, tokens) = (self.neurons, self.scatter.rows());
        let Some(mean) = self.scatter.mean(0) else {
            return Err(Error::setting("repair", "no tokens were seen", "repair on at least one sequence"));
        };
        let (width, all) = (mean.len(), self.scatter.matrix());
        let d = width - i;
        let (mean_h, mean_e) = mean.split_at(i);
        // About the means, which a bias takes up; without one, about zero.
        let about = |row: usize, column: usize| {
            all[row * width + column] + if bias { 0.0 } else { tokens * mean[row] * mean[column] }
        };
        let cross_id: Vec<f64> =
            (0..i).flat_map(|row| (i..width).map(move |column| (row, column))).map(|(r, c)| about(r, c)).collect();
        let second = (0..i).map(|row| all[row * width + row] + tokens * mean_h[row] * mean_h[row]);
        let scale = second.sum::<f64>() / i.max(1) as f64;
        let mut ridge = ridge;
        for _ in 0..=RAISE.1 {
            // Of a layer that says nothing there is nothing to repair.
            let added = if scale > 0.0 { ridge * scale } else { 1.0 };
            let mut gram_ii: Vec<f64> = (0..i * i).map(|at| about(at / i, at % i)).collect();
            gram_ii.iter_mut().step_by(i + 1).for_each(|x| *x += added);
            if let Some(down) = solve_positive_definite(&gram_ii, &cross_id, (i, d)) {
                let mut b = if bias { mean_e.to_vec() } else { vec![0.0; d] };
                for (row, h) in down.chunks_exact(d.max(1)).zip(mean_h).filter(|_| bias) {
                    b.iter_mut().zip(row).for_each(|(bias, delta)| *bias -= h * delta);
                }
                let f32 = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<_>>();
                let down_id = Tensor::from_vec(f32(down), (i, d), device)?;
                return Ok(Repair { down_id, bias_d: Tensor::from_vec(f32(b), d, device)?, ridge });
            }
            tracing::warn!(
                "repair: λ = {ridge} leaves a matrix that is not positive definite; {} is tried",
                ridge * RAISE.0
            );
            ridge *= RAISE.0;
        }
        let remedy = "look for values that are not finite among what the layers see; check the model's tensors";
        Err(Error::setting("repair", "its sums are no positive definite matrix", remedy))
    }
}
