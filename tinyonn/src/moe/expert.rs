//! The experts of a layer (DESIGN §1): slices of one dense MLP, kept in the dense order in one bank, or replicas of it.
//!
//! *Slices*: a partition gives each neuron to one expert; a gate w[t, n] acts on the hidden activation of its neurons, so that
//! y_t = Σ_n w[t, n] Expert_n(x_t) costs the three products of the dense MLP (`combine = concat`). Without gates the bank
//! is the dense MLP, bit for bit, whatever the partition. `dispatch` computes only what was chosen; a decision that many tokens
//! share is computed on its own neurons alone.
//!
//! *Replicas*: every expert is the dense MLP plus a delta, which exists once the expert has learnt: W̃ = W + Σ_n w_n ΔW_n, Σ w = 1
//! (`merge`), or y = Σ_n w_n MLP_{W + ΔW_n}(x) (`dispatch`). Without deltas that is the dense MLP, bit for bit, whatever the routing.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};

use super::neuron_rule::{NeuronRule, Repair};
use super::{Balance, Combine, ExpertsAre, MoeSpec, Routing};
use crate::decoder::{Arch, mlp};
use crate::ops::{self, Grads, MlpGate, MlpWeights, NeuronChoice, Replicas, RowRun};
#[cfg(feature = "cuda")]
use crate::ops::{gated_mlp, grouped_mlp, segment_mlp};
use crate::{Error, Result};

/// The projections of an MLP, as a checkpoint names them.
pub(crate) const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Where a projection of a replica's delta lies under its layer's `mlp`.
#[must_use]
pub(crate) fn delta_name(expert: usize, projection: &str) -> String {
    format!("delta.{expert}.{projection}.weight")
}

/// All experts of one layer.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::gallery::DeepSeek;
/// use tinyonn::moe::{TinyOnnExpert, variant};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let owners = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 66).collect(); cfg.num_hidden_layers];
/// let store = upcycle(dense, &cfg, variant("DeepSeek")?, &owners, 0)?;
/// let vb = store.builder(DType::F32, |_| false);
/// let bank = TinyOnnExpert::new(&DeepSeek::SPEC, &cfg, 2, &vb.pp("model.layers.2.mlp"))?;
/// assert_eq!((bank.layer(), bank.weights().gate.dims()), (2, &[cfg.intermediate_size, cfg.hidden_size][..]));
/// assert_eq!(bank.neuron_expert().map(|owners| owners.to_vec1::<u32>()).transpose()?.as_ref(), owners.get(2));
/// // Load is evened by a bias on selection: 4 groups, and 16 experts in each.
/// let bias = bank.balance_bias(&DeepSeek::SPEC)?.expect("balance = bias");
/// assert_eq!((bias[0].dims(), bias[1].dims()), (&[4][..], &[64][..]));
/// assert!(bank.device().is_cpu());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TinyOnnExpert {
    pub(super) gate_proj: Tensor,
    pub(super) up_proj: Tensor,
    pub(super) down_proj: Tensor,
    activation: &'static dyn ops::Activation,
    pub(super) parts: Parts,
    /// The group of each expert.
    pub(super) groups: Vec<u32>,
    combine: Combine,
    /// Experts that a token takes at most: a GPU makes room for so many before it looks.
    #[cfg(feature = "cuda")]
    most: usize,
    /// Which neurons take part where not all experts run (`neurons`).
    neurons: Option<NeuronRule>,
    /// Added to the probabilities that selection compares, by level and node in a row (`balance = bias`).
    balance_bias: Option<Tensor>,
    layer: usize,
}

/// What the experts are, beside the weights that they share.
#[derive(Clone, Debug)]
pub(super) enum Parts {
    /// Some of the neurons each.
    Slices(Slices),
    /// ΔW_g, ΔW_u, ΔW_d of each expert, once it has learnt.
    Replicas(Vec<Option<[Tensor; 3]>>),
}

/// A partition of the neurons.
#[derive(Clone, Debug)]
pub(super) struct Slices {
    /// The expert of each neuron, `[I]` u32.
    pub(super) neuron_expert: Tensor,
    /// Neurons of each expert.
    pub(super) widths: Vec<usize>,
    /// The same, as kernels read it.
    #[cfg(feature = "cuda")]
    pub(super) lists: ops::expert_neurons::NeuronLists,
}

/// What the backward of a bank needs.
#[derive(Debug)]
pub(super) enum Saved {
    /// All neurons of every token, gated or not.
    Whole(ops::glu_mlp::Saved),
    Dispatched(ops::dispatch_mlp::Saved),
    #[cfg(feature = "cuda")]
    Grouped(grouped_mlp::Saved),
    /// All neurons of every token, under gates.
    #[cfg(feature = "cuda")]
    Gated(gated_mlp::Saved),
    /// Of some tokens all, of others those of their decisions.
    #[cfg(feature = "cuda")]
    Segments(segment_mlp::Saved),
    Shared(ops::shared_mlp::Saved),
    /// Neurons that each token chose, and how many, `[t]` f32.
    Chosen(ops::glu_mlp::Saved, Tensor),
    /// Replicas, merged by decision.
    Merged(ops::merged_mlp::Saved),
    /// Replicas, each token by its own.
    Replicated(ops::replica_dispatch::Saved),
}

impl TinyOnnExpert {
    /// Reads the bank of layer `layer` for `spec`: the dense weights under their dense names, and `neuron_expert` of slices or the
    /// deltas of replicas.
    ///
    /// # Errors
    /// An MLP narrower than the number of its slices; a partition that leaves an expert empty or names one that does not
    /// exist; a missing or misshapen weight; an activation that is not the model's.
    pub fn new(spec: &MoeSpec, cfg: &Arch, layer: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let [gate_proj, up_proj, down_proj] = mlp::projections(cfg, vb)?;
        let parts = match spec.experts_are {
            ExpertsAre::Slice => Parts::Slices(slices(spec, cfg, layer, vb)?),
            ExpertsAre::Replicate => Parts::Replicas(deltas(spec, cfg, vb)?),
        };
        let balance_bias = match spec.balance {
            Balance::Bias { .. } => {
                let nodes: usize = spec.levels.iter().map(super::LevelSpec::nodes).sum();
                Some(vb.get_with_hints_dtype(nodes, "balance_bias", Init::Const(0.0), DType::F32)?)
            }
            Balance::None | Balance::Loss { .. } => None,
        };
        let (activation, combine) = (activation(spec, cfg)?, spec.combine);
        let neurons = NeuronRule::new(spec, [&gate_proj, &up_proj, &down_proj], vb)?;
        let groups = spec.group_of_experts().into_iter().map(|group| group as u32).collect();
        Ok(Self {
            gate_proj,
            up_proj,
            down_proj,
            activation,
            parts,
            groups,
            combine,
            #[cfg(feature = "cuda")]
            most: spec.active_experts(),
            neurons,
            balance_bias,
            layer,
        })
    }

    /// The same experts, of which `spec` takes others than it was declared with.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub(super) fn taking(self, spec: &MoeSpec) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            most: spec.active_experts(),
            ..self
        }
    }

    /// The dense MLP that slices are parts of, or that replicas start from.
    #[must_use]
    pub fn weights(&self) -> MlpWeights<'_> {
        let (gate, up, down) = (&self.gate_proj, &self.up_proj, &self.down_proj);
        MlpWeights { gate, up, down, activation: self.activation }
    }

    /// W_g, W_u, W_d.
    pub(super) fn matrices(&self) -> [&Tensor; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj]
    }

    /// x `[B, T, d]` to y `[B, T, d]`, under the gates of `routing`; and what the backward needs. Neurons are chosen unless the pass is `all` active.
    pub(super) fn forward(&self, x: &Tensor, routing: &Routing, all: bool) -> Result<(Tensor, Saved)> {
        if let (Some(rule), Parts::Slices(slices), false) = (&self.neurons, &self.parts, all) {
            let (y, saved, taken_t) = self.by_rule(x, rule, slices, routing)?;
            return Ok((y, Saved::Chosen(saved, taken_t)));
        }
        match &self.parts {
            Parts::Slices(slices) => self.slices(x, slices, routing),
            // Until one has learnt they are all the dense MLP, and weights that add up to one change nothing.
            Parts::Replicas(deltas) if deltas.iter().all(Option::is_none) => self.whole(x, None),
            Parts::Replicas(deltas) => self.replicas(x, &differences(deltas), routing),
        }
    }

    /// y, what its backward needs, and how many neurons each token took.
    fn by_rule(
        &self,
        x: &Tensor,
        rule: &NeuronRule,
        slices: &Slices,
        routing: &Routing,
    ) -> Result<(Tensor, ops::glu_mlp::Saved, Tensor)> {
        let gate_tn = routing.by_token()?;
        let gate = gate_tn.as_ref().map(|gate_tn| MlpGate { gate_tn, neuron_expert: &slices.neuron_expert });
        let used = rule.used(self.matrices())?;
        let (y, saved, taken_t) =
            ops::chosen_neurons::forward(x, used.weights(self.weights()), gate, rule.choice(&used))?;
        let y = match used.bias_d() {
            Some(bias_d) => y.broadcast_add(bias_d)?,
            None => y,
        };
        Ok((y, saved, taken_t))
    }

    /// y `[B, T, d]`, and h `[t, I]` of the neurons that were taken by a rule, or of all of the slices that were; `None` of replicas.
    pub(super) fn chosen(&self, x: &Tensor, routing: &Routing) -> Result<Option<[Tensor; 2]>> {
        let Parts::Slices(slices) = &self.parts else { return Ok(None) };
        let all = self.neurons.is_none().then(|| NeuronRule::all(self.matrices())).transpose()?;
        let Some(rule) = self.neurons.as_ref().or(all.as_ref()) else { return Ok(None) };
        let (y, saved, _) = self.by_rule(x, rule, slices, routing)?;
        Ok(saved.hidden_ti().map(|hidden_ti| [y, hidden_ti.clone()]))
    }

    fn whole(&self, x: &Tensor, gate: Option<MlpGate<'_>>) -> Result<(Tensor, Saved)> {
        let (y, saved) = ops::glu_mlp::forward(x, self.weights(), gate)?;
        Ok((y, Saved::Whole(saved)))
    }

    fn slices(&self, x: &Tensor, slices: &Slices, routing: &Routing) -> Result<(Tensor, Saved)> {
        let gate = |gate_tn| MlpGate { gate_tn, neuron_expert: &slices.neuron_expert };
        // Forms that compute a part of the neurons must know which: in main memory they look; on a GPU all are computed where no kernel finds them.
        let in_memory = x.device().is_cpu();
        match (routing, self.combine) {
            (Routing::All, _) => self.whole(x, None),
            (Routing::Each(gate_tn), Combine::Dispatch) if in_memory => {
                let (y, saved) = ops::dispatch_mlp::forward(x, self.weights(), gate(gate_tn))?;
                Ok((y, Saved::Dispatched(saved)))
            }
            #[cfg(feature = "cuda")]
            (Routing::Each(gate_tn), Combine::Dispatch)
                if self.grouped(slices).pays()? && grouped_mlp::takes(x, self.weights())? =>
            {
                let (y, saved) = grouped_mlp::forward(x, self.weights(), gate(gate_tn), self.grouped(slices))?;
                Ok((y, Saved::Grouped(saved)))
            }
            (Routing::Each(gate_tn), _) => self.gated(x, slices, gate_tn),
            // Rows computed apart may round otherwise: what takes every expert whole is the dense MLP, bit for bit.
            (Routing::Shared { gate_dn, runs, whole: false }, _) if in_memory => {
                let (y, saved) = ops::shared_mlp::forward(x, self.weights(), gate(gate_dn), runs)?;
                Ok((y, Saved::Shared(saved)))
            }
            #[cfg(feature = "cuda")]
            (Routing::Shared { runs, whole: false, .. }, _)
                if segment_mlp::pays(runs, self.grouped(slices))? && grouped_mlp::takes(x, self.weights())? =>
            {
                let gate_tn = routing.gates(slices.widths.len(), x)?;
                let (y, saved) = segment_mlp::forward(x, self.weights(), gate(&gate_tn), self.grouped(slices), runs)?;
                Ok((y, Saved::Segments(saved)))
            }
            (Routing::Shared { .. }, _) => match routing.by_token()? {
                Some(gate_tn) => self.gated(x, slices, &gate_tn),
                None => self.whole(x, None),
            },
        }
    }

    /// All neurons, under gates.
    fn gated(&self, x: &Tensor, slices: &Slices, gate_tn: &Tensor) -> Result<(Tensor, Saved)> {
        let gate = MlpGate { gate_tn, neuron_expert: &slices.neuron_expert };
        #[cfg(feature = "cuda")]
        if gated_mlp::takes(x, self.weights(), gate_tn)? {
            let (y, saved) = gated_mlp::forward(x, self.weights(), gate, &slices.lists)?;
            return Ok((y, Saved::Gated(saved)));
        }
        self.whole(x, Some(gate))
    }

    #[cfg(feature = "cuda")]
    fn grouped<'a>(&self, slices: &'a Slices) -> grouped_mlp::Choice<'a> {
        grouped_mlp::Choice { neurons: &slices.lists, most: self.most }
    }

    fn replicas(&self, x: &Tensor, deltas: &[Option<[&Tensor; 3]>], routing: &Routing) -> Result<(Tensor, Saved)> {
        let replicas = Replicas { base: self.weights(), deltas };
        if self.combine == Combine::Dispatch {
            let weights_tn = match routing {
                Routing::Each(gate_tn) => gate_tn.clone(),
                _ => match routing.by_token()? {
                    Some(gate_tn) => gate_tn.broadcast_div(&gate_tn.sum_keepdim(1)?)?,
                    None => even(x, deltas.len())?.broadcast_as((rows(x)?, deltas.len()))?.contiguous()?,
                },
            };
            let (y, saved) = ops::replica_dispatch::forward(x, replicas, &weights_tn)?;
            return Ok((y, Saved::Replicated(saved)));
        }
        let (gate_dn, runs) = merges(x, deltas.len(), routing)?;
        let (y, saved) = ops::merged_mlp::forward(x, replicas, &gate_dn, &runs)?;
        Ok((y, Saved::Merged(saved)))
    }

    /// The scores of neurons for rows x `[n, d]`, −1 for those that are no candidates; `None` where no gate chooses.
    pub(super) fn neuron_scores(&self, x_nd: &Tensor) -> Result<Option<Tensor>> {
        let Some(rule) = &self.neurons else { return Ok(None) };
        let used = rule.used(self.matrices())?;
        let (weights, choice) = (used.weights(self.weights()), rule.choice(&used));
        let NeuronChoice::Gate { candidates_i, inputs, .. } = choice else { return Ok(None) };
        let read_nd = inputs.map(|inputs| inputs.of(x_nd)).transpose()?;
        let g_ni = read_nd.as_ref().unwrap_or(x_nd).matmul(&weights.gate.t()?)?;
        let scores_ni = ops::chosen_neurons::scores(&g_ni, weights, choice)?;
        let Some(candidates_i) = candidates_i else { return Ok(Some(scores_ni)) };
        let open_ni = candidates_i.ne(0f64)?.unsqueeze(0)?.broadcast_as(scores_ni.shape())?.contiguous()?;
        Ok(Some(open_ni.where_cond(&scores_ni, &(scores_ni.zeros_like()? - 1.0)?)?))
    }

    /// v `[I]`, f32, of the gate that chooses neurons; `None` where none does.
    pub(super) fn neuron_worth(&self) -> Result<Option<Tensor>> {
        let Some(rule) = &self.neurons else { return Ok(None) };
        let used = rule.used(self.matrices())?;
        let NeuronChoice::Gate { worth_i, .. } = rule.choice(&used) else { return Ok(None) };
        Ok(Some(worth_i.clone()))
    }

    /// Whether a pass computes each neuron by itself, under a gate or without: the dense MLP, slices of it, or neurons that choose themselves.
    #[cfg(feature = "cuda")]
    pub(super) fn computes_by_neuron(&self, all: bool) -> bool {
        match &self.parts {
            Parts::Slices(_) => true,
            Parts::Replicas(deltas) => all && deltas.iter().all(Option::is_none),
        }
    }

    /// What chooses single neurons, where something does.
    #[cfg(feature = "cuda")]
    pub(super) fn rule(&self) -> Option<&NeuronRule> {
        self.neurons.as_ref()
    }

    /// What lies beside the weights for routed passes.
    pub(super) fn repair(&self) -> Option<&Repair> {
        self.neurons.as_ref().and_then(NeuronRule::repair)
    }

    /// Whether any weight of an expert learns.
    pub(super) fn learns(&self, grads: &Grads) -> bool {
        let deltas = match &self.parts {
            Parts::Slices(_) => &[],
            Parts::Replicas(deltas) => deltas.as_slice(),
        };
        let own = self.matrices().into_iter().chain(deltas.iter().flatten().flatten());
        own.chain(self.repair().into_iter().flat_map(Repair::parts)).any(|weight| grads.learns(weight))
    }

    /// The expert of each neuron, `[I]` u32; replicas have no neurons of their own.
    pub fn neuron_expert(&self) -> Option<&Tensor> {
        match &self.parts {
            Parts::Slices(slices) => Some(&slices.neuron_expert),
            Parts::Replicas(_) => None,
        }
    }

    /// Where the experts are.
    pub fn device(&self) -> &Device {
        self.gate_proj.device()
    }

    /// What is added to the probabilities that selection compares, `[nodes]` by level (`balance = bias`).
    ///
    /// # Errors
    /// What the device reports.
    pub fn balance_bias(&self, spec: &MoeSpec) -> Result<Option<Vec<Tensor>>> {
        let Some(bias) = &self.balance_bias else { return Ok(None) };
        let mut first = 0;
        let of_level = |level: &super::LevelSpec| {
            let own = bias.detach().narrow(0, first, level.nodes());
            first += level.nodes();
            own
        };
        Ok(Some(spec.levels.iter().map(of_level).collect::<candle_core::Result<_>>()?))
    }

    /// The layer this bank belongs to.
    pub fn layer(&self) -> usize {
        self.layer
    }
}

fn rows(x: &Tensor) -> Result<usize> {
    Ok(x.elem_count() / x.dim(candle_core::D::Minus1)?.max(1))
}

/// The deltas that there are, as operations take them.
pub(super) fn differences(deltas: &[Option<[Tensor; 3]>]) -> Vec<Option<[&Tensor; 3]>> {
    deltas.iter().map(|delta| delta.as_ref().map(<[Tensor; 3]>::each_ref)).collect()
}

/// The partition of a layer: each neuron has an expert, each expert a neuron.
fn slices(spec: &MoeSpec, cfg: &Arch, layer: usize, vb: &VarBuilder<'_>) -> Result<Slices> {
    let experts = spec.experts();
    check_width(spec, cfg.intermediate_size, layer)?;
    let neuron_expert =
        vb.get_with_hints_dtype(cfg.intermediate_size, "neuron_expert", Init::Const(0.0), DType::U32)?;
    let owners = neuron_expert.to_vec1::<u32>()?;
    let mut widths = vec![0usize; experts];
    for owner in &owners {
        match widths.get_mut(*owner as usize) {
            Some(width) => *width += 1,
            None => return Err(bad_partition(layer, &format!("it names expert {owner} of {experts}"))),
        }
    }
    match widths.iter().position(|width| *width == 0) {
        Some(empty) => Err(bad_partition(layer, &format!("it leaves expert {empty} without a neuron"))),
        None => Ok(Slices {
            #[cfg(feature = "cuda")]
            lists: ops::ExpertNeurons::new(&owners, experts)?.on_device(neuron_expert.device())?,
            neuron_expert,
            widths,
        }),
    }
}

/// The deltas that there are.
fn deltas(spec: &MoeSpec, cfg: &Arch, vb: &VarBuilder<'_>) -> Result<Vec<Option<[Tensor; 3]>>> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let of_expert = |expert: usize| {
        let names = PROJECTIONS.map(|projection| delta_name(expert, projection));
        if !names.iter().any(|name| vb.contains_tensor(name)) {
            return Ok(None);
        }
        let [gate, up, down] = names;
        Ok(Some([vb.get((i, d), &gate)?, vb.get((i, d), &up)?, vb.get((i, d), &down)?]))
    };
    (0..spec.experts()).map(of_expert).collect()
}

/// The model's activation, which must be the one that the variant declares, if it does.
fn activation(spec: &MoeSpec, cfg: &Arch) -> Result<&'static dyn ops::Activation> {
    match &spec.activation {
        Some(declared) if *declared != cfg.hidden_act => {
            let problem =
                format!("it declares activation = {declared}, and `hidden_act` of the model is {}", cfg.hidden_act);
            let remedy = "declare the model's, or leave it out; in `hidden_act` a type goes by its name in snake case";
            Err(Error::variant(spec.name.clone(), problem, remedy))
        }
        _ => cfg.activation(),
    }
}

/// Refuses an MLP of fewer neurons than slices.
///
/// ```
/// use tinyonn::gallery::{Smear, TinyOnn};
/// use tinyonn::moe::expert::check_width;
///
/// assert!(check_width(&TinyOnn::SPEC, 100, 0).is_ok());
/// let said = check_width(&TinyOnn::SPEC, 96, 0).unwrap_err().to_string();
/// assert_eq!(said, "variant `TinyOnn`: layer 0 has 96 neurons for 100 experts; each expert needs at least one; declare at most 96 experts");
/// assert!(check_width(&Smear::SPEC, 4, 0).is_ok()); // replicas share no neurons out
/// ```
///
/// # Errors
/// The variant, the layer and both numbers.
pub fn check_width(spec: &MoeSpec, width: usize, layer: usize) -> Result<()> {
    let experts = spec.experts();
    if width >= experts || spec.experts_are == ExpertsAre::Replicate {
        return Ok(());
    }
    let problem = format!("layer {layer} has {width} neurons for {experts} experts; each expert needs at least one");
    Err(Error::variant(spec.name.clone(), problem, format!("declare at most {width} experts")))
}

fn bad_partition(layer: usize, problem: &str) -> Error {
    Error::tensor(format!("model.layers.{layer}.mlp.neuron_expert"), problem, "upcycle the dense model again")
}

/// All replicas weigh alike, `[1, N]`.
fn even(x: &Tensor, experts: usize) -> Result<Tensor> {
    Ok(Tensor::full(1.0 / experts as f32, (1, experts), x.device())?.to_dtype(x.dtype())?)
}

/// The weights of every merge, and the rows it is for.
fn merges(x: &Tensor, experts: usize, routing: &Routing) -> Result<(Tensor, Vec<RowRun>)> {
    let rows = rows(x)?;
    Ok(match routing {
        Routing::All => (even(x, experts)?, vec![RowRun { rows: 0..rows, decision: Some(0) }]),
        Routing::Each(gate_tn) => {
            let each = |row| RowRun { rows: row..row + 1, decision: Some(row) };
            (gate_tn.clone(), (0..rows).map(each).collect())
        }
        Routing::Shared { gate_dn, runs, .. } => {
            // All active, all weigh alike: a decision behind the others.
            let open = gate_dn.dim(0)?;
            let decided = |run: &RowRun| RowRun { decision: Some(run.decision.unwrap_or(open)), ..run.clone() };
            (Tensor::cat(&[gate_dn, &even(x, experts)?], 0)?, runs.iter().map(decided).collect())
        }
    })
}
