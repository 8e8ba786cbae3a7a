//! The ways to combine experts, each against a loop over experts in candle's own operations: values and all gradients.

mod chosen;
mod dispatch;
mod modules;
mod replicas;
mod shared;

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use tinyonn::ops::{MlpWeights, Silu, SlicedMlp};

use crate::gradients::{inputs, relative_difference};
use crate::ops::{gradients_of, learners, moments};

/// f32 carries 2⁻²⁴ = 6e-8 an operation; sums of some hundred terms of mixed sign, three products deep, reach about 1e-6.
const F32: f64 = 1e-5;
/// bf16 carries 2⁻⁹ = 2e-3 an operation, of which an MLP and its backward have about ten in a row.
const BF16: f64 = 4e-2;

/// The shape of a mixture: t rows, d channels, the neurons of each expert, and which gates are open.
#[derive(Clone, Debug)]
struct Mixture {
    t: usize,
    d: usize,
    widths: Vec<usize>,
    /// `[t, n]`.
    open: Vec<bool>,
}

impl Mixture {
    fn new(t: usize, d: usize, widths: &[usize], open: impl Fn(usize, usize) -> bool) -> Self {
        let n = widths.len();
        Self { t, d, widths: widths.to_vec(), open: (0..t * n).map(|at| open(at / n, at % n)).collect() }
    }

    fn experts(&self) -> usize {
        self.widths.len()
    }

    /// The expert of each neuron; neighbours belong to different ones where that can be.
    fn owners(&self) -> Vec<u32> {
        let mut left = self.widths.clone();
        let mut owners = Vec::new();
        while left.iter().any(|width| *width > 0) {
            for (expert, left) in left.iter_mut().enumerate().filter(|(_, left)| **left > 0) {
                *left -= 1;
                owners.push(expert as u32);
            }
        }
        owners
    }

    fn neuron_expert(&self, device: &Device) -> Result<Tensor> {
        Tensor::new(self.owners(), device)
    }

    /// x, the three matrices and gates of normal size, of which [`gates`](Self::gates) closes some.
    fn inputs(&self, seed: u64) -> Vec<Tensor> {
        let (d, i) = (self.d, self.owners().len());
        inputs(seed, &[&[self.t, d], &[i, d], &[i, d], &[i, d], &[self.t, self.experts()]])
    }

    /// `gate_tn` where open, else 0 (and no gradient).
    fn gates(&self, gate_tn: &Tensor) -> Result<Tensor> {
        let open: Vec<f64> = self.open.iter().map(|open| f64::from(u8::from(*open))).collect();
        gate_tn * Tensor::from_vec(open, gate_tn.shape(), gate_tn.device())?.to_dtype(gate_tn.dtype())?
    }

    /// Σ_n w[t, n] Expert_n(x_t), one expert after the other.
    fn naive(&self, xs: &[Tensor]) -> Result<Tensor> {
        self.naive_gated(xs, &self.gates(&xs[4])?)
    }

    fn naive_gated(&self, xs: &[Tensor], gate_tn: &Tensor) -> Result<Tensor> {
        let mut y = xs[0].zeros_like()?;
        for expert in 0..self.experts() {
            let own: Vec<u32> =
                self.owners().iter().zip(0..).filter(|(owner, _)| **owner as usize == expert).map(|(_, i)| i).collect();
            if own.is_empty() {
                continue;
            }
            let own = Tensor::new(own, xs[0].device())?;
            let [gate, up] = [&xs[1], &xs[2]].map(|m| m.index_select(&own, 0));
            let expert_y = naive_mlp(&xs[0], &gate?, &up?, &xs[3].index_select(&own, 0)?)?;
            y = (y + expert_y.broadcast_mul(&gate_tn.narrow(1, expert, 1)?)?)?;
        }
        Ok(y)
    }
}

/// W_d (silu(W_g x) ⊙ W_u x).
fn naive_mlp(x: &Tensor, gate: &Tensor, up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let g = x.matmul(&gate.t()?)?;
    let h = ((&g * candle_nn::ops::sigmoid(&g)?)? * x.matmul(&up.t()?)?)?;
    h.matmul(down)
}

fn weights(xs: &[Tensor]) -> MlpWeights<'_> {
    MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu }
}

/// Two ways to compute one function of x and an MLP's matrices show imaging the same sums, and form the gradients of the same learners.
fn assert_seen_alike<A: SlicedMlp, B: SlicedMlp>(xs: &[Tensor], a: &(Tensor, A), b: &(Tensor, B)) {
    let learners = learners(xs[1].dim(0).unwrap(), &[0, 3, 4, 8, 13]);
    for (a, b) in gradients_of(xs, a, &learners).iter().zip(&gradients_of(xs, b, &learners)) {
        assert!(relative_difference(a, b) < F32);
    }
    for (a, b) in moments(a).iter().zip(&moments(b)) {
        for (a, b) in a.iter().zip(b) {
            // The tokens' values are f32 at worst; only their sums are f64.
            approx::assert_relative_eq!(a, b, max_relative = 2e-5, epsilon = 1e-5);
        }
    }
}

/// The same values in another type.
fn in_dtype(xs: &[Tensor], dtype: DType) -> Vec<Tensor> {
    xs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect()
}

/// Small mixtures of every kind: one row or many, one expert or many, uneven, some without a row, some without a neuron.
fn mixtures() -> impl Strategy<Value = Mixture> {
    (1usize..40, 1usize..40, prop::collection::vec(0usize..10, 1..8), any::<u64>(), 0u64..5).prop_map(
        |(t, d, mut widths, bits, density)| {
            widths[0] += 1;
            let open = move |t: usize, n: usize| {
                let mixed = (t as u64 * 31 + n as u64 + 1).wrapping_mul(bits | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (mixed >> 60) < 4 * density
            };
            Mixture::new(t, d, &widths, open)
        },
    )
}
