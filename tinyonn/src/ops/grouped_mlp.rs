//! The gated MLP of [`glu_mlp`](super::glu_mlp) on a GPU's tensor cores, computed only where gates are not zero: each token goes to its own experts.
//!
//! y_t = Σ_n w[t, n] Expert_n(x_t) over the n with w[t, n] ≠ 0; formulas and legend are those of [`dispatch_mlp`](super::dispatch_mlp), which is the
//! form for main memory, and as there a closed gate has no gradient.
//!
//! A *row* is a token and one of its experts. Rows are sorted by expert, so that the rows of an expert make products with its neurons' weights alone:
//! `expert_rows.cu` finds them, `expert_products.cu` multiplies. x, dy and the weights are read where they are, through lists of tokens and neurons.
//! Which rows there are is known on the device only: room is made for `most` experts of every token.
//!
//! What a token's experts say is added up in one of two forms, by a rule that reads shapes and the card alone (`Form::by_rows`): *rows*, a row of y for each
//! expert of a token, then their sum; or *zero-filled*, one product over all neurons, zeros where nothing was computed, which costs the same whatever was.
//!
//! Values are bf16, sums f32, and every sum has one order: runs are bit-equal. h, g, u and their derivatives take 2 · `most` · width bytes a token each,
//! and the rows of y and dx, which a token's sum is made of, 2 · `most` · d for as long as a call takes.
//!
//! ```no_run
//! use candle_core::{Result, Tensor};
//! use tinyonn::ops::grouped_mlp::{Choice, Deltas, Saved, forward, takes};
//! use tinyonn::ops::{ExpertNeurons, MlpGate, MlpWeights, SlicedMlp as _};
//!
//! /// Eight experts of a token, where that pays and the card has the kernels for it.
//! fn routed(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, experts: &ExpertNeurons) -> Result<Option<Tensor>> {
//!     let choice = Choice { neurons: &experts.on_device(x.device())?, most: 8 };
//!     if !choice.pays()? || !takes(x, weights)? {
//!         return Ok(None);
//!     }
//!     let (y, saved): (Tensor, Saved) = forward(x, weights, gate, choice)?;
//!     let deltas: Deltas = saved.deltas(&y.ones_like()?)?;
//!     saved.input_gradient(&deltas).map(Some)
//! }
//! # Ok::<(), tinyonn::Error>(())
//! ```

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Device, Result, Tensor};

use super::activation::Silu;
use super::columns::columns;
use super::expert_neurons::NeuronLists;
use super::expert_rows::{Rows, SLAB_NEURONS, Shape};
use super::glu_mlp::{MlpGate, MlpWeights, SlicedMlp};
use super::kernel::{address, attribute, card, is_hopper, is_read};
use super::learners::LearningNeurons;
use super::linear::{rows, sum_of_products};
use super::mlp_values::MlpBackward;
use super::{Activation as _, Grads, Learners, expert_hopper, expert_products};

/// Copies between the memories take so many bytes at once.
const ALIGNMENT: u64 = 16;

/// Neurons of experts of which half pay on a card of compute capability 9.0 ([`Choice::pays`]).
const WIDE_EXPERT: usize = 256;

/// What must be known before the gates are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Where the experts' neurons are.
    pub neurons: &'a NeuronLists,
    /// Experts that a token takes at most; of more open gates the first count.
    pub most: usize,
}

impl Choice<'_> {
    /// Whether it is worth it: whether less time is taken than by one product over all neurons, at a higher rate and without lists.
    ///
    /// Up to a third of the neurons it is. On a card of compute capability 9.0 it is up to half of them where experts have 256 neurons or more: there, with
    /// T = 8192 and d = 2048 on an H200, 5 of 10 experts of 614 neurons take 2.03 ms a layer, forward and backward, and all neurons under gates 2.59.
    /// By the figures of [`expert_hopper`] a neuron that a token takes costs 74 ps and an expert 4 ns, all neurons under gates 51 ps each: half of the experts
    /// take as long where they have 140 neurons, and what is above leaves room for tiles that are not full.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn pays(&self) -> Result<bool> {
        let hopper = match self.neurons.starts.device() {
            Device::Cuda(device) => is_hopper(device)?,
            _ => false,
        };
        let experts = self.neurons.starts.elem_count().saturating_sub(1);
        Ok(pays(self.most, experts, self.neurons.order_i.elem_count(), hopper))
    }
}

fn pays(most: usize, experts: usize, neurons: usize, hopper: bool) -> bool {
    let wide = hopper && neurons >= WIDE_EXPERT * experts;
    3 * most <= experts || (wide && 2 * most <= experts)
}

/// What the backward needs.
#[derive(Debug)]
pub struct Saved {
    matrices: [Tensor; 3],
    x_td: Tensor,
    gate_tn: Tensor,
    neuron_expert: Tensor,
    neurons: NeuronLists,
    rows: Rows,
    form: Form,
    /// g, u and the gated h of every row, `[r, width]`.
    values: [Tensor; 3],
}

/// What the backward pass sends to the inner values.
#[derive(Debug)]
pub struct Deltas {
    y_td: Tensor,
    /// δ_h, δ_g, δ_u of every row, `[r, width]`.
    values: [Tensor; 3],
    /// What parts of a row add to its Σ_i δ_h h, `[parts, r]` f32.
    parts: Tensor,
}

/// Whose kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Those of [`expert_products`], on every card.
    Portable,
    /// Those of [`expert_hopper`].
    Hopper,
}

impl Form {
    fn on(device: &Device, shape: Shape) -> Result<Self> {
        match device {
            Device::Cuda(device) if expert_hopper::takes(shape, device)? => Ok(Self::Hopper),
            _ => Ok(Self::Portable),
        }
    }

    /// Whether sums over a token's experts are formed of rows. In units of a neuron of one dense product (2 d operations and its value's way to memory and
    /// back, 7 ps a token on an H200 for d = 2048): a neuron of an expert's own product costs 1.6, a row of y, written and read, 390 beside one product
    /// and 220 beside two. With Hopper's kernels it costs 1, and a row 290 and 145: ms of products and sums of rows are 0.256 and 0.426 for 5 of 10
    /// experts of 614 neurons, 0.202 and 0.234 for 10 of 100 of 61.
    fn by_rows(self, s: Shape, products: usize) -> bool {
        let neurons = s.most * s.neurons / s.experts;
        let (neurons, row) = match (self, products) {
            (Self::Portable, 1) => (8 * neurons / 5, 390),
            (Self::Portable, _) => (8 * neurons / 5, 220),
            (Self::Hopper, 1) => (neurons, 290),
            (Self::Hopper, _) => (neurons, 145),
        };
        neurons + row * s.most <= s.neurons
    }
}

/// Whether the kernels take this MLP: SwiGLU in bf16 on a card that has tensor cores for it, d a multiple of 64.
///
/// # Errors
/// What the driver reports.
pub fn takes(x: &Tensor, weights: MlpWeights<'_>) -> Result<bool> {
    let x_td = rows(x)?;
    let (t, d) = x_td.dims2()?;
    if t == 0 || !d.is_multiple_of(64) || !weights.activation.is_silu() {
        return Ok(false);
    }
    for tensor in [&x_td, weights.gate, weights.up, weights.down] {
        if !is_read(tensor) || tensor.dtype() != DType::BF16 || address(tensor)? % ALIGNMENT != 0 {
            return Ok(false);
        }
    }
    let there = attribute(card(&x_td)?, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(there >= expert_products::MOST_BYTES as usize)
}

/// y = W_d (h ⊙ c) without the neurons whose c is zero, of what [`takes`] has agreed to.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn forward(x: &Tensor, weights: MlpWeights<'_>, gate: MlpGate<'_>, choice: Choice<'_>) -> Result<(Tensor, Saved)> {
    forward_by(None, x, weights, gate, choice)
}

/// By this form, or by the card's.
fn forward_by(
    form: Option<Form>,
    x: &Tensor,
    weights: MlpWeights<'_>,
    gate: MlpGate<'_>,
    choice: Choice<'_>,
) -> Result<(Tensor, Saved)> {
    let (x_td, matrices) = (rows(x)?, weights.matrices());
    let (gate_tn, neurons) = (gate.gate_tn.detach().contiguous()?, choice.neurons);
    let ((tokens, hidden), (gates, experts)) = (x_td.dims2()?, gate_tn.dims2()?);
    let width = neurons.widest.next_multiple_of(SLAB_NEURONS);
    let i = neurons.order_i.dim(0)?;
    let shape = Shape { tokens, hidden, experts, most: choice.most.clamp(1, experts), width, neurons: i };
    if gates != tokens
        || !is_read(&gate_tn)
        || neurons.starts.dims() != [experts + 1]
        || gate.neuron_expert.dims() != [i]
        || gate.neuron_expert.dtype() != DType::U32
        || matrices.iter().any(|matrix| matrix.dims() != [i, hidden])
    {
        candle_core::bail!("grouped_mlp: x {:?}, gates {:?} and {i} neurons do not go together", x.shape(), gate_tn);
    }
    let form = form.map_or_else(|| Form::on(x.device(), shape), Ok)?;
    let rows = Rows::new(&gate_tn, shape)?;
    let values = match form {
        Form::Portable => expert_products::up(&x_td, &matrices, neurons, &rows),
        Form::Hopper => expert_hopper::up(&x_td, &matrices, neurons, &rows),
    }?;
    let (neurons, neuron_expert) = (neurons.clone(), gate.neuron_expert.detach());
    let saved = Saved { matrices, x_td, gate_tn, neuron_expert, neurons, rows, form, values };
    let y_td = saved.product(&[(&saved.values[2], &saved.matrices[2])])?;
    Ok((y_td.reshape(x.shape())?, saved))
}

impl SlicedMlp for Saved {
    type Deltas = Deltas;

    fn deltas(&self, dy: &Tensor) -> Result<Deltas> {
        let y_td = rows(dy)?;
        if y_td.dims() != self.x_td.dims() || y_td.dtype() != DType::BF16 {
            candle_core::bail!("grouped_mlp: dy {:?} of x {:?} in bf16", dy.shape(), self.x_td.shape());
        }
        let y_td = if address(&y_td)? % ALIGNMENT == 0 { y_td } else { y_td.force_contiguous()? };
        let [_, _, down] = &self.matrices;
        let (values, parts) = match self.form {
            Form::Portable => expert_products::deltas(&y_td, down, &self.values, &self.neurons, &self.rows),
            Form::Hopper => expert_hopper::deltas(&y_td, down, &self.values, &self.neurons, &self.rows),
        }?;
        Ok(Deltas { y_td, values, parts })
    }

    fn seen<R>(&self, deltas: &Deltas, see: impl FnOnce(&MlpBackward<'_>) -> Result<R>) -> Result<R> {
        let [g, u, _] = &self.values;
        let h_ti = Silu.forward(&self.dense(g)?, &self.dense(u)?)?;
        let gate_ti = columns(&self.gate_tn.to_dtype(h_ti.dtype())?, &self.neuron_expert)?;
        let [delta_h_ti, delta_g_ti, delta_u_ti] = deltas.values.each_ref().map(|values| self.dense(values));
        see(&MlpBackward {
            x_td: &self.x_td,
            h_ti: &h_ti,
            gate_ti: Some(&gate_ti),
            delta_y_td: &deltas.y_td,
            delta_h_ti: &delta_h_ti?,
            delta_g_ti: &delta_g_ti?,
            delta_u_ti: &delta_u_ti?,
            input_matrices: Some([&self.matrices[0], &self.matrices[1]]),
            reads_a_part: false,
        })
    }

    fn input_gradient(&self, deltas: &Deltas) -> Result<Tensor> {
        let [gate, up, _] = &self.matrices;
        let [_, dg, du] = &deltas.values;
        self.product(&[(dg, gate), (du, up)])
    }

    fn gate_gradient(&self, deltas: &Deltas) -> Result<Option<Tensor>> {
        expert_products::gates(&self.gate_tn, &deltas.parts, &self.rows).map(Some)
    }

    /// The multiply-adds are those of `most` experts of every token, of mean width: how many there were is known on the device only.
    fn weight_gradients(
        &self,
        weights: MlpWeights<'_>,
        deltas: &Deltas,
        learners: &Learners,
        grads: &mut Grads,
    ) -> Result<u64> {
        let ([_, _, h], [_, dg, du]) = (&self.values, &deltas.values);
        let products = [(weights.gate, dg, &self.x_td), (weights.up, du, &self.x_td), (weights.down, h, &deltas.y_td)];
        let mut done = 0;
        match learners {
            Learners::Neurons(some) => {
                for (weight, values, a_td) in products {
                    if grads.learns(weight) {
                        done += self.of_some(weight, values, a_td, some, grads)?;
                    }
                }
            }
            Learners::All => {
                let s = self.rows.shape;
                let each = (s.rows() * s.hidden) as u64 * self.neurons.order_i.elem_count() as u64 / s.experts as u64;
                done += each * products.iter().filter(|(weight, ..)| grads.learns(weight)).count() as u64;
                let [gate, up, down] = products;
                if grads.alike(gate.0, up.0) {
                    self.of_all(&[(gate.0, gate.1), (up.0, up.1)], &self.x_td, grads)?;
                } else {
                    self.of_all(&[(gate.0, gate.1)], &self.x_td, grads)?;
                    self.of_all(&[(up.0, up.1)], &self.x_td, grads)?;
                }
                self.of_all(&[(down.0, down.1)], &deltas.y_td, grads)?;
            }
        }
        Ok(done)
    }
}

impl Saved {
    /// Σ over a token's rows of v W, in the form that the rule says.
    fn product(&self, pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
        if self.form.by_rows(self.rows.shape, pairs.len()) {
            let y_rd = match self.form {
                Form::Portable => expert_products::row_products(pairs, &self.neurons, &self.rows),
                Form::Hopper => expert_hopper::row_products(pairs, &self.neurons, &self.rows),
            }?;
            return expert_products::combine(&y_rd, &self.rows);
        }
        let dense = pairs.iter().map(|(values, _)| self.dense(values)).collect::<Result<Vec<_>>>()?;
        sum_of_products(dense.iter().zip(pairs).map(|(v_ti, (_, weight))| (v_ti, *weight)))
    }

    /// Values of rows `[r, width]` as values of tokens `[t, i]`; 0 where nothing was computed.
    fn dense(&self, values: &Tensor) -> Result<Tensor> {
        expert_products::dense(values, &self.neuron_expert, &self.neurons, &self.rows)
    }

    /// dW[i] = Σ_r v[r, i] a[token of r] of one weight, or of two that are [`alike`](Grads::alike).
    fn of_all(&self, weights: &[(&Tensor, &Tensor)], a_td: &Tensor, grads: &mut Grads) -> Result<()> {
        let (mut pairs, mut add) = (Vec::with_capacity(weights.len()), false);
        for (weight, values) in weights {
            let Some((target, written)) = grads.target(weight) else { return Ok(()) };
            pairs.push((*values, target));
            add = written;
        }
        match self.form {
            Form::Portable => expert_products::weight_sums(&pairs, a_td, add, &self.neurons, &self.rows),
            Form::Hopper => expert_hopper::weight_sums(&pairs, a_td, add, &self.neurons, &self.rows),
        }
    }

    /// The same of some neurons, by a product over all tokens.
    fn of_some(
        &self,
        weight: &Tensor,
        values: &Tensor,
        a_td: &Tensor,
        some: &LearningNeurons,
        grads: &mut Grads,
    ) -> Result<u64> {
        let v_tm = some.columns(&self.dense(values)?)?;
        some.add_rows(&v_tm.t()?.matmul(a_td)?, weight, grads)?;
        super::mlp_values::multiply_adds(&v_tm, a_td)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::{ExpertNeurons, dispatch_mlp};
    use super::*;

    #[rstest]
    #[case::a_third(3, 10, 100, false, true)]
    #[case::more(4, 10, 100, false, false)]
    #[case::half_of_wide_ones(5, 10, 6144, false, false)]
    #[case::half_of_wide_ones_by_warpgroups(5, 10, 6144, true, true)]
    #[case::half_of_narrow_ones_by_warpgroups(50, 100, 6144, true, false)]
    fn half_pays_of_wide_experts_by_warpgroups(
        #[case] most: usize,
        #[case] experts: usize,
        #[case] neurons: usize,
        #[case] hopper: bool,
        #[case] expected: bool,
    ) {
        assert_eq!(pays(most, experts, neurons, hopper), expected);
    }

    /// Numbers between -2 and 2 without a pattern: what is behind the point of large multiples of sines.
    fn noise(shape: (usize, usize), step: f64) -> Result<Tensor> {
        let sines = Tensor::arange(0f32, (shape.0 * shape.1) as f32, &Device::Cpu)?.affine(step, 0.0)?.sin()?;
        let sines = sines.affine(43758.5, 0.0)?;
        (&sines - sines.floor()?)?.affine(4.0, -2.0)?.reshape(shape)?.to_dtype(DType::BF16)
    }

    /// y, dx, dgate, and the weights' gradients of two micro-batches.
    fn gradients<S: SlicedMlp>((y, saved): (Tensor, S), weights: MlpWeights<'_>, dy: &Tensor) -> Result<Vec<Tensor>> {
        let deltas = saved.deltas(dy)?;
        let mut found = vec![y, saved.input_gradient(&deltas)?];
        found.extend(saved.gate_gradient(&deltas)?);
        let all = [weights.gate, weights.up, weights.down];
        let mut grads = Grads::in_dtype(all.map(|weight| (weight, 0)), DType::F32)?;
        for _ in 0..2 {
            saved.weight_gradients(weights, &deltas, &Learners::All, &mut grads)?;
        }
        found.extend(all.iter().filter_map(|weight| grads.get(weight)).cloned());
        Ok(found)
    }

    /// The form for every card is the formula on a card that has another one too, and so is that one.
    #[rstest]
    #[case::tiles_of_128(300, 128, &[250, 256, 200, 129], 2)]
    #[case::tiles_of_128_not_full(140, 64, &[800; 4], 1)]
    #[case::tiles_of_64(500, 320, &[61; 12], 6)]
    #[case::without_neurons(150, 64, &[70, 0, 129, 40], 2)]
    #[case::without_rows(2, 64, &[9, 70, 3, 1, 20], 1)]
    fn each_form_is_the_formula(
        #[case] t: usize,
        #[case] d: usize,
        #[case] widths: &[usize],
        #[case] most: usize,
    ) -> Result<()> {
        let device = match Device::new_cuda(0) {
            Ok(device) => device,
            Err(error) => {
                println!("skipped: no GPU: {error}");
                return Ok(());
            }
        };
        let (n, i) = (widths.len(), widths.iter().sum::<usize>());
        // An expert's neurons are as far apart as its neighbours are many.
        let mut owners: Vec<(usize, u32)> = Vec::with_capacity(i);
        for (expert, width) in (0..).zip(widths) {
            owners.extend((0..*width).map(|at| (at, expert)));
        }
        owners.sort_unstable();
        let owners: Vec<u32> = owners.into_iter().map(|(_, expert)| expert).collect();
        let open = |token: usize, expert: usize| (expert + 3 * token) % n < token % (most + 1);
        let marks: Vec<f32> = (0..t * n).map(|at| f32::from(u8::from(open(at / n, at % n)))).collect();
        let marks_tn = Tensor::from_vec(marks, (t, n), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let gate_tn = (noise((t, n), 51.3)? * marks_tn)?;
        let inputs = [noise((t, d), 12.9)?, noise((i, d), 78.2)?, noise((i, d), 37.7)?, noise((i, d), 93.9)?, gate_tn];
        // So that g is no larger than SwiGLU's bends.
        let scale = [1.0, 0.02, 0.02, 0.02, 1.0];
        let scaled = inputs.iter().zip(scale).map(|(x, scale)| x * scale).collect::<Result<Vec<_>>>()?;
        let dy = noise((t, d), 64.1)?;
        let run = |xs: &[Tensor], dy: &Tensor, form: Option<Form>| {
            let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
            let neuron_expert = Tensor::new(owners.as_slice(), xs[0].device())?;
            let gate = MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert };
            if form.is_none() {
                return gradients(dispatch_mlp::forward(&xs[0], weights, gate)?, weights, dy);
            }
            let neurons = ExpertNeurons::new(&owners, n)?.on_device(xs[0].device())?;
            gradients(forward_by(form, &xs[0], weights, gate, Choice { neurons: &neurons, most })?, weights, dy)
        };
        let wide = scaled.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
        let expected = run(&wide, &dy.to_dtype(DType::F32)?, None)?;
        let on_card = scaled.iter().map(|x| x.to_device(&device)).collect::<Result<Vec<_>>>()?;
        let mut forms = vec![Form::Portable];
        if is_hopper(card(&on_card[0])?)? {
            forms.push(Form::Hopper);
        }
        for form in forms {
            let found = run(&on_card, &dy.to_device(&device)?, Some(form))?;
            assert_eq!(found.len(), expected.len());
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let found = found.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                let [error, norm] =
                    [(found - expected)?, expected.clone()].map(|x| x.sqr()?.sum_all()?.to_scalar::<f32>());
                let error = (error? / norm?).sqrt();
                // bf16 has eight bits.
                assert!(error <= 1e-2, "{form:?}, output {at}: {error:.1e}");
            }
        }
        Ok(())
    }
}
