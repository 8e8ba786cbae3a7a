//! Replicas, each token by its own: y_t = Σ_n w[t, n] MLP_{W_base + ΔW_n}(x_t) over the n with w[t, n] ≠ 0.
//!
//! Tokens are permuted by expert, so that each expert is one MLP over its tokens; all experts without a difference are
//! one, the base, and a token that chose several of them asks it once, with the sum of their weights. At top-1, where
//! w = 1, this is [`merged_mlp`](super::merged_mlp) of one-row decisions. As there, an expert that a token did not choose has no gradient
//! from it: neither its weight (0) nor its difference (none, if no token chose it).

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::linear::rows;
use super::mlp_values::MlpValues;
use super::replicas::{Detached, Merged, Mixture, Replicas};
use super::sum_of_rows::sum_of_rows;
use super::{Grads, lanes};

/// What the backward needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::ops::{Replicas, replica_dispatch};
///
/// /// What a backward pass takes to its replicas.
/// fn run(x: &Tensor, replicas: Replicas<'_>, w_tn: &Tensor) -> candle_core::Result<replica_dispatch::Saved> {
///     Ok(replica_dispatch::forward(x, replicas, w_tn)?.1)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved {
    x_td: Tensor,
    w_tn: Tensor,
    values: Detached,
    pairs: Pairs,
    /// One an MLP of the pairs.
    passes: Vec<MlpValues>,
    computed: Option<Computed>,
}

/// y = Σ_n w[t, n] MLP_n(x), for weights w `[t, n]`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{MlpWeights, Replicas, RowRun, Silu, merged_mlp, replica_dispatch};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(2, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(6, 4)?);
/// let base = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let replicas = Replicas { base, deltas: &[Some([&gate, &up, &down]), None] };
/// let w = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// let (dispatched, _) = replica_dispatch::forward(&x, replicas, &w)?;
/// let runs = [RowRun { rows: 0..1, decision: Some(0) }, RowRun { rows: 1..2, decision: Some(1) }];
/// let (merged, _) = merged_mlp::forward(&x, replicas, &w, &runs)?;
/// assert!((dispatched - merged)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(x: &Tensor, replicas: Replicas<'_>, w_tn: &Tensor) -> Result<(Tensor, Saved)> {
    let (x_td, w_tn) = (rows(x)?, w_tn.detach());
    if w_tn.dims() != [x_td.dim(0)?, replicas.deltas.len()] {
        let (tokens, experts) = (x_td.dim(0)?, replicas.deltas.len());
        candle_core::bail!("replica_dispatch: weights {:?} for {tokens} tokens, {experts} experts", w_tn.shape());
    }
    let values = replicas.detach()?;
    let pairs = Pairs::new(&w_tn, &values)?;
    let mut saved = Saved { x_td, w_tn, values, pairs, passes: vec![], computed: None };
    let y = saved.run()?.reshape(x.shape())?;
    Ok((y, saved))
}

/// (token, MLP) pairs, by MLP, then token. In main memory those whose weight is not zero; on a GPU, where reading weights would wait
/// for it, all.
#[derive(Debug)]
struct Pairs {
    /// The token of each pair.
    token: Vec<u32>,
    /// For each pair, where its weights stand in w: one, or those of several experts without a difference.
    places: Vec<Vec<u32>>,
    /// The pairs of each MLP, and what it adds to the base.
    mlps: Vec<(Range<usize>, Mixture)>,
}

impl Pairs {
    fn new(w_tn: &Tensor, values: &Detached) -> Result<Self> {
        let (tokens, experts) = w_tn.dims2()?;
        let chosen = if w_tn.device().is_cpu() {
            lanes::with_values(&w_tn.ne(0f64)?, |chosen: &[u8]| chosen.to_vec())?
        } else {
            vec![1; tokens * experts]
        };
        let differs = |n: &usize| values.deltas[*n].is_some();
        let (own, alike): (Vec<usize>, Vec<usize>) = (0..experts).partition(differs);
        let mut pairs = Self { token: vec![], places: vec![], mlps: vec![] };
        for members in std::iter::once(alike).chain(own.into_iter().map(|n| vec![n])) {
            let first = pairs.token.len();
            for t in 0..tokens {
                let places = members.iter().map(|n| t * experts + n).filter(|place| chosen[*place] != 0);
                let places: Vec<u32> = places.map(|place| place as u32).collect();
                if !places.is_empty() {
                    pairs.token.push(t as u32);
                    pairs.places.push(places);
                }
            }
            if first < pairs.token.len() {
                let own: Vec<usize> = members.iter().copied().filter(differs).collect();
                // A GPU has no tensor without a value.
                let weights = Tensor::ones(own.len().max(1), DType::F64, w_tn.device())?;
                let mixture = Mixture { weights, experts: own };
                pairs.mlps.push((first..pairs.token.len(), mixture));
            }
        }
        Ok(pairs)
    }

    /// The pairs of each of `tokens` tokens.
    fn by_token(&self, tokens: usize) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); tokens];
        self.token.iter().zip(0..).for_each(|(token, pair)| lists[*token as usize].push(pair));
        lists
    }
}

/// Values by pair; there are none if no weight is other than zero.
#[derive(Debug)]
struct Computed {
    /// The token of each pair, `[p]`.
    token_p: Tensor,
    /// The weight of each pair, `[p, 1]`.
    w_p1: Tensor,
    /// What its MLP says, `[p, d]`.
    y_pd: Tensor,
}

impl Saved {
    fn run(&mut self) -> Result<Tensor> {
        if self.pairs.token.is_empty() {
            return self.x_td.zeros_like();
        }
        let token_p = Tensor::new(self.pairs.token.as_slice(), self.x_td.device())?;
        let x_pd = self.x_td.index_select(&token_p, 0)?;
        let mut outputs = Vec::new();
        for (rows, mixture) in &self.pairs.mlps {
            let matrices = self.values.merged(mixture)?;
            let pass =
                MlpValues::new(x_pd.narrow(0, rows.start, rows.len())?, &matrices, self.values.activation, None)?;
            outputs.push(pass.output(&matrices)?);
            self.passes.push(pass);
        }
        let y_pd = Tensor::cat(&outputs, 0)?;
        let flat = self.w_tn.flatten_all()?.unsqueeze(1)?;
        let w_p1 = sum_of_rows(&flat, &self.pairs.places)?.to_dtype(y_pd.dtype())?;
        let y_td = sum_of_rows(&y_pd.broadcast_mul(&w_p1)?, &self.pairs.by_token(self.x_td.dim(0)?))?;
        self.computed = Some(Computed { token_p, w_p1, y_pd });
        Ok(y_td)
    }

    /// ∂L/∂w[t, n] = ⟨δ_y, MLP_n(x_t)⟩ where w[t, n] ≠ 0.
    fn weights_gradient(&self, delta_y_pd: &Tensor, y_pd: &Tensor) -> Result<Tensor> {
        let wide = if y_pd.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let products = (delta_y_pd * y_pd)?.to_dtype(wide)?.sum_keepdim(1)?.to_dtype(self.w_tn.dtype())?;
        let mut lists = vec![Vec::new(); self.w_tn.elem_count()];
        for (places, pair) in self.pairs.places.iter().zip(0..) {
            places.iter().for_each(|place| lists[*place as usize].push(pair));
        }
        sum_of_rows(&products, &lists)?.reshape(self.w_tn.shape())
    }
}

/// dx and dw, each if asked for; the gradients of the base and of the differences go to `grads`.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn backward(
    saved: &Saved,
    replicas: Replicas<'_>,
    dy: &Tensor,
    (input, weights): (bool, bool),
    grads: &mut Grads,
) -> Result<[Option<Tensor>; 2]> {
    let Some(Computed { token_p, w_p1, y_pd }) = &saved.computed else {
        Detached::gradients(&[], replicas, false, grads)?;
        return Ok([
            input.then(|| saved.x_td.zeros_like()).transpose()?,
            weights.then(|| saved.w_tn.zeros_like()).transpose()?,
        ]);
    };
    let delta_pd = rows(dy)?.index_select(token_p, 0)?;
    let dw = weights.then(|| saved.weights_gradient(&delta_pd, y_pd)).transpose()?;
    let delta_y_pd = delta_pd.broadcast_mul(w_p1)?;
    let (mut deltas, mut inputs) = (Vec::new(), Vec::new());
    for ((rows, mixture), values) in saved.pairs.mlps.iter().zip(&saved.passes) {
        let matrices = saved.values.merged(mixture)?;
        let own = values.deltas(&matrices, delta_y_pd.narrow(0, rows.start, rows.len())?)?;
        if input {
            inputs.push(MlpValues::input_gradient(&matrices, &own)?);
        }
        deltas.push(own);
    }
    let dx = || sum_of_rows(&Tensor::cat(&inputs, 0)?, &saved.pairs.by_token(saved.x_td.dim(0)?));
    let passes = saved.pairs.mlps.iter().zip(&saved.passes).zip(&deltas);
    let merged: Vec<Merged<'_>> =
        passes.map(|(((_, mixture), values), deltas)| Merged { mixture, values, deltas }).collect();
    Detached::gradients(&merged, replicas, false, grads)?;
    Ok([input.then(dx).transpose()?, dw])
}
