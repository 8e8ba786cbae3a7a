//! The backward of a layer's experts: who learns is decided between the deltas of the inner values and the gradients of the weights
//! (DESIGN §4, Surprise Min-K).

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rand::Rng as _;

use super::expert::{Parts, Saved, Slices, TinyOnnExpert, differences};
use super::neuron_rule::Repair;
use super::routing::Routing;
use crate::decoder::smk_rule::{Losers, Per, Scope, Select, Smk};
use crate::decoder::{Answers, Experts, ImageAsk, Learn, Surprises};
use crate::ops::min_k::{self, surprise_squares};
use crate::ops::{self, Grads, Learners, LearningNeurons, MinK, MlpBackward, MlpWeights, Replicas, SlicedMlp};
use crate::ranks::{Collective, Underway};
use crate::{Error, Result, random};

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
            Saved::Whole(saved) => self.by_token((saved, self.weights()), dy, routing, learn, wanted, grads),
            Saved::Chosen(saved, _) => {
                let back = self.by_token((saved, self.chosen_weights()), dy, routing, learn, wanted, grads)?;
                if let Some(repair) = self.repair() {
                    grads.add_with(&repair.bias_d, || dy.flatten_to(1)?.to_dtype(DType::F32)?.sum(0))?;
                }
                Ok(back)
            }
            Saved::Dispatched(saved) => {
                self.slices_backward((saved, self.weights()), dy, routing, learn, wanted, grads)
            }
            #[cfg(feature = "cuda")]
            Saved::Grouped(saved) => self.slices_backward((saved, self.weights()), dy, routing, learn, wanted, grads),
            #[cfg(feature = "cuda")]
            Saved::Gated(saved) => self.by_token((saved, self.weights()), dy, routing, learn, wanted, grads),
            #[cfg(feature = "cuda")]
            Saved::Segments(saved) => self.by_token((saved, self.weights()), dy, routing, learn, wanted, grads),
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

    /// Of slices that have a gate for every token, whose gradients are those of decisions.
    fn by_token<S: SlicedMlp>(
        &self,
        saved: (&S, MlpWeights<'_>),
        dy: &Tensor,
        routing: &Routing,
        learn: &Learn,
        wanted: (bool, bool),
        grads: &mut Grads,
    ) -> Result<Backward> {
        let back = self.slices_backward(saved, dy, routing, learn, wanted, grads)?;
        Ok(Backward { dgate: back.dgate.map(|dgate_tn| routing.by_decision(&dgate_tn)).transpose()?, ..back })
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
        let (mut answers, squares_i) =
            if learn.image.is_some() || learn.experts.early().is_some_and(Smk::reads_surprise) {
                saved.seen(&deltas, |seen| Ok(self.see(seen, routing, learn)?))?
            } else {
                (Answers::default(), None)
            };
        let counted = match (learn.experts.early(), &self.parts) {
            (Some(smk), Parts::Slices(slices)) => {
                let seen = (squares_i.as_ref(), learn.ranks.as_deref());
                Some((smk, slices, slices.count(seen, dy, routing)?))
            }
            _ => None,
        };
        // What needs no learners is formed while ranks add up.
        let dgate = if gates { saved.gate_gradient(&deltas)? } else { None };
        let dx = input.then(|| saved.input_gradient(&deltas)).transpose()?;
        let learners = match counted {
            Some((smk, slices, counted)) => {
                let all_decided = routing.decided(dy.device())?.is_none();
                let (min_k, learners) = self.decide((smk, slices), counted, all_decided, grads)?;
                answers.min_k = Some(min_k);
                learners
            }
            None => match learn.experts.mask(self.layer())? {
                Some(mask) => mask.learners(self.matrices(), grads)?,
                None => Learners::All,
            },
        };
        answers.products = Some(saved.weight_gradients(weights, &deltas, &learners, grads)?);
        Ok(Backward { dx, dgate, answers })
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

    /// What imaging asks of one backward pass; and Σ S² of every neuron over the tokens that a decision is for, `[I]` f64, where surprise decides
    /// whose weights learn from it.
    fn see(&self, seen: &MlpBackward<'_>, routing: &Routing, learn: &Learn) -> Result<(Answers, Option<Tensor>)> {
        let mut answers = learn.answers(self.layer(), seen)?;
        if let (Some(ImageAsk::Surprises), Parts::Slices(slices)) = (learn.image.as_deref(), &self.parts) {
            answers.surprises = Some(slices.surprises(seen, routing)?);
        }
        if !learn.experts.early().is_some_and(Smk::reads_surprise) {
            return Ok((answers, None));
        }
        seen.check_whole()?;
        let decided_t = routing.decided(seen.x_td.device())?;
        Ok((answers, Some(surprise_squares(seen, decided_t.as_ref())?)))
    }

    /// Who of the slices learns (`surprise = token`), by what was counted of them. Where tokens before a decision ran all of them, not all are decided.
    fn decide(
        &self,
        (smk, slices): (&Smk, &Slices),
        counted: Counted,
        all_decided: bool,
        grads: &mut Grads,
    ) -> Result<(MinK, Learners)> {
        let (tokens_n, squares_n) = counted.of_all_ranks()?;
        let width_n = slices.width_n(tokens_n.device())?;
        let surprise_n = squares_n.map(|squares_n| min_k::surprise(&squares_n, &tokens_n, &width_n));
        let min_k = self.choose(smk, &tokens_n, surprise_n.transpose()?)?;
        let learn_i = min_k.learn_n.index_select(&slices.neuron_expert, 0)?;
        let most = self.most(smk, &slices.widths);
        if smk.rule.losers == Losers::Skip {
            self.matrices().into_iter().try_for_each(|weight| grads.restrict(weight, &learn_i, most))?;
        }
        // Who was given nothing has a gradient of zero, unless tokens before a decision ran all: where all that compete learn, nothing need
        // be left out.
        let learners = if most == learn_i.elem_count() && all_decided {
            Learners::All
        } else {
            Learners::Neurons(LearningNeurons::new(&learn_i, most)?)
        };
        Ok((min_k, learners))
    }

    /// Who competes and who wins, given the tokens of each expert `[N]` f64 and, where that decides, the surprise of each `[N]` f64.
    fn choose(&self, smk: &Smk, tokens_n: &Tensor, surprise_n: Option<Tensor>) -> Result<MinK> {
        let (experts, device) = (tokens_n.dims1()?, tokens_n.device());
        let active_n = match smk.rule.scope {
            Scope::Active => tokens_n.gt(0f64)?,
            Scope::All => Tensor::ones(experts, DType::U8, device)?,
        };
        let key_n = match (smk.rule.select, surprise_n) {
            (Select::Smk, Some(surprise_n)) => surprise_n,
            (Select::MaxK, Some(surprise_n)) => surprise_n.neg()?,
            (Select::MaxProduct, Some(surprise_n)) => (surprise_n * tokens_n)?.neg()?,
            (Select::RandomK, _) => {
                let mut rng = random::stream(smk.seed, &format!("smk/random_k/{}", self.layer()));
                let keys: Vec<f64> = (0..experts).map(|_| rng.random()).collect();
                Tensor::from_vec(keys, experts, device)?
            }
            (Select::MinLoad, _) => tokens_n.clone(),
            // Where surprise decides it is there.
            (Select::All, _) | (_, None) => {
                return Ok(MinK { learn_n: active_n.clone(), active_n });
            }
        };
        let group_n = match smk.rule.per {
            Per::Layer => None,
            Per::Group => Some(Tensor::new(self.groups.as_slice(), device)?),
        };
        Ok(MinK::by(&key_n, active_n, smk.min_k, group_n.as_ref())?)
    }

    /// The most neurons, of experts of these widths, that win.
    fn most(&self, smk: &Smk, widths: &[usize]) -> usize {
        let k = if smk.rule.select == Select::All { usize::MAX } else { smk.min_k };
        let mut by_group: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (width, group) in widths.iter().zip(&self.groups) {
            let group = if smk.rule.per == Per::Group { *group } else { 0 };
            by_group.entry(group).or_default().push(*width);
        }
        let widest = |mut widths: Vec<usize>| {
            widths.sort_unstable_by(|a, b| b.cmp(a));
            widths.into_iter().take(k).sum::<usize>()
        };
        by_group.into_values().map(widest).sum()
    }

    /// Of gradients that are all formed, keeps those of the winners among experts that were given `tokens_n` tokens (`[N]`; as many each where
    /// `None`); the others' are cleared, and their lines do not learn where losers are skipped (`surprise = exact`).
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use tinyonn::decoder::Smk;
    /// use tinyonn::moe::TinyOnnExpert;
    /// use tinyonn::ops::Grads;
    ///
    /// /// 1 for each expert that learns from the gradients that were formed, as many tokens each.
    /// fn winners(bank: &TinyOnnExpert, smk: &Smk, grads: &mut Grads) -> tinyonn::Result<Tensor> {
    ///     Ok(bank.keep_winners(smk, None, grads)?.learn_n)
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    pub fn keep_winners(&self, smk: &Smk, tokens_n: Option<&Tensor>, grads: &mut Grads) -> Result<MinK> {
        let tokens_n = match tokens_n {
            Some(tokens_n) => tokens_n.to_dtype(DType::F64)?,
            None => Tensor::ones(self.groups.len(), DType::F64, self.device())?,
        };
        match &self.parts {
            Parts::Slices(slices) => {
                let norms_n = if smk.reads_surprise() { Some(self.slice_norms(slices, grads)?) } else { None };
                let min_k = self.choose(smk, &tokens_n, norms_n)?;
                let learn_i = min_k.learn_n.index_select(&slices.neuron_expert, 0)?;
                keep_rows(self.matrices(), &learn_i, smk.rule.losers, grads)?;
                Ok(min_k)
            }
            Parts::Replicas(deltas) => {
                let squares_n = replica_squares(deltas, grads, self.device())?;
                // Of a gradient of zeros there is nothing to learn; one that is no number is not zero.
                let given_n = (tokens_n * squares_n.ne(0f64)?.to_dtype(DType::F64)?)?;
                let min_k = self.choose(smk, &given_n, Some(squares_n.sqrt()?))?;
                for (n, delta) in deltas.iter().enumerate() {
                    let learn = min_k.learn_n.narrow(0, n, 1)?;
                    keep_rows(delta.iter().flatten(), &learn, smk.rule.losers, grads)?;
                }
                Ok(min_k)
            }
        }
    }

    /// The norm of each slice's whole gradient, `[N]` f64.
    fn slice_norms(&self, slices: &Slices, grads: &Grads) -> Result<Tensor> {
        let mut squares_i = Tensor::zeros(slices.neuron_expert.dim(0)?, DType::F64, self.device())?;
        for gradient in self.matrices().into_iter().filter_map(|weight| grads.get(weight)) {
            squares_i = (squares_i + ops::wide(gradient)?.sqr()?.sum(1)?.to_dtype(DType::F64)?)?;
        }
        Ok(slices.sums(&squares_i)?.sqrt()?)
    }
}

/// What decides who learns, `[N]` f64 each: the tokens that each expert was given and, where that is read, Σ S² of its neurons over them.
struct Counted {
    tokens_n: Tensor,
    squares_n: Option<Tensor>,
    /// Both, one behind the other, of all ranks that pass a batch together, so that all choose the same.
    added_up: Option<Underway>,
}

impl Slices {
    /// Of this pass, from Σ S² of the neurons where that is read, and dy `[.., d]`; ranks begin to add it up.
    fn count(
        &self,
        (squares_i, ranks): (Option<&Tensor>, Option<&dyn Collective>),
        dy: &Tensor,
        routing: &Routing,
    ) -> Result<Counted> {
        let load = routing.load(self.widths.len(), &dy.flatten_to(dy.rank() - 2)?)?;
        let tokens_n = load.tokens_n.to_dtype(DType::F64)?;
        let squares_n = squares_i.map(|squares_i| self.sums(squares_i)).transpose()?;
        let own: Vec<&Tensor> = [&tokens_n].into_iter().chain(&squares_n).collect();
        let added_up = ranks.map(|ranks| ranks.begin_sum(&Tensor::cat(&own, 0)?)).transpose()?;
        Ok(Counted { tokens_n, squares_n, added_up })
    }
}

impl Counted {
    fn of_all_ranks(self) -> Result<(Tensor, Option<Tensor>)> {
        let Self { tokens_n, squares_n, added_up } = self;
        let Some(added_up) = added_up else { return Ok((tokens_n, squares_n)) };
        let (all, experts) = (added_up.values()?, tokens_n.dims1()?);
        let squares_n = squares_n.map(|_| all.narrow(0, experts, experts)).transpose()?;
        Ok((all.narrow(0, 0, experts)?, squares_n))
    }
}

/// Clears the gradients of rows that `learn` does not mark, and has them skipped if losers are.
fn keep_rows<'a>(
    weights: impl IntoIterator<Item = &'a Tensor>,
    learn: &Tensor,
    losers: Losers,
    grads: &mut Grads,
) -> Result<()> {
    for weight in weights {
        if losers == Losers::Skip {
            grads.restrict(weight, learn, learn.elem_count())?;
        } else if grads.get(weight).is_none() {
            // It steps all the same.
            grads.add_with(weight, || weight.detach().zeros_like())?;
        }
        grads.clear_others(weight, learn)?;
    }
    Ok(())
}

/// ‖∂L/∂ΔW_n‖² of each replica, `[N]` f64.
fn replica_squares(deltas: &[Option<[Tensor; 3]>], grads: &Grads, device: &Device) -> Result<Tensor> {
    let mut squares = Vec::with_capacity(deltas.len());
    for delta in deltas {
        let mut sum = Tensor::zeros(1, DType::F64, device)?;
        for gradient in delta.iter().flatten().filter_map(|delta| grads.get(delta)) {
            sum = (sum + ops::wide(gradient)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.reshape(1)?)?;
        }
        squares.push(sum);
    }
    Ok(Tensor::cat(&squares, 0)?)
}

impl Slices {
    /// Sums over each expert's neurons of values `[I]` f64.
    fn sums(&self, values_i: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if values_i.device().is_cuda() {
            return Ok(self.lists.sums(values_i)?);
        }
        let zeros_n = Tensor::zeros(self.widths.len(), values_i.dtype(), values_i.device())?;
        Ok(zeros_n.index_add(&self.neuron_expert, values_i, 0)?)
    }

    /// Both forms of the surprise of each.
    fn surprises(&self, seen: &MlpBackward<'_>, routing: &Routing) -> Result<Surprises> {
        let tokens_n = routing.load(self.widths.len(), seen.x_td)?.tokens_n.to_dtype(DType::F64)?;
        let decided_t = routing.decided(seen.x_td.device())?;
        let squares_n = self.sums(&surprise_squares(seen, decided_t.as_ref())?)?;
        let token_n = min_k::surprise(&squares_n, &tokens_n, &self.width_n(tokens_n.device())?)?;
        let exact_n = self.sums(&min_k::gradient_squares(seen)?)?.sqrt()?;
        Ok(Surprises { token_n, exact_n, active_n: tokens_n.gt(0f64)? })
    }

    fn width_n(&self, device: &Device) -> Result<Tensor> {
        let widths: Vec<f64> = self.widths.iter().map(|width| *width as f64).collect();
        Ok(Tensor::from_vec(widths, self.widths.len(), device)?)
    }
}
