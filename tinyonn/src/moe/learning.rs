//! The backward of a layer's experts: who learns is decided between the deltas of the inner values and the gradients of the weights
//! (DESIGN §4, Surprise Min-K).

use candle_core::{DType, Tensor};

use super::expert::{Parts, Saved, Slices, TinyOnnExpert, differences};
use super::neuron_rule::Repair;
use super::routing::Routing;
use crate::decoder::{Answers, Experts, Learn};
use crate::ops::min_k::surprise_squares;
use crate::ops::{self, Grads, Learners, LearningNeurons, MinK, MlpBackward, MlpWeights, Replicas, SlicedMlp};
use crate::{Error, Result};

/// What the backward of the experts gives.
pub(super) struct Backward {
    /// ∂L/∂x `[B·T, d]`, if asked for.
    pub(super) dx: Option<Tensor>,
    /// ∂L/∂gate, in the shape that the forward took its gates: `[B·T, N]` or `[D, N]`.
    pub(super) dgate: Option<Tensor>,
    pub(super) answers: Answers,
}

impl TinyOnnExpert {
    /// From ∂L/∂y; weight gradients go to `grads`. `wanted` are ∂L/∂x and ∂L/∂gate.
    pub(super) fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        routing: &Routing,
        learn: &Learn,
        wanted: (bool, bool),
        grads: &mut Grads,
    ) -> Result<Backward> {
        if learn.image.is_some() && matches!(saved, Saved::Merged(_) | Saved::Replicated(_)) {
            let problem = "replicas that have learnt share no neurons to be seen";
            return Err(Error::setting("image", problem, "image the dense model, or experts that are slices"));
        }
        if matches!(learn.experts, Experts::Mask(_)) && matches!(self.parts, Parts::Replicas(_)) {
            let problem = "replicas differ by whole matrices, of which no neuron can be left out";
            return Err(Error::setting("mask", problem, "mask the neurons of slices"));
        }
        if self.repair().is_some() && self.matrices().into_iter().any(|matrix| grads.learns(matrix)) {
            let problem = "the neurons that a token takes were repaired for these very weights";
            return Err(Error::setting("experts", problem, "train before the repair, or leave the experts frozen"));
        }
        match saved {
            Saved::Whole(saved) => {
                let mut back = self.slices_backward((saved, self.weights()), dy, routing, learn, wanted, grads)?;
                back.dgate = back.dgate.map(|dgate_tn| routing.by_decision(&dgate_tn)).transpose()?;
                Ok(back)
            }
            Saved::Chosen(saved, _) => {
                let mut back =
                    self.slices_backward((saved, self.chosen_weights()), dy, routing, learn, wanted, grads)?;
                if let Some(repair) = self.repair() {
                    grads.add_with(&repair.bias_d, || dy.flatten_to(1)?.to_dtype(DType::F32)?.sum(0))?;
                }
                back.dgate = back.dgate.map(|dgate_tn| routing.by_decision(&dgate_tn)).transpose()?;
                Ok(back)
            }
            Saved::Dispatched(saved) => {
                self.slices_backward((saved, self.weights()), dy, routing, learn, wanted, grads)
            }
            Saved::Shared(saved) => self.slices_backward((saved, self.weights()), dy, routing, learn, wanted, grads),
            Saved::Merged(saved) => {
                let deltas = self.differences();
                let replicas = Replicas { base: self.weights(), deltas: &deltas };
                let [dx, dw] = ops::merged_mlp::backward(saved, replicas, dy, wanted, grads)?;
                // Behind the decisions stands the one of what runs all active, which nobody made.
                let dgate = dw.map(|dw_dn| dw_dn.narrow(0, 0, routing.decisions()?)).transpose()?;
                Ok(Backward { dx, dgate, answers: Answers::default() })
            }
            Saved::Replicated(saved) => {
                let deltas = self.differences();
                let replicas = Replicas { base: self.weights(), deltas: &deltas };
                let [dx, dw] = ops::replica_dispatch::backward(saved, replicas, dy, wanted, grads)?;
                let dgate = dw.map(|dw_tn| routing.by_decision(&dw_tn)).transpose()?;
                Ok(Backward { dx, dgate, answers: Answers::default() })
            }
        }
    }

    /// Of slices, however they were computed: deltas, then who learns, then the gradients.
    fn slices_backward<S: SlicedMlp>(
        &self,
        (saved, weights): (&S, MlpWeights<'_>),
        dy: &Tensor,
        routing: &Routing,
        learn: &Learn,
        (input, gates): (bool, bool),
        grads: &mut Grads,
    ) -> Result<Backward> {
        let deltas = saved.deltas(dy)?;
        let (answers, learners) = if learn.image.is_some() || !matches!(learn.experts, Experts::All) {
            saved.seen(&deltas, |seen| Ok(self.decide(seen, routing, learn, grads)?))?
        } else {
            (Answers::default(), Learners::All)
        };
        saved.weight_gradients(weights, &deltas, &learners, grads)?;
        let dgate = if gates { saved.gate_gradient(&deltas)? } else { None };
        Ok(Backward { dx: input.then(|| saved.input_gradient(&deltas)).transpose()?, dgate, answers })
    }

    /// The matrices whose gradients are formed, if they learn, where neurons were chosen: ΔW has the gradient of W + ΔW.
    fn chosen_weights(&self) -> MlpWeights<'_> {
        let own = self.weights();
        let Some(Repair { deltas: [gate, up, down], .. }) = self.repair() else { return own };
        let [gate, up, down] =
            [(gate, own.gate), (up, own.up), (down, own.down)].map(|(delta, w)| delta.as_ref().unwrap_or(w));
        MlpWeights { gate, up, down, ..own }
    }

    fn differences(&self) -> Vec<Option<[&Tensor; 3]>> {
        match &self.parts {
            Parts::Slices(_) => Vec::new(),
            Parts::Replicas(deltas) => differences(deltas),
        }
    }

    /// What imaging asks of one backward pass, and whose weights learn from it.
    fn decide(
        &self,
        seen: &MlpBackward<'_>,
        routing: &Routing,
        learn: &Learn,
        grads: &mut Grads,
    ) -> Result<(Answers, Learners)> {
        let mut answers = learn.answers(self.layer(), seen)?;
        if let Some(mask) = learn.experts.mask(self.layer())? {
            return Ok((answers, mask.learners([&self.gate_proj, &self.up_proj, &self.down_proj], grads)?));
        }
        let (Experts::MinK(k), Parts::Slices(slices)) = (&learn.experts, &self.parts) else {
            return Ok((answers, Learners::All));
        };
        let load = routing.load(slices.widths.len(), seen.x_td)?;
        let k = *k;
        let decided_t = routing.decided(seen.x_td.device())?;
        let squares_i = surprise_squares(seen, decided_t.as_ref())?;
        let min_k =
            MinK::least(&slices.sums(&squares_i)?, &load.tokens_n.to_dtype(DType::F64)?, &slices.width_n(seen)?, k)?;
        let learn_i = min_k.learn_n.index_select(&slices.neuron_expert, 0)?;
        self.restrict(&learn_i, grads)?;
        let most = slices.most(k);
        answers.min_k = Some(min_k);
        // Who was given nothing has a gradient of zero, unless tokens before a decision ran all: where all that compete learn, nothing need
        // be left out.
        let learners = if k >= slices.widths.len() && decided_t.is_none() {
            Learners::All
        } else {
            Learners::Neurons(LearningNeurons::new(&learn_i, most)?)
        };
        Ok((answers, learners))
    }

    fn restrict(&self, learn_i: &Tensor, grads: &mut Grads) -> Result<()> {
        Ok([&self.gate_proj, &self.up_proj, &self.down_proj]
            .into_iter()
            .try_for_each(|w| grads.restrict(w, learn_i))?)
    }

    /// Of gradients that are all formed, keeps those of the `k` experts of least norm among those that were given a token (`tokens_n`
    /// `[N]`; `None`: all were); the others' are cleared, and their lines do not learn (`surprise = exact`).
    ///
    /// # Errors
    /// What the device reports.
    pub fn keep_least(&self, k: usize, tokens_n: Option<&Tensor>, grads: &mut Grads) -> Result<MinK> {
        let device = self.gate_proj.device();
        let experts = match &self.parts {
            Parts::Slices(slices) => slices.widths.len(),
            Parts::Replicas(deltas) => deltas.len(),
        };
        let active_n = match tokens_n {
            Some(tokens_n) => tokens_n.gt(0f64)?,
            None => Tensor::ones(experts, DType::U8, device)?,
        };
        match &self.parts {
            Parts::Slices(slices) => {
                let mut squares_i = Tensor::zeros(slices.neuron_expert.dim(0)?, DType::F64, device)?;
                for weight in [&self.gate_proj, &self.up_proj, &self.down_proj] {
                    if let Some(gradient) = grads.get(weight) {
                        squares_i = (squares_i + ops::wide(gradient)?.sqr()?.sum(1)?.to_dtype(DType::F64)?)?;
                    }
                }
                let min_k = MinK::by(&slices.sums(&squares_i)?.sqrt()?, active_n, k)?;
                self.restrict(&min_k.learn_n.index_select(&slices.neuron_expert, 0)?, grads)?;
                for weight in [&self.gate_proj, &self.up_proj, &self.down_proj] {
                    grads.clear_others(weight)?;
                }
                Ok(min_k)
            }
            Parts::Replicas(deltas) => {
                let mut squares = Vec::with_capacity(deltas.len());
                for delta in deltas {
                    let mut sum = Tensor::zeros(1, DType::F64, device)?;
                    for gradient in delta.iter().flatten().filter_map(|delta| grads.get(delta)) {
                        sum = (sum + ops::wide(gradient)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.reshape(1)?)?;
                    }
                    squares.push(sum);
                }
                let squares_n = Tensor::cat(&squares, 0)?;
                // Of a gradient of zeros there is nothing to learn; one that is no number is not zero.
                let active_n = (active_n * squares_n.ne(0f64)?)?;
                let min_k = MinK::by(&squares_n.sqrt()?, active_n, k)?;
                for (n, delta) in deltas.iter().enumerate() {
                    let learn = min_k.learn_n.narrow(0, n, 1)?;
                    for delta in delta.iter().flatten() {
                        grads.restrict(delta, &learn)?;
                        grads.clear_others(delta)?;
                    }
                }
                Ok(min_k)
            }
        }
    }
}

impl Slices {
    /// Sums over each expert's neurons of values `[I]` f64.
    fn sums(&self, values_i: &Tensor) -> Result<Tensor> {
        let zeros_n = Tensor::zeros(self.widths.len(), values_i.dtype(), values_i.device())?;
        Ok(zeros_n.index_add(&self.neuron_expert, values_i, 0)?)
    }

    fn width_n(&self, seen: &MlpBackward<'_>) -> Result<Tensor> {
        let widths: Vec<f64> = self.widths.iter().map(|width| *width as f64).collect();
        Ok(Tensor::from_vec(widths, self.widths.len(), seen.x_td.device())?)
    }

    /// The neurons of the `k` widest experts: no `k` have more.
    fn most(&self, k: usize) -> usize {
        let mut widths = self.widths.clone();
        widths.sort_unstable_by(|a, b| b.cmp(a));
        widths.iter().take(k).sum()
    }
}
