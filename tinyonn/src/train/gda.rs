//! Gaussian discriminant analysis: Gaussian routers in closed form from labelled inputs, no gradient (DESIGN §2).
//!
//! Each choice gets the mean, variance and frequency of the z that its labels cover: σ²_c = (n_c s²_c + n₀ s²_pooled)/(n_c + n₀), n₀ = 32,
//! floored at 1e-6 of the mean pooled variance; π_c = (n_c + 1)/(n + C). Pooled moments are those of all rows that pass the router;
//! a choice without labels takes them, and a prior so small that it is never taken while a labelled one remains. All that is needed of the
//! rows are their [`ClassSums`]: one streaming pass, then a fit for every router of every level.

use crate::moe::Covariance;
use crate::ops::ClassSums;

/// Moments of the z of some classes together.
#[derive(Clone)]
struct ChoiceMoments {
    count: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl ChoiceMoments {
    fn zero(r: usize) -> Self {
        Self { count: 0.0, sum: vec![0.0; r], squares: vec![0.0; r] }
    }

    fn add(&mut self, sums: &ClassSums, class: usize) {
        self.count += sums.count(class);
        self.sum.iter_mut().zip(sums.sum(class)).for_each(|(a, b)| *a += b);
        self.squares.iter_mut().zip(sums.squares(class)).for_each(|(a, b)| *a += b);
    }

    fn mean(&self, j: usize) -> f64 {
        self.sum[j] / self.count.max(1.0)
    }

    fn variance(&self, j: usize) -> f64 {
        (self.squares[j] / self.count.max(1.0) - self.mean(j) * self.mean(j)).max(0.0)
    }
}

/// Parameters of one router: by choice μ and log σ² `[r]`, and log π.
///
/// ```
/// use tinyonn::moe::Covariance;
/// use tinyonn::train::gda::Gaussians;
///
/// let router = Gaussians { mean: vec![vec![0.0], vec![2.0]], log_variance: vec![vec![1f64.ln()], vec![3f64.ln()]], log_prior: vec![0.5f64.ln(); 2] };
/// let shared = router.shared_by(Covariance::Shared);
/// assert!((shared.log_variance[0][0] - 2f64.ln()).abs() < 1e-9); // the mean of 1 and 3
/// assert_eq!(shared.log_variance.len(), 1); // one for both choices
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussians {
    /// μ.
    pub mean: Vec<Vec<f64>>,
    /// log σ².
    pub log_variance: Vec<Vec<f64>>,
    /// log π.
    pub log_prior: Vec<f64>,
}

impl Gaussians {
    /// The same with variances shared as declared: by a router's choices (`shared`: their mean, weighted by π), by a choice's
    /// dimensions (`isotropic`: their mean), or not at all. What a full Σ has beside its diagonal rows alone tell: [`PooledCovariance`](super::PooledCovariance).
    #[must_use]
    pub fn shared_by(self, covariance: Covariance) -> Self {
        let variance = |row: &Vec<f64>| row.iter().map(|log| log.exp()).collect::<Vec<f64>>();
        let log_variance = match covariance {
            Covariance::Diag => return self,
            Covariance::Isotropic => self
                .log_variance
                .iter()
                .map(|row| vec![(variance(row).iter().sum::<f64>() / row.len() as f64).ln()])
                .collect(),
            Covariance::Shared | Covariance::SharedFull => {
                let r = self.log_variance.first().map_or(0, Vec::len);
                let weights: Vec<f64> = self.log_prior.iter().map(|log| log.exp()).collect();
                let mut pooled = vec![0f64; r];
                for (row, weight) in self.log_variance.iter().zip(&weights) {
                    pooled.iter_mut().zip(variance(row)).for_each(|(sum, v)| *sum += weight * v);
                }
                let total: f64 = weights.iter().sum();
                vec![pooled.into_iter().map(|v| (v / total).ln()).collect()]
            }
        };
        Self { log_variance, ..self }
    }
}

/// Rows that the pooled variance counts for in a choice's own.
pub(super) const SHRINKAGE: f64 = 32.0;
/// The variance floor, as a share of the mean pooled variance.
pub(super) const FLOOR: f64 = 1e-6;
/// log π of a choice without labels: below the log-density of any input, yet finite, or its product with a target of zero
/// would be none.
pub(super) const NEVER: f64 = -1e30;

/// Fits a router of `choices` choices to sums over classes of rows, tasks or paths; `taken[class]` are the choices that rows of a class
/// take, and classes that take none do not pass by.
///
/// ```
/// use tinyonn::ops::ClassSums;
/// use tinyonn::train::gda::fit;
///
/// // Class 0 lies around −1 and takes choice 1, class 1 around 1 and takes choice 0.
/// let mut sums = ClassSums::zero(2, 1);
/// sums.push_rows(&[-1.2, -0.8, 1.2, 0.8], &[0, 0, 1, 1])?;
/// let router = fit(&sums, &[vec![1], vec![0]], 2);
/// assert!((router.mean[1][0] + 1.0).abs() < 1e-6 && (router.mean[0][0] - 1.0).abs() < 1e-6);
/// assert_eq!(router.log_prior, [0.5f64.ln(); 2]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[must_use]
pub fn fit(sums: &ClassSums, taken: &[Vec<usize>], choices: usize) -> Gaussians {
    let r = sums.width();
    let mut pooled = ChoiceMoments::zero(r);
    let mut of_choice = vec![ChoiceMoments::zero(r); choices];
    for (class, taken) in taken.iter().enumerate().filter(|(_, taken)| !taken.is_empty()) {
        pooled.add(sums, class);
        for choice in taken {
            of_choice[*choice].add(sums, class);
        }
    }
    let total: f64 = of_choice.iter().map(|own| own.count).sum();
    let pooled_variance: Vec<f64> = (0..r).map(|j| if pooled.count > 0.0 { pooled.variance(j) } else { 1.0 }).collect();
    let floor = FLOOR * pooled_variance.iter().sum::<f64>() / r.max(1) as f64;
    // Rows that are all equal have no spread to measure by: any will do that is no overflow.
    let floor = if floor > 0.0 { floor } else { 1.0 };
    let mut fitted = Gaussians { mean: vec![], log_variance: vec![], log_prior: vec![] };
    for own in &of_choice {
        let labelled = own.count > 0.0;
        let mean = |j| if labelled { own.mean(j) } else { pooled.mean(j) };
        let variance = |j: usize| {
            let squares = if labelled { own.count * own.variance(j) } else { 0.0 };
            ((squares + SHRINKAGE * pooled_variance[j]) / (own.count + SHRINKAGE)).max(floor)
        };
        fitted.mean.push((0..r).map(mean).collect());
        fitted.log_variance.push((0..r).map(|j| variance(j).ln()).collect());
        // Without any label at all the router is uniform.
        let prior = ((own.count + 1.0) / (total + choices as f64)).ln();
        fitted.log_prior.push(if labelled || total == 0.0 { prior } else { NEVER });
    }
    fitted
}
