//! Linear routers by discriminant analysis (`fit = discriminant`): each choice's score is the log-odds that a row takes it, of two Gaussians of one
//! covariance, the rows *in* it and those *out*, which pass its router and take others (DESIGN §2).
//!
//! Σ within both is Σ of all rows of the router less q Δ Δᵀ, q = n_in n_out / n², so that one factorisation a router serves all of its choices: Σ⁻¹ Δ is A⁻¹ Δ / (1 − q Δᵀ A⁻¹ Δ), A of all
//! rows with its ridge.
//!
//! Legend: n rows, d their width, c choices of one router.

use candle_core::{DType, Tensor};
use tinyonn_linalg::solve_positive_definite;

use super::gda::NEVER;
use crate::ops::{ClassScatter, Weigh, host};
use crate::{Error, Result};

/// What is added to the diagonal of A, as a share of its mean: as of a repair.
const RIDGE: f64 = 0.01;
/// Rows whose products are formed at once.
const BLOCK: usize = 4096;

/// W `[c, d]` and b `[c]` of one router.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::train::Discriminants;
///
/// // Rows of class 0 take choice 0 and lie right, those of class 1 choice 1 and left: as many of both, so that nothing speaks for either at 0.
/// let x = Tensor::new(&[[3f32, 1.0], [2.0, -1.0], [-3.0, 1.0], [-2.0, -1.0]], &Device::Cpu)?;
/// let found = Discriminants::fit(&x, &[0, 0, 1, 1], &[vec![0], vec![1]], 2)?;
/// assert!(found.weight_cd[0] > 0.0 && (found.weight_cd[0] + found.weight_cd[2]).abs() < 1e-9);
/// assert!(found.bias_c.iter().all(|b| b.abs() < 1e-9));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Discriminants {
    /// Row by row.
    pub weight_cd: Vec<f64>,
    /// log((n_in + 1)/(n_out + 1)) − w · (μ_in + μ_out)/2.
    pub bias_c: Vec<f64>,
}

impl Discriminants {
    /// Of rows `x_nd`, f32 in main memory, of the classes `class_n`; `taken[class]` are the choices that rows of a class take, and classes that take none do
    /// not pass by. A choice that no row takes is never taken while another is there; one that all take has a constant score.
    ///
    /// # Errors
    /// Values that are no finite numbers.
    pub fn fit(x_nd: &Tensor, class_n: &[u32], taken: &[Vec<usize>], choices: usize) -> Result<Self> {
        let d = x_nd.dim(1)?;
        let passing: Vec<u32> = (0u32..)
            .zip(class_n)
            .filter(|(_, class)| taken.get(**class as usize).is_some_and(|taken| !taken.is_empty()))
            .map(|(row, _)| row)
            .collect();
        let n = passing.len() as f64;
        let mut scatter = ClassScatter::new(Weigh::Rows);
        // Of each choice the rows in it, and their sum; of all rows the same.
        let (mut counts, mut sums) = (vec![0f64; choices], vec![0f64; choices * d]);
        for rows in passing.chunks(BLOCK) {
            let x = x_nd.index_select(&Tensor::new(rows, x_nd.device())?, 0)?.to_dtype(DType::F32)?;
            scatter.push(&x, 0)?;
            for (x, row) in host::in_memory(&x)?.chunks_exact(d.max(1)).zip(rows) {
                for choice in &taken[class_n[*row as usize] as usize] {
                    counts[*choice] += 1.0;
                    sums[choice * d..][..d].iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x));
                }
            }
        }
        scatter.close()?;
        let mut found = Self { weight_cd: vec![0.0; choices * d], bias_c: vec![0.0; choices] };
        let Some(mean) = scatter.mean(0) else { return Ok(found) };
        // μ_in − μ_out of each choice, a column each.
        let mut apart_dc = vec![0f64; d * choices];
        for (choice, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0.0 && **count < n) {
            for (j, mean) in mean.iter().enumerate() {
                // μ_in − μ_out = (μ_in − μ) n / n_out.
                apart_dc[j * choices + choice] = (sums[choice * d + j] / count - mean) * n / (n - count);
            }
        }
        let mut all_dd: Vec<f64> = scatter.matrix().iter().map(|sum| sum / n).collect();
        let scale = (0..d).map(|j| all_dd[j * (d + 1)]).sum::<f64>() / d.max(1) as f64;
        all_dd.iter_mut().step_by(d + 1).for_each(|x| *x += if scale > 0.0 { RIDGE * scale } else { 1.0 });
        let solved_dc = solve_positive_definite(&all_dd, &apart_dc, (d, choices)).ok_or_else(|| {
            let remedy = "look for values that are not finite among what the layers see; check the model's tensors";
            Error::setting("router.fit", "what discriminants are fitted to has no covariance", remedy)
        })?;
        for (choice, count) in counts.iter().enumerate() {
            found.bias_c[choice] = if *count > 0.0 { ((count + 1.0) / (n - count + 1.0)).ln() } else { NEVER };
            let column = |of: &[f64], j: usize| of[j * choices + choice];
            let through: f64 = (0..d).map(|j| column(&apart_dc, j) * column(&solved_dc, j)).sum();
            // Less than 1, since A has a ridge.
            let within = 1.0 - count * (n - count) / (n * n) * through;
            for (j, mean) in mean.iter().enumerate() {
                let weight = column(&solved_dc, j) / within;
                // Half way between both means: μ + (n_out − n_in)/2n of what lies between them.
                let middle = mean + (n - 2.0 * count) / (2.0 * n) * column(&apart_dc, j);
                found.weight_cd[choice * d + j] = weight;
                found.bias_c[choice] -= weight * middle;
            }
        }
        Ok(found)
    }
}
