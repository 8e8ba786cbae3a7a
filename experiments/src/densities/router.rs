//! The root router's own Gaussians, seen along the axes of a picture.
//!
//! For each choice a Gaussian router holds N(μ, diag σ²) of z = P x (DESIGN §2); a picture has the axes y = A x. With y ≈ B z + b that
//! density is N(B μ + b, B diag(σ²) Bᵀ) on the picture. B and b are the regression of y on z over training inputs of covariance Σ, with
//! a trace of the identity in it for directions without variance: B = A (Σ + εI) Pᵀ (P (Σ + εI) Pᵀ)⁻¹. Where the rows of P span those of A
//! this is the B of A = B P, whatever Σ is, and b = 0. Where they do not, the *held* share of an axis is the R² of that regression.

use candle_core::{DType, Device, Tensor};
use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

use super::Gaussian;
use crate::names::node_name;
use tinyonn::checkpoint::ParamStore;
use tinyonn::imaging::inputs::{Samples, spread};
use tinyonn::moe::{Covariance, MoeSpec, Reduce, RouterKind};
use tinyonn::{Error, Result};

/// At most so many choices are drawn.
const MOST: usize = 10;
/// Rows that the regression reads, at most.
const ROWS: usize = 4096;
/// ε as a share of the inputs' mean variance.
const RIDGE: f64 = 1e-6;
/// A prior that is less than the largest by this in log is 0 in any f32 softmax: of a choice without labels.
const NEVER: f64 = -700.0;

/// The Gaussians of one router.
struct Gaussians {
    /// P `[r, d]`; `None` is the identity.
    projection: Option<DMatrix<f64>>,
    /// μ `[choices, r]`.
    mean: DMatrix<f64>,
    /// σ² `[choices, r]`.
    variance: DMatrix<f64>,
    log_prior: Vec<f64>,
    /// What a decision takes of a log-density: s / r, or s of a sum.
    weight: f64,
}

impl Gaussians {
    /// Those of a layer's root, if it is a Gaussian router.
    fn read(store: &ParamStore, spec: &MoeSpec, layer: usize) -> Result<Option<Self>> {
        let Some(root) = spec.levels.first().and_then(|level| level.routers.first()) else { return Ok(None) };
        let RouterKind::Gaussian(form) = &root.kind else { return Ok(None) };
        let get = |parameter: &str| -> Result<Tensor> {
            let name = format!("model.layers.{layer}.mlp.{}_router.{parameter}", root.name);
            let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
            let value = store.get(&name).ok_or_else(missing)?.as_detached_tensor();
            Ok(value.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)
        };
        let mut mean = get("mean")?;
        let log_variance = get("log_variance")?.broadcast_as(mean.shape())?;
        let mut projection = match form.project {
            tinyonn::moe::Project::Identity => None,
            _ => Some(get("projection")?),
        };
        // One full Σ is a diagonal one of (I + D) z.
        if form.covariance == Covariance::SharedFull {
            let below = get("decorrelation")?.squeeze(0)?;
            let r = below.dim(0)?;
            let one = Tensor::eye(r, DType::F64, &Device::Cpu)?;
            let whole = (below * (Tensor::tril2(r, DType::F64, &Device::Cpu)? - &one)?)? + one;
            let whole = whole?;
            mean = mean.broadcast_matmul(&whole.t()?)?;
            projection = Some(match projection {
                Some(projection) => whole.matmul(&projection)?,
                None => whole,
            });
        }
        let projection = projection.map(|projection| matrix(&projection)).transpose()?;
        let scale = get("scale")?.to_scalar::<f64>()?;
        let weight = match form.reduce {
            Reduce::Mean => scale / mean.dim(2)? as f64,
            Reduce::Sum => scale,
        };
        Ok(Some(Self {
            projection,
            mean: matrix(&mean.squeeze(0)?)?,
            variance: matrix(&log_variance.exp()?.squeeze(0)?)?,
            log_prior: get("log_prior")?.flatten_all()?.to_vec1()?,
            weight,
        }))
    }

    /// The choices that are drawn, ascending, of all that can be taken: those with the largest priors.
    fn drawn(&self) -> (Vec<usize>, usize) {
        let most = self.log_prior.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut taken: Vec<usize> =
            (0..self.log_prior.len()).filter(|choice| self.log_prior[*choice] - most > NEVER).collect();
        let all = taken.len();
        taken.sort_by(|a, b| self.log_prior[*b].total_cmp(&self.log_prior[*a]).then(a.cmp(b)));
        taken.truncate(MOST);
        taken.sort_unstable();
        (taken, all)
    }

    /// `choices` by the Gaussian they hold: labels that take the same tasks leave one Gaussian to several choices.
    fn together(&self, choices: &[usize]) -> Vec<Vec<usize>> {
        let same =
            |a: usize, b: usize| self.mean.row(a) == self.mean.row(b) && self.variance.row(a) == self.variance.row(b);
        let mut sets: Vec<Vec<usize>> = Vec::new();
        for &choice in choices {
            match sets.iter_mut().find(|set| same(set[0], choice)) {
                Some(set) => set.push(choice),
                None => sets.push(vec![choice]),
            }
        }
        sets
    }
}

/// How z is seen along the axes: y ≈ B z + b.
struct View {
    /// B `[2, r]`.
    map: DMatrix<f64>,
    /// b.
    offset: DVector<f64>,
    /// The share of the inputs' variance along each axis that z tells.
    held: [f64; 2],
}

impl View {
    /// Along `axes` `[2, d]`, through the regression over `inputs` `[n, d]`.
    fn new(axes: &DMatrix<f64>, projection: Option<&DMatrix<f64>>, mut inputs: DMatrix<f64>) -> Result<Self> {
        let Some(projection) = projection else {
            return Ok(Self { map: axes.clone(), offset: DVector::zeros(2), held: [1.0; 2] });
        };
        let mean = inputs.row_mean();
        inputs.row_iter_mut().for_each(|mut row| row -= &mean);
        let (y, z) = (&inputs * axes.transpose(), &inputs * projection.transpose());
        let rows = inputs.nrows() as f64;
        let variance = inputs.norm_squared() / inputs.len() as f64;
        let ridge = if variance > 0.0 { RIDGE * variance } else { 1.0 };
        let cross = z.tr_mul(&y) / rows + projection * axes.transpose() * ridge;
        let own = z.tr_mul(&z) / rows + projection * projection.transpose() * ridge;
        let least = f64::EPSILON * own.norm();
        let solved = own.svd(true, true).solve(&cross, least);
        let told = |problem: &str| Error::setting("router", problem, "report this as a defect");
        let map = solved.map_err(told)?.transpose();
        let left = &y - z * map.transpose();
        let held = [0, 1].map(|axis| match y.column(axis).norm_squared() {
            all if all > 0.0 => 1.0 - left.column(axis).norm_squared() / all,
            _ => 1.0,
        });
        let offset = (axes - &map * projection) * mean.transpose();
        Ok(Self { map, offset, held })
    }

    /// Mean and covariance of N(μ, diag σ²) along the axes.
    fn of(&self, mean: &DVector<f64>, variance: &DVector<f64>) -> ([f64; 2], [[f64; 2]; 2]) {
        let mean = &self.map * mean + &self.offset;
        let covariance = &self.map * DMatrix::from_diagonal(variance) * self.map.transpose();
        let apart = covariance[(0, 1)];
        ([mean[0], mean[1]], [[covariance[(0, 0)], apart], [apart, covariance[(1, 1)]]])
    }
}

/// A root router's own Gaussians along the axes of a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouterDensity {
    /// Of choices that hold the same, one, with the names of all.
    pub gaussians: Vec<Gaussian>,
    /// Its dimensions; the identity has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// The share of the inputs' variance along each axis that its dimensions tell.
    pub held: [f64; 2],
    /// How many choices are shown.
    pub shown: usize,
    /// How many may be taken.
    pub taken: usize,
    /// How many no label asks for.
    pub never: usize,
    /// What a decision takes of a log-density.
    pub weight: f64,
}

impl RouterDensity {
    /// Those of a layer's root along `axes` `[2, d]` (row-major), of which `train` tells how they are seen; none of routers of other kinds.
    pub(super) fn new(
        (store, spec, layer): (&ParamStore, &MoeSpec, usize),
        axes: &[f32],
        train: &Samples,
    ) -> Result<Option<Self>> {
        let (d, rows) = (axes.len() / 2, train.tasks.len());
        let Some(router) = Gaussians::read(store, spec, layer)? else { return Ok(None) };
        let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let axes = DMatrix::from_row_slice(2, d, &wide(axes));
        let inputs: Vec<f64> = spread(rows, ROWS).flat_map(|row| wide(&train.values[row * d..][..d])).collect();
        let inputs = DMatrix::from_row_slice(inputs.len() / d, d, &inputs);
        let view = View::new(&axes, router.projection.as_ref(), inputs)?;
        let (drawn, taken) = router.drawn();
        let gaussian = |choices: &Vec<usize>| {
            let row = |of: &DMatrix<f64>| of.row(choices[0]).transpose();
            let (mean, covariance) = view.of(&row(&router.mean), &row(&router.variance));
            let names: Vec<String> = choices.iter().map(|choice| node_name(spec, 0, *choice)).collect();
            Gaussian { name: names.join(", "), mean, covariance }
        };
        Ok(Some(Self {
            gaussians: router.together(&drawn).iter().map(gaussian).collect(),
            dim: router.projection.as_ref().map(DMatrix::nrows),
            held: view.held,
            shown: drawn.len(),
            taken,
            never: router.log_prior.len() - taken,
            weight: router.weight,
        }))
    }
}

/// A tensor `[n, m]` of f64.
fn matrix(tensor: &Tensor) -> Result<DMatrix<f64>> {
    let (rows, columns) = tensor.dims2()?;
    Ok(DMatrix::from_row_slice(rows, columns, &tensor.contiguous()?.flatten_all()?.to_vec1()?))
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;
    use tinyonn::random;

    use super::*;

    /// Inputs `[n, d]` around 1, the later a coordinate the less it varies.
    fn inputs(n: usize, d: usize) -> DMatrix<f64> {
        let mut rng = random::stream(5, "inputs");
        // Even over an interval whose variance is 1.
        let reach = 3f64.sqrt();
        DMatrix::from_fn(n, d, |_, column| 1.0 + rng.random_range(-reach..reach) / (1 + column) as f64)
    }

    fn projection() -> DMatrix<f64> {
        DMatrix::from_row_slice(3, 5, &[1.0, 0.5, 0.0, 2.0, -1.0, 0.0, 1.0, 3.0, 0.0, 0.5, -2.0, 0.0, 1.0, 1.0, 0.0])
    }

    /// A = B P: every Gaussian is seen as B and nothing else has it, whatever the inputs.
    #[test]
    fn a_router_that_holds_the_axes_is_seen_exactly() -> Result<()> {
        let map = DMatrix::from_row_slice(2, 3, &[2.0, -1.0, 0.5, 0.25, 1.5, -3.0]);
        let (mean, variance) = (DVector::from_vec(vec![1.0, -2.0, 4.0]), DVector::from_vec(vec![0.5, 2.0, 0.1]));
        // Fewer rows than dimensions leave directions without variance.
        for rows in [2, 200] {
            let view = View::new(&(&map * projection()), Some(&projection()), inputs(rows, 5))?;
            let (at, [[a, b], [_, c]]) = view.of(&mean, &variance);
            // Of f64 sums whose condition is that of P's products over the ridge.
            let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
            near(at[0], 2.0 + 2.0 + 2.0);
            near(at[1], 0.25 - 3.0 - 12.0);
            near(a, 4.0 * 0.5 + 2.0 + 0.25 * 0.1);
            near(b, 0.5 * 0.5 - 1.5 * 2.0 - 1.5 * 0.1);
            near(c, 0.0625 * 0.5 + 2.25 * 2.0 + 9.0 * 0.1);
            assert!(view.held.iter().all(|share| (share - 1.0).abs() < 1e-6), "{:?}", view.held);
        }
        Ok(())
    }

    /// What z does not tell stays at the inputs' mean, and its share of the variance is missing.
    #[test]
    fn an_axis_that_a_router_does_not_hold_keeps_the_mean_of_the_inputs() -> Result<()> {
        let projection = DMatrix::from_row_slice(1, 3, &[1.0, 0.0, 0.0]);
        let axes = DMatrix::from_row_slice(2, 3, &[1.0, 2.0, 0.0, 0.0, 0.0, 1.0]);
        let view = View::new(&axes, Some(&projection), inputs(20_000, 3))?;
        // Coordinates vary by 1 and 1/4, so the first axis by 1 + 4/4; 20 000 draws are off by some 1/√20 000.
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.03, "{found} {expected}");
        let (at, [[a, _], [_, c]]) = view.of(&DVector::from_vec(vec![3.0]), &DVector::from_vec(vec![0.5]));
        near(at[0], 3.0 + 2.0);
        near(at[1], 1.0);
        near(a, 0.5);
        near(c, 0.0);
        near(view.held[0], 0.5);
        near(view.held[1], 0.0);
        Ok(())
    }

    #[test]
    fn choices_that_no_label_asks_for_are_not_drawn() {
        let log_prior = (0..14).map(|choice| if choice % 5 == 2 { -1e30 } else { -f64::from(choice) }).collect();
        let nothing = DMatrix::zeros(14, 1);
        let router = Gaussians { projection: None, mean: nothing.clone(), variance: nothing, log_prior, weight: 1.0 };
        assert_eq!(router.drawn(), (vec![0, 1, 3, 4, 5, 6, 8, 9, 10, 11], 11));
    }

    /// One ellipse would hide another: choices of one mean and one variance share a name, those of one alone do not.
    #[test]
    fn choices_that_hold_one_gaussian_are_drawn_once() {
        let column = |values: [f64; 4]| DMatrix::from_column_slice(4, 1, &values);
        let (mean, variance) = (column([1.0, 2.0, 1.0, 1.0]), column([0.5, 0.5, 0.5, 0.25]));
        let router = Gaussians { projection: None, mean, variance, log_prior: vec![0.0; 4], weight: 1.0 };
        assert_eq!(router.together(&[0, 1, 2, 3]), [vec![0, 2], vec![1], vec![3]]);
    }
}
