//! Linear routers in closed form (`fit = ridge`): each choice's score is a ridge regression of a power of the norm of its output ([`super::OutputNorms`]) on what the layer sees, so that
//! the choices of largest score are those that would add most.
//!
//! Of all levels together the regression is M `[d, C]`, Σ_t ‖target_t − x_t M − b‖² + λ · mean diag(Σ x xᵀ) · ‖M‖² made least. Behind a projection of r dimensions (`linear(dim =
//! r)`) it is the best of rank r: M_r = M V Vᵀ, V `[C, r]` the leading eigenvectors of Mᵀ (Σ x xᵀ + λ ..) M, since what another M' costs beyond M is
//! ‖M − M'‖² in that metric; P = Vᵀ Mᵀ and W = V.
//!
//! Legend: t tokens, d hidden, c choices of all levels, r the width of the projection.

use candle_core::{Device, Tensor};
use tinyonn_linalg::{product, symmetric_eigen};

use super::ridge::{RidgeMap, RidgeSums};
use crate::moe::{MoeSpec, RouterKind};
use crate::{Error, Result};

/// The sums over a text that a layer's routers follow from.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::train::{RouterMap, RouterSums};
///
/// // Both choices follow the first channel, one upwards and one downwards: one direction says all.
/// let x = Tensor::new(&[[0f32, 1.0], [1.0, -1.0], [2.0, 0.5], [5.0, 0.0]], &Device::Cpu)?;
/// let first = x.narrow(1, 0, 1)?;
/// let target = Tensor::cat(&[&((&first * 2.0)? + 1.0)?, &first.neg()?], 1)?;
/// let mut sums = RouterSums::new(2);
/// sums.push(&x, &target)?;
/// let map: RouterMap = sums.solve(1e-9)?;
/// assert_eq!(map.ridge(), 1e-9);
/// let [weight_cd, bias_c] = map.full(&Device::Cpu)?;
/// assert!((weight_cd.to_vec2::<f32>()?[0][0] - 2.0).abs() < 1e-4 && (bias_c.to_vec1::<f32>()?[0] - 1.0).abs() < 1e-4);
/// let [p_rd, weight_cr, _] = map.reduced(1, &Device::Cpu)?;
/// assert_eq!((p_rd.dims(), weight_cr.dims()), (&[1, 2][..], &[2, 1][..]));
/// assert!((weight_cr.matmul(&p_rd)? - weight_cd)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RouterSums(RidgeSums);

impl RouterSums {
    /// Nothing seen, of routers that read so many channels.
    #[must_use]
    pub fn new(hidden: usize) -> Self {
        Self(RidgeSums::new(hidden))
    }

    /// More tokens: x `[t, d]` and their targets `[t, c]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn push(&mut self, x_td: &Tensor, target_tc: &Tensor) -> Result<()> {
        self.0.push(x_td, target_tc)
    }

    /// The regression under λ = `ridge`, tenfold as often as needed where the matrix is not positive definite.
    ///
    /// # Errors
    /// No tokens; values that are no finite numbers.
    pub fn solve(self, ridge: f64) -> Result<RouterMap> {
        let map = self.0.solve("routers", ridge, true)?;
        let (d, c) = (map.means[0].len(), map.means[1].len());
        let transposed_cd = transposed(&map.map_nm, (d, c));
        // Symmetric but for roundings.
        let metric_cc = product(&transposed_cd, &map.cross_nm, (c, d, c));
        let even = |at: usize| 0.5 * (metric_cc[at] + metric_cc[at % c * c + at / c]);
        let metric_cc: Vec<f64> = (0..c * c).map(even).collect();
        let directions = symmetric_eigen(&metric_cc, c).ok_or_else(|| {
            let remedy = "look for values that are not finite among what the layers see; check the model's tensors";
            Error::setting("routers", "what they are fitted to has no directions", remedy)
        })?;
        Ok(RouterMap { map, directions_cc: directions.vectors })
    }
}

/// The regression of a layer's routers.
#[derive(Clone, Debug)]
pub struct RouterMap {
    map: RidgeMap,
    /// Rows: eigenvectors of Mᵀ (Σ x xᵀ + λ ..) M, the leading ones first.
    directions_cc: Vec<f64>,
}

impl RouterMap {
    /// W `[c, d]` and b `[c]`, f32.
    ///
    /// # Errors
    /// What the device reports.
    pub fn full(&self, device: &Device) -> Result<[Tensor; 2]> {
        let (d, c) = self.shape();
        let weight_cd = transposed(&self.map.map_nm, (d, c));
        Ok([tensor(&weight_cd, &[c, d], device)?, tensor(&self.map.constant(&self.map.map_nm), &[c], device)?])
    }

    /// P `[r, d]`, W `[c, r]` and b `[c]`, f32, of the best regression of rank r; what r is more than c has parameters of zero.
    ///
    /// # Errors
    /// What the device reports.
    pub fn reduced(&self, r: usize, device: &Device) -> Result<[Tensor; 3]> {
        let ((d, c), kept) = (self.shape(), r.min(self.shape().1));
        let v_kc = &self.directions_cc[..kept * c];
        let w_ck = transposed(v_kc, (kept, c));
        let p_kd = product(v_kc, &transposed(&self.map.map_nm, (d, c)), (kept, c, d));
        let map_dc = product(&transposed(&p_kd, (kept, d)), v_kc, (d, kept, c));
        let mut p_rd = p_kd;
        p_rd.resize(r * d, 0.0);
        let widened = w_ck.chunks_exact(kept.max(1)).flat_map(|row| {
            let none = std::iter::repeat_n(0.0, r - kept);
            row.iter().copied().chain(none)
        });
        let w_cr: Vec<f64> = widened.collect();
        let bias = self.map.constant(&map_dc);
        Ok([tensor(&p_rd, &[r, d], device)?, tensor(&w_cr, &[c, r], device)?, tensor(&bias, &[c], device)?])
    }

    /// The λ it was found with.
    #[must_use]
    pub fn ridge(&self) -> f64 {
        self.map.ridge
    }

    fn shape(&self) -> (usize, usize) {
        (self.map.means[0].len(), self.map.means[1].len())
    }

    /// The parameters of a layer's routers, as a checkpoint holds them, by their names under its `mlp`.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use tinyonn::gallery::WholeGroups;
    /// use tinyonn::train::RouterSums;
    ///
    /// let mut sums = RouterSums::new(40);
    /// sums.push(&Tensor::rand(-1f32, 1.0, (64, 40), &Device::Cpu)?, &Tensor::rand(0f32, 1.0, (64, 128), &Device::Cpu)?)?;
    /// let parameters = sums.solve(0.01)?.parameters(&WholeGroups::SPEC, &Device::Cpu)?;
    /// let shapes: Vec<_> = parameters.iter().map(|(name, value)| (name.as_str(), value.dims())).collect();
    /// assert_eq!(shapes[0], ("expert_router.projection", &[32, 40][..]));
    /// assert_eq!(shapes[1..], [("expert_router.weight", &[128, 32][..]), ("expert_router.bias", &[128][..])]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Routers of another kind; another number of choices than was fitted.
    pub fn parameters(&self, spec: &MoeSpec, device: &Device) -> Result<Vec<(String, Tensor)>> {
        let ((d, c), nodes) = (self.shape(), spec.levels.iter().map(crate::moe::LevelSpec::nodes).sum::<usize>());
        if nodes != c {
            let problem = format!("it has {nodes} choices, and {c} were fitted");
            return Err(Error::variant(spec.name.clone(), problem, "fit the choices of all its levels"));
        }
        let mut parameters = Vec::new();
        let shared = spec.shared_projection(d).map(|(run, r)| Ok::<_, Error>((run, self.reduced(r, device)?)));
        let shared = shared.transpose()?;
        if let Some((run, [p_rd, ..])) = &shared {
            parameters.push((format!("{run}_router.projection"), p_rd.clone()));
        }
        let (full, mut first) = (self.full(device)?, 0);
        for run in spec.levels.iter().flat_map(|level| level.routers.iter()) {
            let count = run.parents * run.choices;
            let [weight, bias] = match (&run.kind, &shared) {
                (RouterKind::LowRank { .. }, Some((_, [_, weight, bias]))) => [weight, bias],
                (RouterKind::Linear, _) => full.each_ref(),
                _ => {
                    let problem = format!("its `{}_router` is no linear router", run.name);
                    let remedy = "declare `router = linear`, or `router = linear(dim = 32)`";
                    return Err(Error::variant(spec.name.clone(), problem, remedy));
                }
            };
            for (name, value) in [("weight", weight), ("bias", bias)] {
                let own = value.narrow(0, first, count)?.contiguous()?;
                parameters.push((format!("{}_router.{name}", run.name), own));
            }
            first += count;
        }
        Ok(parameters)
    }
}

/// `[n, m]`, row-major, as `[m, n]`.
fn transposed(a_nm: &[f64], (n, m): (usize, usize)) -> Vec<f64> {
    (0..m).flat_map(|column| (0..n).map(move |row| a_nm[row * m + column])).collect()
}

fn tensor(values: &[f64], shape: &[usize], device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}
