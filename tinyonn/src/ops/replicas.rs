//! Replicas: experts that are one base MLP and a difference each, W_n = W_base + ΔW_n; no difference is zero, and costs nothing.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::Grads;
use super::activation::Activation;
use super::glu_mlp::{MlpWeights, weight_gradient};
use super::lanes::{self, WIDTH};
use super::mlp_values::{Deltas, MlpValues};

/// A base MLP, and for each expert what its matrices add to the base's W_g, W_u and W_d, if anything.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::{MlpWeights, Replicas, Silu};
///
/// let w = Tensor::zeros((6, 4), DType::F32, &Device::Cpu)?;
/// let base = MlpWeights { gate: &w, up: &w, down: &w, activation: &Silu };
/// // Three replicas, of which the second has learnt.
/// let deltas = [None, Some([&w, &w, &w]), None];
/// assert_eq!(Replicas { base, deltas: &deltas }.deltas.len(), 3);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Replicas<'a> {
    /// W_base.
    pub base: MlpWeights<'a>,
    /// ΔW_n; `None` until the expert has learnt something of its own.
    pub deltas: &'a [Option<[&'a Tensor; 3]>],
}

impl Replicas<'_> {
    /// Values without a history.
    pub(super) fn detach(self) -> Result<Detached> {
        let base = self.base.matrices();
        let shapes = base.each_ref().map(Tensor::shape);
        for (n, delta) in self.deltas.iter().enumerate() {
            let differs = |delta: &&[&Tensor; 3]| delta.iter().zip(shapes).any(|(delta, base)| delta.shape() != base);
            if let Some(delta) = delta.as_ref().filter(differs) {
                let found = delta.map(Tensor::shape);
                candle_core::bail!("the difference of expert {n} has matrices {found:?}, its base {shapes:?}");
            }
        }
        let deltas = self.deltas.iter().map(|delta| delta.map(|delta| delta.map(Tensor::detach))).collect();
        Ok(Detached { base, deltas, activation: self.base.activation })
    }
}

/// The values of [`Replicas`].
#[derive(Debug)]
pub(super) struct Detached {
    pub(super) base: [Tensor; 3],
    pub(super) deltas: Vec<Option<[Tensor; 3]>>,
    pub(super) activation: &'static dyn Activation,
}

/// What one merged MLP is made of besides the base: experts that differ from it, and their weights `[experts]` (of none
/// a single one, which counts for nothing).
#[derive(Debug)]
pub(super) struct Mixture {
    pub(super) experts: Vec<usize>,
    pub(super) weights: Tensor,
}

impl Mixture {
    /// The weight of the `at`-th of its experts, `[1]`.
    fn weight(&self, at: usize) -> Result<Tensor> {
        self.weights.narrow(0, at, 1)
    }
}

/// What one merged MLP did.
pub(super) struct Merged<'a> {
    pub(super) mixture: &'a Mixture,
    pub(super) values: &'a MlpValues,
    pub(super) deltas: &'a Deltas,
}

impl Detached {
    /// The experts of a row of weights `[n]` that differ from the base; in main memory only those that weigh something.
    pub(super) fn mixture(&self, w_n: &Tensor) -> Result<Mixture> {
        let w_n = w_n.to_dtype(DType::F64)?.contiguous()?;
        let differ = (0..self.deltas.len()).filter(|n| self.deltas[*n].is_some());
        let experts: Vec<usize> = if w_n.device().is_cpu() {
            lanes::with_values(&w_n, |w: &[f64]| differ.filter(|n| w[*n] != 0.0).collect())?
        } else {
            differ.collect()
        };
        let index: Vec<u32> = experts.iter().map(|n| *n as u32).collect();
        let weights = if index.is_empty() {
            Tensor::zeros(1, DType::F64, w_n.device())?
        } else {
            w_n.index_select(&Tensor::new(index, w_n.device())?, 0)?
        };
        Ok(Mixture { experts, weights })
    }

    /// W̃ = W_base + Σ_n w_n ΔW_n; without a difference the base itself.
    pub(super) fn merged(&self, mixture: &Mixture) -> Result<[Tensor; 3]> {
        let mut merged = self.base.clone();
        for (which, merged) in merged.iter_mut().enumerate() {
            let terms = mixture.experts.iter().filter_map(|n| Some(&self.deltas[*n].as_ref()?[which]));
            *merged = plus(merged, &mixture.weights, &terms.collect::<Vec<_>>())?;
        }
        Ok(merged)
    }

    /// Sums what the merged MLPs say into `grads`: ∂L/∂W_base = Σ ∂L/∂W̃, ∂L/∂ΔW_n = Σ w_n ∂L/∂W̃; what does not learn is not formed, and
    /// an expert that took part nowhere has no gradient. With `weights`, ⟨∂L/∂W̃, ΔW_n⟩ over the three matrices, `[1]` in f32 or f64, for
    /// each MLP and place of its mixture.
    pub(super) fn gradients(
        merged: &[Merged<'_>],
        replicas: Replicas<'_>,
        weights: bool,
        grads: &mut Grads,
    ) -> Result<Vec<Vec<Tensor>>> {
        let base = [replicas.base.gate, replicas.base.up, replicas.base.down];
        let mut inner: Vec<Vec<Tensor>> = Vec::with_capacity(merged.len());
        for Merged { mixture, values, deltas } in merged {
            let mut products: Vec<Tensor> = Vec::new();
            for (which, base) in base.into_iter().enumerate() {
                let own = |n: &usize| replicas.deltas[*n].map(|delta| delta[which]);
                let learns = |n: &usize| own(n).is_some_and(|delta| grads.learns(delta));
                let wanted = weights && !mixture.experts.is_empty();
                if !(wanted || grads.learns(base) || mixture.experts.iter().any(learns)) {
                    continue;
                }
                let gradient = weight_gradient(which, values, deltas)?;
                for (at, n) in mixture.experts.iter().enumerate() {
                    let Some(delta) = own(n) else { continue };
                    grads.add_scaled(delta, &gradient, &mixture.weight(at)?)?;
                    if wanted {
                        let product = inner_product(&gradient, &delta.detach())?;
                        match products.get_mut(at) {
                            Some(sum) => *sum = (&*sum + product)?,
                            None => products.push(product),
                        }
                    }
                }
                grads.add_with(base, || Ok(gradient))?;
            }
            inner.push(products);
        }
        for base in base {
            if grads.get(base).is_none() {
                grads.add_with(base, || base.detach().zeros_like())?;
            }
        }
        Ok(inner)
    }
}

/// a + Σ w b, term after term.
fn plus(a: &Tensor, weights: &Tensor, terms: &[&Tensor]) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = std::iter::once(a).chain(terms.iter().copied()).collect();
    if terms.is_empty() {
        return Ok(a.clone());
    }
    if !lanes::fused(&tensors) || !tensors.iter().all(|tensor| tensor.is_contiguous()) {
        let weights = weights.to_dtype(a.dtype())?;
        let term = |(at, b): (usize, &&Tensor)| b.broadcast_mul(&weights.narrow(0, at, 1)?);
        return terms.iter().enumerate().try_fold(a.clone(), |sum, next| sum + term(next)?);
    }
    let mut sum = vec![0f32; a.elem_count()];
    lanes::with_values(weights, |weights: &[f64]| {
        lanes::with_all_slices(&tensors, |slices| {
            lanes::by_rows(&mut sum, WIDTH, |row, sum| {
                let block = row * WIDTH..row * WIDTH + sum.len();
                sum.copy_from_slice(&slices[0][block.clone()]);
                for (w, b) in weights.iter().zip(&slices[1..]) {
                    let w = *w as f32;
                    sum.iter_mut().zip(&b[block.clone()]).for_each(|(sum, b)| *sum += w * b);
                }
            });
        })
    })??;
    Tensor::from_vec(sum, a.shape(), a.device())
}

/// ⟨a, b⟩ `[1]`, in f32 or f64.
fn inner_product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if lanes::fused(&[a, b]) && a.is_contiguous() && b.is_contiguous() {
        // By blocks, whose number does not depend on that of the threads.
        let block = WIDTH * lanes::ROW_BLOCK;
        let sum: f64 = lanes::with_slices([a, b], |[a, b]| {
            let products = a.par_chunks(block).zip(b.par_chunks(block));
            let sums: Vec<f64> = products.map(|(a, b)| f64::from(lanes::vectorised(|| lanes::dot(a, b)))).collect();
            sums.iter().sum()
        })?;
        return Tensor::from_vec(vec![sum as f32], 1, a.device());
    }
    let wide = if a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    (a * b)?.to_dtype(wide)?.sum_all()?.reshape(1)
}
