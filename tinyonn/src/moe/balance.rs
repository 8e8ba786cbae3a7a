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
use crate::decoder::InTraining;
use crate::{Result, random};

/// The sum of the declared auxiliary losses of one layer, if it declares any: `taken_n` `[N]` are the choices of the whole batch that fell on each expert. Differentiable in
/// the scores; among several ranks that pass a batch together, each of as many tokens, the mean of their losses is that of one.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::moe::{Scores, balance, moe};
///
/// #[moe(levels = [2], top_k = 1, router = linear, balance = loss(0.01))]
/// struct Two;
///
/// // A router that finds both alike, and sends each one token: f = P = ½, and 0.01 · 2 · (¼ + ¼) is left.
/// let scores = Scores { logits: vec![vec![Tensor::zeros((2, 1, 2), DType::F32, &Device::Cpu)?]] };
/// let taken_n = Tensor::new(&[1f32, 1.0], &Device::Cpu)?;
/// let loss = balance::auxiliary_loss(&Two::SPEC, &scores, &taken_n)?.map(|loss| loss.to_scalar::<f32>()).transpose()?;
/// assert!(loss.is_some_and(|loss| (loss - 0.01).abs() < 1e-6));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What the device reports.
pub fn auxiliary_loss(spec: &MoeSpec, scores: &Scores, taken_n: &Tensor) -> Result<Option<Tensor>> {
    let mut total: Option<Tensor> = None;
    if let Balance::Loss { coefficient } = spec.balance {
        let routed = spec.routed_experts();
        let taken = taken_n.narrow(0, 0, routed)?;
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

/// The biases of all levels (`[nodes]` each, in a row) after one step against the load of the experts, tokens `[N]`. A choice at the
/// mean of its router stays, as all do where nothing came by.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::moe::{balance, moe};
/// #[moe(groups = 2, experts = 1, balance = bias(0.1))]
/// struct Twins;
/// let (bias, load) = (Tensor::new(&[0f32; 4], &Device::Cpu)?, Tensor::new(&[3f32, 1.0], &Device::Cpu)?);
/// let moved = balance::step(&Twins::SPEC, &bias, &load)?;
/// assert_eq!(moved.to_vec1::<f32>()?, [-0.1, 0.1, 0.0, 0.0]); // behind each group there is no choice
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What the device reports.
pub fn step(spec: &MoeSpec, bias: &Tensor, load_n: &Tensor) -> Result<Tensor> {
    let Balance::Bias { rate } = spec.balance else { return Ok(bias.clone()) };
    let (routed, nodes) = (spec.routed_experts(), spec.levels.iter().map(super::LevelSpec::nodes).sum::<usize>());
    // Of each node: which experts are under it, which under its router, and how many these are.
    let (mut own, mut beside) = (vec![0f64; nodes * routed], vec![0f64; nodes * routed]);
    let (mut under_node, mut under_router) = (vec![0f64; nodes], vec![0f64; nodes]);
    let mut first = 0;
    for (level, declared) in spec.levels.iter().enumerate() {
        let under = spec.experts_under(level);
        for slot in declared.slots() {
            let all = under[slot.nodes.start].start..under[slot.nodes.end - 1].end;
            for node in slot.nodes {
                let at = first + node;
                own[at * routed..][under[node].clone()].fill(1.0);
                beside[at * routed..][all.clone()].fill(1.0);
                (under_node[at], under_router[at]) = (under[node].len() as f64, all.len() as f64);
            }
        }
        first += under.len();
    }
    let device = bias.device();
    let matrix = |values: Vec<f64>| Tensor::from_vec(values, (nodes, routed), device);
    let list = |values: Vec<f64>| Tensor::from_vec(values, (nodes, 1), device);
    let load_n1 = load_n.narrow(0, 0, routed)?.to_dtype(DType::F64)?.unsqueeze(1)?;
    // load / experts under the node against all / experts, without a rounding: counts are whole.
    let own = (matrix(own)?.matmul(&load_n1)? * list(under_router)?)?;
    let mean = (matrix(beside)?.matmul(&load_n1)? * list(under_node)?)?;
    let sign = (own.lt(&mean)?.to_dtype(DType::F32)? - own.gt(&mean)?.to_dtype(DType::F32)?)?;
    Ok((bias + (sign * rate)?.reshape(bias.shape())?)?)
}

/// The noise that multiplies the routers' input `[D, d]` under `jitter`, decided by the seed, the layer and the place of the row in its batch; none where it
/// is not declared.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::decoder::InTraining;
/// use tinyonn::gallery::{Mixtral, Switch};
/// use tinyonn::moe::balance;
///
/// let x = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let noise = balance::jitter(&Switch::SPEC, 0, &InTraining::whole(7), &x)?.expect("jitter = 0.01").flatten_all()?.to_vec1::<f32>()?;
/// assert!(noise.iter().all(|factor| (0.99..=1.01).contains(factor)));
/// assert!(balance::jitter(&Mixtral::SPEC, 0, &InTraining::whole(7), &x)?.is_none());
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// What the device reports.
pub fn jitter(spec: &MoeSpec, layer: usize, training: &InTraining, x_rd: &Tensor) -> Result<Option<Tensor>> {
    if spec.jitter == 0.0 {
        return Ok(None);
    }
    let mut rng = random::stream(training.seed, &format!("jitter/{layer}"));
    let (low, high) = ((1.0 - spec.jitter) as f32, (1.0 + spec.jitter) as f32);
    let (count, before) = (x_rd.elem_count(), x_rd.elem_count() * training.before);
    // What ranks before this one draw for their rows.
    let noise: Vec<f32> = (0..before + count).map(|_| rng.random_range(low..=high)).skip(before).collect();
    Ok(Some(Tensor::from_vec(noise, x_rd.shape(), x_rd.device())?))
}
