//! Replicas, each token by its own: y_t = Σ_n w[t, n] MLP_{W_base + ΔW_n}(x_t) over the n with w[t, n] ≠ 0.
//!
//! Tokens are permuted by expert, so that each expert is one MLP over its tokens; all experts without a difference are
//! one, the base, and a token that chose several of them asks it once, with the sum of their weights. At top-1, where
//! w = 1, this is [`merged_mlp`](super::merged_mlp()) of one-row decisions. As there, an expert that a token did not choose has no gradient
//! from it: neither its weight (0) nor its difference (none, if no token chose it).

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::glu_mlp::WeightGrads;
use super::linear::rows;
use super::mlp_pass::MlpPass;
use super::replicas::{Detached, MergedPass, Mixture, Replicas};
use super::sum_of_rows::sum_of_rows;
use super::tape::{self, Backward};

/// y = Σ_n w[t, n] MLP_n(x), for weights w `[t, n]`. Differentiable in x, the chosen weights, the base and the differences.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{self, MlpWeights, Replicas, Run, Silu};
///
/// let matrix = |rows, columns| Tensor::randn(0f32, 1f32, (rows, columns), &Device::Cpu);
/// let (x, gate, up, down) = (matrix(2, 4)?, matrix(6, 4)?, matrix(6, 4)?, matrix(4, 6)?);
/// let base = MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu };
/// let replicas = Replicas { base, deltas: &[Some([&gate, &up, &down]), None] };
/// let w = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// let dispatched = ops::replica_dispatch(&x, replicas, &w)?;
/// let runs = [Run { rows: 0..1, decision: Some(0) }, Run { rows: 1..2, decision: Some(1) }];
/// let merged = ops::merged_mlp(&x, replicas, &w, &runs, None)?;
/// assert!((dispatched - merged)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn replica_dispatch(x: &Tensor, replicas: Replicas<'_>, w_tn: &Tensor) -> Result<Tensor> {
    let x_td = rows(&x.detach())?;
    let weights = w_tn.detach();
    if weights.dims() != [x_td.dim(0)?, replicas.deltas.len()] {
        let (tokens, experts) = (x_td.dim(0)?, replicas.deltas.len());
        candle_core::bail!("replica_dispatch: weights {:?} for {tokens} tokens, {experts} experts", weights.shape());
    }
    let values = replicas.detach()?;
    let pairs = Pairs::new(&weights, &values)?;
    let mut op = ReplicaDispatch { x_td, w_tn: weights, values, pairs, passes: vec![], computed: None };
    let y = op.forward()?.reshape(x.shape())?;
    let inputs: Vec<&Tensor> = [x, w_tn].into_iter().chain(replicas.inputs()).collect();
    tape::record(&inputs, y, op)
}

/// (token, MLP) pairs, by MLP, then token.
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
        let chosen = w_tn.ne(0f64)?.flatten_all()?.to_vec1::<u8>()?;
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
                let mixture = members.iter().filter(|n| differs(n)).map(|n| (*n, 1.0)).collect();
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

struct ReplicaDispatch {
    x_td: Tensor,
    w_tn: Tensor,
    values: Detached,
    pairs: Pairs,
    /// One an MLP of the pairs.
    passes: Vec<MlpPass>,
    computed: Option<Computed>,
}

/// Values by pair; there are none if no weight is other than zero.
struct Computed {
    /// The token of each pair, `[p]`.
    token_p: Tensor,
    /// The weight of each pair, `[p, 1]`.
    w_p1: Tensor,
    /// What its MLP says, `[p, d]`.
    y_pd: Tensor,
}

impl ReplicaDispatch {
    fn forward(&mut self) -> Result<Tensor> {
        if self.pairs.token.is_empty() {
            return self.x_td.zeros_like();
        }
        let token_p = Tensor::new(self.pairs.token.as_slice(), self.x_td.device())?;
        let x_pd = self.x_td.index_select(&token_p, 0)?;
        let mut outputs = Vec::new();
        for (rows, mixture) in &self.pairs.mlps {
            let matrices = self.values.merged(mixture)?;
            let pass = MlpPass::new(x_pd.narrow(0, rows.start, rows.len())?, &matrices, self.values.activation, None)?;
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

impl Backward for ReplicaDispatch {
    fn name(&self) -> &'static str {
        "replica_dispatch"
    }

    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let need = |i: usize| needs.get(i).copied().unwrap_or(false);
        let weight_needs = needs.get(2..).unwrap_or(&[]);
        let Some(Computed { token_p, w_p1, y_pd }) = &self.computed else {
            let dx = need(0).then(|| output.zeros_like()).transpose()?;
            let dw = need(1).then(|| self.w_tn.zeros_like()).transpose()?;
            let grads = self.values.gradients(&[], weight_needs, &WeightGrads::All, false)?;
            return Ok([dx, dw].into_iter().chain(grads.inputs).collect());
        };
        let delta_pd = rows(grad)?.index_select(token_p, 0)?;
        let dw = need(1).then(|| self.weights_gradient(&delta_pd, y_pd)).transpose()?;
        let delta_y_pd = delta_pd.broadcast_mul(w_p1)?;
        let (mut deltas, mut inputs) = (Vec::new(), Vec::new());
        for ((rows, mixture), pass) in self.pairs.mlps.iter().zip(&self.passes) {
            let matrices = self.values.merged(mixture)?;
            let own = pass.deltas(&matrices, delta_y_pd.narrow(0, rows.start, rows.len())?)?;
            if need(0) {
                inputs.push(MlpPass::input_gradient(&matrices, &own)?);
            }
            deltas.push(own);
        }
        let dx = || {
            let lists = self.pairs.by_token(self.x_td.dim(0)?);
            sum_of_rows(&Tensor::cat(&inputs, 0)?, &lists)?.reshape(output.shape())
        };
        let passes = self.pairs.mlps.iter().zip(&self.passes).zip(&deltas);
        let passes: Vec<MergedPass<'_>> =
            passes.map(|(((_, mixture), pass), deltas)| MergedPass { mixture, pass, deltas }).collect();
        let grads = self.values.gradients(&passes, weight_needs, &WeightGrads::All, false)?;
        Ok([need(0).then(dx).transpose()?, dw].into_iter().chain(grads.inputs).collect())
    }
}
