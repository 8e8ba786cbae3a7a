//! Keeping load even while routers learn, each by the formula of its paper.
//!
//! - `balance = loss(c)`, Fedus et al. 2021, eq. 4: c · N Σ_n f_n P_n, f_n the share of all choices that fell on expert n, P_n the mean
//!   of p(n | x); 1 · c for a uniform router. Over the routed experts, p being the product down the hierarchy.
//! - `balance = bias(rate)`, DeepSeek-AI 2024 (V3), §2.1.2: selection compares p + b, gates do not see b; after a step b moves by `rate`
//!   up for the choices of a router that are below its mean load an expert and down for those above. (The paper's router stands
//!   alone over equal experts. Below the root a common shift of a router's choices would decide nothing, and only grow.)
//! - `z_loss = c`, Zoph et al. 2022, eq. 5: c · mean_t (log Σ exp ℓ)², over all routers of the layer.
//! - `jitter = ε`, Fedus et al. 2021, §2.4: the routers' input times U(1 − ε, 1 + ε), elementwise, in training only.

use candle_core::{D, DType, Tensor};
use rand::Rng as _;

use super::{Balance, MoeSpec, Scores};
use crate::{Result, random};

/// The sum of the declared auxiliary losses of one layer, if it declares any. Differentiable in the scores.
///
/// # Errors
/// What the device reports.
pub fn auxiliary_loss(spec: &MoeSpec, scores: &Scores, taken_tn: &Tensor) -> Result<Option<Tensor>> {
    let mut total: Option<Tensor> = None;
    if let Balance::Loss { coefficient } = spec.balance {
        let routed = spec.routed_experts();
        let taken = taken_tn.narrow(1, 0, routed)?.sum(0)?;
        let share_n = taken.broadcast_div(&taken.sum_all()?)?;
        let mean_n = scores.experts(spec)?.exp()?.mean(0)?;
        total = Some(((share_n * mean_n)?.sum_all()? * (coefficient * routed as f64))?);
    }
    if spec.z_loss > 0.0 {
        let mut squares: Option<Tensor> = None;
        let mut routers = 0;
        for logits in scores.logits.iter().flatten() {
            routers += logits.dim(1)?;
            let sum = logits.log_sum_exp(D::Minus1)?.sqr()?.mean(0)?.sum_all()?;
            squares = Some(squares.map_or(Ok(sum.clone()), |before| before + sum)?);
        }
        if let Some(squares) = squares {
            let z = (squares * (spec.z_loss / routers as f64))?;
            total = Some(total.map_or(Ok(z.clone()), |before| before + z)?);
        }
    }
    Ok(total)
}

/// Moves the biases of all levels (`[nodes]` each, in a row) by one step against the load of the routed experts. A choice at the
/// mean of its router stays, as all do where nothing came by.
///
/// ```
/// use tinyonn::moe::{balance, moe};
/// #[moe(groups = 2, experts = 1, balance = bias(0.1))]
/// struct Twins;
/// let mut bias = vec![0.0; 4];
/// balance::step(&Twins::SPEC, &mut bias, &[3.0, 1.0]);
/// assert_eq!(bias, [-0.1, 0.1, 0.0, 0.0]); // behind each group there is no choice
/// ```
pub fn step(spec: &MoeSpec, bias: &mut [f32], load: &[f64]) {
    let Balance::Bias { rate } = spec.balance else { return };
    let mut first = 0;
    for (level, declared) in spec.levels.iter().enumerate() {
        let under = spec.experts_under(level);
        let loads: Vec<f64> = under.iter().map(|experts| load[experts.clone()].iter().sum()).collect();
        for slot in declared.slots() {
            let all = loads[slot.nodes.clone()].iter().sum::<f64>();
            let experts = under[slot.nodes.clone()].iter().map(ExactSizeIterator::len).sum::<usize>() as f64;
            for node in slot.nodes {
                // load / experts under the node against all / experts, without a rounding: counts are whole.
                let (own, mean) = (loads[node] * experts, all * under[node].len() as f64);
                let bias = &mut bias[first + node];
                if own > mean {
                    *bias -= rate as f32;
                } else if own < mean {
                    *bias += rate as f32;
                }
            }
        }
        first += loads.len();
    }
}

/// The routers' input under jitter, the noise decided by `seed` and the layer.
///
/// # Errors
/// What the device reports.
pub fn jittered(spec: &MoeSpec, layer: usize, seed: u64, x_td: &Tensor) -> Result<Tensor> {
    if spec.jitter == 0.0 {
        return Ok(x_td.clone());
    }
    let mut rng = random::stream(seed, &format!("jitter/{layer}"));
    let (low, high) = ((1.0 - spec.jitter) as f32, (1.0 + spec.jitter) as f32);
    let noise: Vec<f32> = (0..x_td.elem_count()).map(|_| rng.random_range(low..=high)).collect();
    let noise_td = Tensor::from_vec(noise, x_td.shape(), x_td.device())?;
    Ok((x_td.to_dtype(DType::F32)? * noise_td)?)
}
