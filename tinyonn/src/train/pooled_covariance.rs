//! One full covariance of all choices of a Gaussian router, in closed form (`covariance = shared_full`, DESIGN §2).

use candle_core::{DType, Tensor};

use super::gda::{self, FLOOR, SHRINKAGE};
use crate::Result;
use crate::ops::{ClassSums, host};

/// One Σ of all choices of a router, within them: Σ = (Σ_c Σ_{rows of c} (z − μ_c)(z − μ_c)ᵀ + n₀ diag σ²_pooled) / (n + n₀), n rows and σ²_pooled as in
/// [`gda::fit`]. Shrunk towards a diagonal, it is positive definite however few rows there are. Kept as D and σ² of (I + D) Σ (I + D)ᵀ = diag σ², D strictly lower triangular.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::train::PooledCovariance;
///
/// // One choice, whose two dimensions rise together.
/// let z = Tensor::new(&[[-1f32, -1.0], [1.0, 1.0], [-2.0, -2.0], [2.0, 2.0]], &Device::Cpu)?.repeat((1000, 1))?;
/// let found = PooledCovariance::fit(&z, &[0; 4000], &[vec![0]], &[vec![0.0, 0.0]])?;
/// // The second is the first, so that hardly anything is left of it: of the rows' variance 2.5 what the shrinkage adds.
/// assert!((found.decorrelation[2] + 1.0).abs() < 0.01 && found.decorrelation[1] == 0.0);
/// assert!((found.log_variance[0].exp() - 2.5).abs() < 0.01 && found.log_variance[1].exp() < 0.1);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PooledCovariance {
    /// D `[r, r]`, row by row.
    pub decorrelation: Vec<f64>,
    /// log σ² `[r]`.
    pub log_variance: Vec<f64>,
}

/// Rows whose products are formed at once.
const BLOCK: usize = 4096;

impl PooledCovariance {
    /// Of rows `z_nr`, f32 in main memory, of the classes `class_n`; `taken[class]` are the choices that rows of a class take, `mean[choice]` their μ. A row that
    /// takes several choices counts with each.
    ///
    /// # Errors
    /// Rows that do not go with the classes.
    pub fn fit(z_nr: &Tensor, class_n: &[u32], taken: &[Vec<usize>], mean: &[Vec<f64>]) -> Result<Self> {
        let (r, choices_of) =
            (z_nr.dim(1)?, |row: &usize| taken.get(class_n[*row] as usize).map_or(&[][..], Vec::as_slice));
        let pairs: Vec<(u32, usize)> = (0..class_n.len())
            .flat_map(|row| choices_of(&row).iter().map(move |choice| (row as u32, *choice)))
            .collect();
        let mut products = vec![0f64; r * r];
        for pairs in pairs.chunks(BLOCK) {
            let rows: Vec<u32> = pairs.iter().map(|(row, _)| *row).collect();
            let of_rows: Vec<f64> = pairs.iter().flat_map(|(_, choice)| &mean[*choice]).copied().collect();
            let z = z_nr.index_select(&Tensor::new(rows, z_nr.device())?, 0)?.to_dtype(DType::F64)?;
            let apart = (z - Tensor::from_vec(of_rows, (pairs.len(), r), z_nr.device())?)?;
            let block = host::read(&[&apart.t()?.matmul(&apart)?])?.concat();
            products.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
        }
        // The spread of all rows, between choices as well: what each choice is shrunk towards elsewhere.
        let mut passing: Vec<u32> = pairs.iter().map(|(row, _)| *row).collect();
        passing.dedup();
        let (pooled, n) = (spread(z_nr, &passing)?, pairs.len() as f64);
        for (at, sum) in products.iter_mut().enumerate() {
            let towards = if at % (r + 1) == 0 { SHRINKAGE * pooled[at / (r + 1)] } else { 0.0 };
            *sum = (*sum + towards) / (n + SHRINKAGE);
        }
        Ok(Self::of_matrix(&products, FLOOR * pooled.iter().sum::<f64>() / r.max(1) as f64))
    }

    /// Of Σ `[r, r]`, positive definite; no σ² is less than `floor`.
    fn of_matrix(sigma: &[f64], floor: f64) -> Self {
        let r = sigma.len().isqrt();
        // Σ = L diag(σ²) Lᵀ, L with ones on its diagonal; I + D = L⁻¹.
        let (mut l, mut variance) = (vec![0f64; r * r], vec![0f64; r]);
        for i in 0..r {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| l[i * r + k] * l[j * r + k] * variance[k]).sum();
                let left = sigma[i * r + j] - known;
                if i == j { variance[i] = left.max(floor) } else { l[i * r + j] = left / variance[j] }
            }
        }
        let mut inverse = vec![0f64; r * r];
        for i in 0..r {
            for j in 0..i {
                let through: f64 = (j + 1..i).map(|k| l[i * r + k] * inverse[k * r + j]).sum();
                inverse[i * r + j] = -(l[i * r + j] + through);
            }
        }
        Self { decorrelation: inverse, log_variance: variance.iter().map(|v| v.ln()).collect() }
    }
}

/// The variance of each dimension over some rows, floored as in [`gda::fit`].
fn spread(z_nr: &Tensor, rows: &[u32]) -> Result<Vec<f64>> {
    let mut sums = ClassSums::zero(1, z_nr.dim(1)?);
    if !rows.is_empty() {
        let own = host::in_memory(&z_nr.index_select(&Tensor::new(rows, z_nr.device())?, 0)?)?;
        sums.push_rows(&own, &vec![0; rows.len()])?;
    }
    let pooled = gda::fit(&sums, &[vec![0]], 1);
    Ok(pooled.log_variance.first().map_or_else(Vec::new, |row| row.iter().map(|log| log.exp()).collect()))
}
