//! Ridge regression in closed form: of rows (a, b), a `[n]` and b `[m]`, the M `[n, m]` and c of least Σ ‖b − a M − c‖² + λ · mean diag(Σ a aᵀ) · ‖M‖², c
//! unpenalised. Of the rows one matrix is kept ([`ClassScatter`] of (a, b), f32 products added to f64), so that nothing grows with the text; the system is
//! solved by Cholesky in f64.

use candle_core::{DType, Tensor};
use tinyonn_linalg::solve_positive_definite;

use crate::ops::{ClassScatter, Weigh};
use crate::{Error, Result};

/// λ is multiplied by this where the matrix is not positive definite, so often.
const RAISE: (f64, usize) = (10.0, 6);

/// The sums over rows that a regression follows from.
#[derive(Clone, Debug)]
pub(super) struct RidgeSums {
    inputs: usize,
    scatter: ClassScatter,
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct RidgeMap {
    /// M `[n, m]`, row-major.
    pub(super) map_nm: Vec<f64>,
    /// Σ a bᵀ `[n, m]`, about the means where there is a constant: (Σ a aᵀ + λ ..) M.
    pub(super) cross_nm: Vec<f64>,
    /// E a and E b.
    pub(super) means: [Vec<f64>; 2],
    /// The λ it was found with.
    pub(super) ridge: f64,
}

impl RidgeSums {
    /// Nothing seen, of so many inputs.
    pub(super) fn new(inputs: usize) -> Self {
        Self { inputs, scatter: ClassScatter::new(Weigh::Rows) }
    }

    /// More rows: a `[t, n]` and b `[t, m]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub(super) fn push(&mut self, a_tn: &Tensor, b_tm: &Tensor) -> Result<()> {
        let rows = Tensor::cat(&[&a_tn.to_dtype(DType::F32)?, &b_tm.to_dtype(DType::F32)?], 1)?;
        Ok(self.scatter.push(&rows, 0)?)
    }

    /// M under λ = `ridge`, with a constant or without; ten times more, as often as that is needed, where the matrix is not positive definite. `what` names it
    /// in messages.
    ///
    /// # Errors
    /// No rows; values that are no finite numbers.
    pub(super) fn solve(mut self, what: &str, ridge: f64, constant: bool) -> Result<RidgeMap> {
        self.scatter.close()?;
        let (n, rows) = (self.inputs, self.scatter.rows());
        let Some(mean) = self.scatter.mean(0) else {
            return Err(Error::setting(what, "no tokens were seen", "calibrate on at least one sequence"));
        };
        let (width, all) = (mean.len(), self.scatter.matrix());
        let m = width - n;
        let (mean_a, mean_b) = mean.split_at(n);
        // About the means, which a constant takes up; without one, about zero.
        let about = |row: usize, column: usize| {
            all[row * width + column] + if constant { 0.0 } else { rows * mean[row] * mean[column] }
        };
        let places = (0..n).flat_map(|row| (n..width).map(move |column| (row, column)));
        let cross_nm: Vec<f64> = places.map(|(row, column)| about(row, column)).collect();
        let second = (0..n).map(|row| all[row * width + row] + rows * mean_a[row] * mean_a[row]);
        let scale = second.sum::<f64>() / n.max(1) as f64;
        let mut ridge = ridge;
        for _ in 0..=RAISE.1 {
            // Of inputs that say nothing nothing follows.
            let added = if scale > 0.0 { ridge * scale } else { 1.0 };
            let mut gram_nn: Vec<f64> = (0..n * n).map(|at| about(at / n, at % n)).collect();
            gram_nn.iter_mut().step_by(n + 1).for_each(|x| *x += added);
            if let Some(map_nm) = solve_positive_definite(&gram_nn, &cross_nm, (n, m)) {
                return Ok(RidgeMap { map_nm, cross_nm, means: [mean_a.to_vec(), mean_b.to_vec()], ridge });
            }
            let more = ridge * RAISE.0;
            tracing::warn!("{what}: λ = {ridge} leaves a matrix that is not positive definite; {more} is tried");
            ridge = more;
        }
        let remedy = "look for values that are not finite among what the layers see; check the model's tensors";
        Err(Error::setting(what, "its sums are no positive definite matrix", remedy))
    }
}

impl RidgeMap {
    /// c: E b − E a · `map_nm`, which is M or what stands for it.
    pub(super) fn constant(&self, map_nm: &[f64]) -> Vec<f64> {
        let [mean_a, mean_b] = &self.means;
        let mut constant = mean_b.clone();
        for (row, a) in map_nm.chunks_exact(mean_b.len().max(1)).zip(mean_a) {
            constant.iter_mut().zip(row).for_each(|(c, x)| *c -= a * x);
        }
        constant
    }
}
