//! Makes the layers of a model sparse, one after the other on what the layers below, sparse already, make of the text: which neurons a token takes is
//! calibrated by what the layer's feed-forward sees, and what they leave missing of the dense model's stream is repaired (DESIGN §4).
//!
//! Of a text of n tokens it holds both streams and what both feed-forwards see, 4 d numbers a token, and with a repair h of one layer, I numbers a
//! token: 16 d + 4 I bytes.
//!
//! Legend: B sequences of T tokens a batch, t = B·T; d hidden, I neurons.

use candle_core::{DType, Tensor};

use super::run::Run;
use crate::Result;
use crate::checkpoint::{self, ParamStore, mixture_prefix};
use crate::data::TokenSet;
use crate::decoder::{Decoder, Mlp};
use crate::imaging::inputs::spread;
use crate::imaging::neuron_calibration::{gate_parameters, kept_parameters};
use crate::imaging::{Choose, Cut, calibrate_gate, calibrate_pruned, least_hidden, least_input, threshold};
use crate::metrics::Progress;
use crate::moe::{LEAST_HIDDEN, LEAST_INPUT, LEAST_SCORE, MoeLayer, Neurons, REPAIR_BIAS, REPAIR_DOWN};
use crate::train::{RepairSums, RouterTarget};

/// Tokens of each layer that a choice is calibrated by, at most: every one of them has a score of every neuron.
const SCORED: usize = 16_384;

/// How layers are made.
pub(super) struct Making<'a> {
    /// What each is cut down to.
    pub(super) cuts: &'a [Cut],
    /// How a gate's choice is bounded.
    pub(super) choose: Choose,
    /// v of each layer; where there is none, ‖w_i‖.
    pub(super) worth: Option<&'a [Tensor]>,
    /// λ of the repair, if there is one.
    pub(super) ridge: Option<f64>,
    /// Whether it has a bias.
    pub(super) bias: bool,
    /// What routers are fitted to.
    pub(super) target: RouterTarget,
    /// The share of each layer's neurons that routers let a token choose from, where it is said.
    pub(super) candidates: Option<f64>,
}

/// A model whose layers were made sparse, and of how much text.
///
/// ```
/// use tinyonn::phases::SparseModel;
///
/// /// The share of the MLPs' operations that was asked for.
/// fn operations(made: &SparseModel) -> f64 {
///     made.asked.iter().map(|cut| cut.operations()).sum::<f64>() / made.asked.len() as f64
/// }
/// ```
pub struct SparseModel {
    /// Its parameters; all active, they are the dense model's.
    pub store: ParamStore,
    /// By layer, what was asked for.
    pub asked: Vec<Cut>,
    /// Tokens that the choice of each layer was calibrated by.
    pub calibrated_on: usize,
    /// Tokens that each layer was repaired on; 0: there is no repair.
    pub repaired_on: usize,
    /// λ of each layer's repair.
    pub ridge: Vec<f64>,
    /// Where routers choose, by layer: of what the best choice of as many experts would add on calibration text beyond chance, Σ ‖y‖, the part that theirs does.
    pub router_kept: Vec<f64>,
}

/// A text between two layers: a batch of whole sequences each, `[B, T, d]`.
struct Streams {
    /// As the dense model has it; none without a repair, which alone asks for it.
    dense: Vec<Tensor>,
    /// As the sparse layers so far have it.
    sparse: Vec<Tensor>,
    /// Of each batch, the rows of `[B·T]` that have a target, u32.
    rows: Vec<Tensor>,
    /// Of these, those that a choice is calibrated by.
    scored: Vec<Tensor>,
}

impl Run<'_> {
    /// The upcycled model with its layers made sparse as `making` says.
    pub(super) fn sparse_layers(&self, making: &Making<'_>) -> Result<SparseModel> {
        let (cfg, spec) = (&self.dense.cfg, &self.variant.spec);
        if !spec.levels.is_empty() {
            self.check_routers()?;
        }
        let owners = self.assigned(None)?;
        let mut store = checkpoint::upcycle(self.dense.store.share(), cfg, self.variant, &owners, self.config.seed)?;
        let dense = self.dense_model()?;
        let mut streams =
            self.streams(&self.scan_options().part(&self.tokens.train), dense.model(), making.ridge.is_some())?;
        let count = |rows: &[Tensor]| rows.iter().map(Tensor::elem_count).sum::<usize>();
        let (calibrated_on, rows) = (count(&streams.scored), count(&streams.rows));
        let (mut ridge, mut router_kept, mut asked) = (Vec::new(), Vec::new(), making.cuts.to_vec());
        let progress = Progress::new(cfg.num_hidden_layers as u64, "layers made sparse");
        for layer in 0..cfg.num_hidden_layers {
            let prefix = mixture_prefix(layer);
            let moe = |store: &ParamStore| (self.variant.build)(cfg, layer, store.frozen().pp(&prefix));
            let behind = |streams: &mut Vec<Tensor>| -> Result<Vec<[Tensor; 2]>> {
                let attend = |x: Tensor| dense.model().attend(layer, &x.to_dtype(store.passes())?);
                std::mem::take(streams).into_iter().map(attend).collect()
            };
            let (from_dense, from_sparse) = (behind(&mut streams.dense)?, behind(&mut streams.sparse)?);
            let seen_nd = scored_rows(&from_sparse, &streams.scored)?;
            if !spec.levels.is_empty() {
                let rows = from_sparse.iter().zip(&streams.rows).filter(|(_, rows)| rows.elem_count() > 0);
                let seen = rows.map(|([_, normed], rows)| Ok(normed.flatten_to(1)?.index_select(rows, 0)?));
                let upcycled = moe(&store)?;
                self.fit_routers(&mut store, &upcycled, seen, making)?;
                let fitted = moe(&store)?;
                let found = self.bound_choices(&mut store, &fitted, &seen_nd, making)?;
                asked[layer] = found.cut;
                router_kept.push(found.kept);
            }
            for (name, value) in self.choice(&moe(&store)?, &seen_nd, (making, asked[layer]))? {
                put(&mut store, &format!("{prefix}.{name}"), value)?;
            }
            if spec.neurons == Neurons::Gate && making.choose == Choose::Threshold {
                let cut = asked[layer];
                self.set_least(&mut store, layer, moe, &seen_nd, (cut, cut.read(making.choose)))?;
            }
            let chooses = moe(&store)?;
            let mut sums = RepairSums::new(cfg.intermediate_size);
            let mut hidden = Vec::new();
            let mut dense_now = from_dense.into_iter();
            for (at, [s, normed_s]) in from_sparse.into_iter().enumerate() {
                let [y, h_ti] = chooses.chosen(&normed_s)?;
                // What is missing is a small difference of large sums.
                let sparse = wide_sum(&s, &y)?;
                if let Some([r, normed_r]) = dense_now.next() {
                    let whole = wide_sum(&r, &dense.model().layers()[layer].mlp().output(&normed_r)?)?;
                    let (missing_td, rows) = ((&whole - &sparse)?.flatten_to(1)?, &streams.rows[at]);
                    sums.push(&h_ti.index_select(rows, 0)?, &missing_td.index_select(rows, 0)?)?;
                    hidden.push(h_ti);
                    streams.dense.push(whole);
                }
                streams.sparse.push(sparse);
            }
            if let Some(least) = making.ridge {
                let repair = sums.solve(least, making.bias, &self.device)?;
                for (sparse, h_ti) in streams.sparse.iter_mut().zip(hidden) {
                    let more = h_ti.to_dtype(DType::F32)?.matmul(&repair.down_id)?.broadcast_add(&repair.bias_d)?;
                    *sparse = (&*sparse + more.reshape(sparse.shape())?)?;
                }
                store.insert(format!("{prefix}.{REPAIR_DOWN}"), repair.down_id)?;
                store.insert(format!("{prefix}.{REPAIR_BIAS}"), repair.bias_d)?;
                ridge.push(repair.ridge);
            }
            progress.set(layer as u64 + 1);
        }
        progress.finish();
        let repaired_on = if making.ridge.is_some() { rows } else { 0 };
        Ok(SparseModel { store, asked, calibrated_on, repaired_on, ridge, router_kept })
    }

    /// The parameters of a layer's choice, calibrated on what its feed-forward sees.
    fn choice(
        &self,
        layer: &MoeLayer,
        x_nd: &Tensor,
        (making, cut): (&Making<'_>, Cut),
    ) -> Result<Vec<(&'static str, Tensor)>> {
        let worth_i = making.worth.and_then(|worth| worth.get(layer.layer()));
        let mut cut = cut;
        if self.variant.spec.neurons == Neurons::Gate {
            // Where there are routers, they have chosen the candidates.
            let candidates = if self.variant.spec.levels.is_empty() { cut.candidates } else { 1.0 };
            // Thresholds are set behind this.
            let neurons = if making.choose == Choose::Threshold { candidates } else { cut.neurons };
            cut = Cut::of(candidates, neurons);
        }
        match self.variant.spec.neurons {
            Neurons::All => Ok(Vec::new()),
            Neurons::Pruned => kept_parameters(&calibrate_pruned(layer, x_nd, cut, worth_i)?, &self.device),
            Neurons::Gate => gate_parameters(&calibrate_gate(layer, x_nd, cut, making.choose, worth_i)?, &self.device),
        }
    }

    /// Sets the thresholds of a layer to what `cut` says, in the order in which a token meets them: each by what those before it leave. Rows of W_u and of W_d
    /// are read of the shares `read`.
    fn set_least(
        &self,
        store: &mut ParamStore,
        at: usize,
        moe: impl Fn(&ParamStore) -> Result<MoeLayer>,
        x_nd: &Tensor,
        (cut, [up, down]): (Cut, [f64; 2]),
    ) -> Result<()> {
        let name = |part: &str| format!("{}.{part}", mixture_prefix(at));
        let set = |store: &mut ParamStore, part: &str, least: f32| {
            put(store, &name(part), Tensor::new(&[least], &self.device)?)
        };
        if store.get(&name(LEAST_HIDDEN)).is_some() {
            set(store, LEAST_HIDDEN, 0.0)?;
        }
        if cut.inputs < 1.0 {
            let least = least_input(&moe(store)?, x_nd, cut.inputs)?;
            set(store, LEAST_INPUT, least)?;
        }
        let least = if up < cut.candidates { threshold(&moe(store)?, x_nd, up)? } else { 0.0 };
        set(store, LEAST_SCORE, least)?;
        if down < up {
            let least = least_hidden(&moe(store)?, x_nd, down)?;
            set(store, LEAST_HIDDEN, least)?;
        }
        Ok(())
    }

    /// Sets the thresholds of a model in `store` anew, so that on held-out text it takes what `cuts` say: behind a training that moved gates.
    pub(super) fn set_thresholds(&self, store: &mut ParamStore, cuts: &[Cut]) -> Result<()> {
        let spec = &self.variant.spec;
        let mut set = self.tokens.validation.clone();
        set.truncate(SCORED.div_ceil(set.tasks.len().max(1)));
        let dense = self.dense_model()?;
        let Streams { mut sparse, scored, .. } = self.streams(&set, dense.model(), false)?;
        for (layer, cut) in cuts.iter().enumerate() {
            let behind = sparse.iter().map(|x| dense.model().attend(layer, x)).collect::<Result<Vec<_>>>()?;
            let prefix = mixture_prefix(layer);
            let moe = |store: &ParamStore| (self.variant.build)(&self.dense.cfg, layer, store.frozen().pp(&prefix));
            let seen_nd = scored_rows(&behind, &scored)?;
            if !spec.levels.is_empty() {
                let learnt = moe(store)?;
                self.set_choices(store, &learnt, &seen_nd, cut.candidates, Choose::Threshold)?;
            }
            if spec.neurons == Neurons::Gate {
                // A model of an earlier version has one threshold, and keeps to it.
                let hidden = store.get(&format!("{prefix}.{LEAST_HIDDEN}")).is_some();
                let read = if hidden { cut.read(Choose::Threshold) } else { [cut.neurons; 2] };
                self.set_least(store, layer, moe, &seen_nd, (*cut, read))?;
            }
            let chooses = moe(store)?;
            sparse = behind
                .into_iter()
                .map(|[s, normed]| {
                    let [y, _] = chooses.chosen(&normed)?;
                    Ok((s + y)?)
                })
                .collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// `set` before the first layer.
    fn streams(&self, set: &TokenSet, decoder: &Decoder<Mlp>, both: bool) -> Result<Streams> {
        let (mut sparse, mut rows) = (Vec::new(), Vec::<Vec<u32>>::new());
        for task in 0..set.tasks.len() {
            for batch in set.batches_of_task(task, self.config.length, self.config.batch, &self.device)? {
                let batch = batch?;
                rows.push(batch.counted.iter().zip(0..).filter(|(counted, _)| **counted).map(|(_, at)| at).collect());
                sparse.push(decoder.embed(&batch.inputs)?);
            }
        }
        let all: Vec<(usize, u32)> =
            rows.iter().enumerate().flat_map(|(batch, rows)| rows.iter().map(move |row| (batch, *row))).collect();
        let mut scored = vec![Vec::new(); rows.len()];
        for (batch, row) in spread(all.len(), SCORED).map(|at| all[at]) {
            scored[batch].push(row);
        }
        let tensors = |rows: Vec<Vec<u32>>| -> Result<Vec<Tensor>> {
            let tensor = |rows: Vec<u32>| {
                let count = rows.len();
                Ok(Tensor::from_vec(rows, count, &self.device)?)
            };
            rows.into_iter().map(tensor).collect()
        };
        let dense = if both { sparse.clone() } else { Vec::new() };
        Ok(Streams { dense, sparse, rows: tensors(rows)?, scored: tensors(scored)? })
    }
}

/// Sets a parameter, which may be new.
pub(super) fn put(store: &mut ParamStore, name: &str, value: Tensor) -> Result<()> {
    if store.get(name).is_some() { store.set(name, &value) } else { store.insert(name.to_owned(), value) }
}

/// a + b in f32.
fn wide_sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a.to_dtype(DType::F32)? + b.to_dtype(DType::F32)?)?)
}

/// What a feed-forward sees of the tokens that a choice is calibrated by: `[n, d]`.
fn scored_rows(behind: &[[Tensor; 2]], rows: &[Tensor]) -> Result<Tensor> {
    let own = behind.iter().zip(rows).filter(|(_, rows)| rows.elem_count() > 0);
    let own = own.map(|([_, normed], rows)| normed.flatten_to(1)?.index_select(rows, 0));
    Ok(Tensor::cat(&own.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}
