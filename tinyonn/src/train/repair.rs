//! Repairs a layer of which only some neurons take part, in closed form (DESIGN §4): what W_d of those that do should be, so that the stream comes out
//! as the dense model's.
//!
//! h `[t, I]` are the hidden values of the neurons taken, zero for others, e `[t, d]` what the layer leaves missing of the dense model's stream:
//! e = (r + MLP(norm r)) − s − h W_d, r the dense stream behind the attention and s the sparse one. ΔW and b minimise
//! Σ_t ‖e_t − h_t ΔW − b‖² + λ · mean diag(Σ h hᵀ) · ‖ΔW‖², b unpenalised. It is a
//! ridge regression, of whose rows one matrix is kept.

use candle_core::{Device, Tensor};

use super::ridge::RidgeSums;
use crate::Result;

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
pub struct RepairSums(RidgeSums);

impl RepairSums {
    /// Nothing seen, of a layer of so many neurons.
    #[must_use]
    pub fn new(neurons: usize) -> Self {
        Self(RidgeSums::new(neurons))
    }

    /// More tokens: h `[t, I]` and e `[t, d]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn push(&mut self, h_ti: &Tensor, e_td: &Tensor) -> Result<()> {
        self.0.push(h_ti, e_td)
    }

    /// ΔW and b (zero without `bias`) under λ = `ridge`; ten times more, as often as that is needed, where the matrix is not positive definite.
    ///
    /// # Errors
    /// No tokens; values that are no finite numbers.
    pub fn solve(self, ridge: f64, bias: bool, device: &Device) -> Result<Repair> {
        let found = self.0.solve("repair", ridge, bias)?;
        let (i, d) = (found.means[0].len(), found.means[1].len());
        let b = if bias { found.constant(&found.map_nm) } else { vec![0.0; d] };
        let tensor = |values: &[f64], shape: &[usize]| {
            let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
            Tensor::from_vec(values, shape, device)
        };
        Ok(Repair { down_id: tensor(&found.map_nm, &[i, d])?, bias_d: tensor(&b, &[d])?, ridge: found.ridge })
    }
}
