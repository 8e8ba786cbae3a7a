//! Replicas: experts that are one base MLP and a difference each, W_n = W_base + ΔW_n; no difference is zero, and costs nothing.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::activation::Activation;
use super::glu_mlp::{MlpWeights, WeightGrads};
use super::lanes;
use super::mlp_pass::{Deltas, MlpPass};

/// A base MLP, and for each expert what its matrices add to the base's W_g, W_u and W_d, if anything.
#[derive(Clone, Copy, Debug)]
pub struct Replicas<'a> {
    /// W_base.
    pub base: MlpWeights<'a>,
    /// ΔW_n; `None` until the expert has learnt something of its own.
    pub deltas: &'a [Option<[&'a Tensor; 3]>],
}

impl<'a> Replicas<'a> {
    /// The three matrices of the base, then those of each difference there is.
    pub(super) fn inputs(self) -> impl Iterator<Item = &'a Tensor> {
        [self.base.gate, self.base.up, self.base.down]
            .into_iter()
            .chain(self.deltas.iter().flatten().flatten().copied())
    }

    /// Values without a history.
    pub(super) fn detach(self) -> Result<Detached> {
        let base = [self.base.gate, self.base.up, self.base.down].map(Tensor::detach);
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
pub(super) struct Detached {
    pub(super) base: [Tensor; 3],
    pub(super) deltas: Vec<Option<[Tensor; 3]>>,
    pub(super) activation: &'static dyn Activation,
}

/// The experts, and their weights, that one merged MLP is made of besides the base: those that differ from it.
pub(super) type Mixture = Vec<(usize, f64)>;

/// What one merged MLP did.
pub(super) struct MergedPass<'a> {
    pub(super) mixture: &'a Mixture,
    pub(super) pass: &'a MlpPass,
    pub(super) deltas: &'a Deltas,
}

/// Gradients of [`Replicas::inputs`].
pub(super) struct ReplicaGrads {
    /// In the order of the inputs; an expert that took part nowhere has none.
    pub(super) inputs: Vec<Option<Tensor>>,
    /// ⟨∂L/∂W̃, ΔW_n⟩ over the three matrices, f32 or f64 `[1]`, for each pass and place of its mixture.
    pub(super) weights: Vec<Vec<Tensor>>,
}

impl Detached {
    /// The experts of a row of weights that differ from the base.
    pub(super) fn mixture(&self, weights: impl IntoIterator<Item = f64>) -> Mixture {
        let differs = |(n, w): &(usize, f64)| *w != 0.0 && self.deltas[*n].is_some();
        weights.into_iter().enumerate().filter(differs).collect()
    }

    /// W̃ = W_base + Σ_n w_n ΔW_n; without a difference the base itself.
    pub(super) fn merged(&self, mixture: &Mixture) -> Result<[Tensor; 3]> {
        let mut merged = self.base.clone();
        for (which, merged) in merged.iter_mut().enumerate() {
            let terms = mixture.iter().filter_map(|(n, w)| Some((*w, &self.deltas[*n].as_ref()?[which])));
            *merged = plus(merged, &terms.collect::<Vec<_>>())?;
        }
        Ok(merged)
    }

    /// Sums what the merged MLPs say: ∂L/∂W_base = Σ ∂L/∂W̃, ∂L/∂ΔW_n = Σ w_n ∂L/∂W̃; where nobody `needs` it, it is not formed.
    /// With `weights`, the gradients of w too.
    pub(super) fn gradients(
        &self,
        passes: &[MergedPass<'_>],
        needs: &[bool],
        learners: &WeightGrads,
        weights: bool,
    ) -> Result<ReplicaGrads> {
        let place = self.places();
        let need = |at: usize| needs.get(at).copied().unwrap_or(false);
        let mut inputs: Vec<Option<Tensor>> = vec![None; needs.len()];
        let mut inner: Vec<Vec<Tensor>> = vec![vec![]; passes.len()];
        for (pass, inner) in passes.iter().zip(&mut inner) {
            for which in 0..3 {
                let learns = |(n, _): &(usize, f64)| need(place[*n] + which);
                let wanted = weights && !pass.mixture.is_empty();
                if !(wanted || need(which) || pass.mixture.iter().any(learns)) {
                    continue;
                }
                let grad = pass.pass.weight_gradient(which, pass.deltas, learners)?;
                for (at, (n, w)) in pass.mixture.iter().enumerate() {
                    if need(place[*n] + which) {
                        add(&mut inputs[place[*n] + which], *w, &grad)?;
                    }
                    if let Some(delta) = self.deltas[*n].as_ref().filter(|_| wanted) {
                        let product = inner_product(&grad, &delta[which])?;
                        match inner.get_mut(at) {
                            Some(sum) => *sum = (&*sum + product)?,
                            None => inner.push(product),
                        }
                    }
                }
                if need(which) {
                    add(&mut inputs[which], 1.0, &grad)?;
                }
            }
        }
        for (which, base) in self.base.iter().enumerate() {
            if need(which) && inputs[which].is_none() {
                inputs[which] = Some(base.zeros_like()?);
            }
        }
        Ok(ReplicaGrads { inputs, weights: inner })
    }

    /// Where each expert's matrices begin among the inputs.
    fn places(&self) -> Vec<usize> {
        let mut next = 3;
        let place = |delta: &Option<[Tensor; 3]>| {
            let place = next;
            next += delta.as_ref().map_or(0, |delta| delta.len());
            place
        };
        self.deltas.iter().map(place).collect()
    }
}

/// sum + w · grad.
fn add(sum: &mut Option<Tensor>, w: f64, grad: &Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => plus(&sum, &[(w, grad)])?,
        None if w == 1.0 => grad.clone(),
        None => (grad * w)?,
    });
    Ok(())
}

/// a + Σ w b, term after term.
fn plus(a: &Tensor, terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = std::iter::once(a).chain(terms.iter().map(|(_, b)| *b)).collect();
    if terms.is_empty() {
        return Ok(a.clone());
    }
    if !lanes::fused(&tensors) || !tensors.iter().all(|tensor| tensor.is_contiguous()) {
        return terms.iter().try_fold(a.clone(), |sum, (w, b)| sum + (*b * *w)?);
    }
    let mut sum = vec![0f32; a.elem_count()];
    lanes::with_all_slices(&tensors, |slices| {
        lanes::by_rows(&mut sum, WIDTH, |row, sum| {
            let block = row * WIDTH..row * WIDTH + sum.len();
            sum.copy_from_slice(&slices[0][block.clone()]);
            for ((w, _), b) in terms.iter().zip(&slices[1..]) {
                let w = *w as f32;
                sum.iter_mut().zip(&b[block.clone()]).for_each(|(sum, b)| *sum += w * b);
            }
        });
    })?;
    Tensor::from_vec(sum, a.shape(), a.device())
}

/// Elementwise loops see their values as rows of this width.
const WIDTH: usize = 256;

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
