//! The experts of a layer (DESIGN §1): slices of one dense MLP, kept in the dense order in one bank, or replicas of it.
//!
//! *Slices*: a partition gives each neuron to one expert; a gate w[t, n] acts on the hidden activation of its neurons, so that
//! y_t = Σ_n w[t, n] Expert_n(x_t) costs the three products of the dense MLP (`combine = concat`). Without gates the bank
//! is the dense MLP, bit for bit, whatever the partition. `dispatch` computes only what was chosen; a decision that many tokens
//! share is computed on its own neurons alone.
//!
//! *Replicas*: every expert is the dense MLP plus a delta, which exists once the expert has learnt: W̃ = W + Σ_n w_n ΔW_n, Σ w = 1
//! (`merge`), or y = Σ_n w_n MLP_{W + ΔW_n}(x) (`dispatch`). Without deltas that is the dense MLP, bit for bit, whatever the routing.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{Balance, Combine, ExpertsAre, MoeSpec, Routing};
use crate::qwen3::{Qwen3Config, RouteCtx, mlp};
use crate::{Error, Result, ops};

/// The projections of an MLP, as a checkpoint names them.
pub const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Where a projection of a replica's delta lies under its layer's `mlp`.
#[must_use]
pub fn delta_name(expert: usize, projection: &str) -> String {
    format!("delta.{expert}.{projection}.weight")
}

/// All experts of one layer.
#[derive(Clone, Debug)]
pub struct TinyOnnExpert {
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    activation: &'static dyn ops::Activation,
    parts: Parts,
    combine: Combine,
    /// Added to the probabilities that selection compares, by level and node in a row (`balance = bias`).
    balance_bias: Option<Tensor>,
    layer: usize,
}

/// What the experts are, beside the weights that they share.
#[derive(Clone, Debug)]
enum Parts {
    /// The expert of each neuron, `[I]` u32.
    Slices(Tensor),
    /// ΔW_g, ΔW_u, ΔW_d of each expert, once it has learnt.
    Replicas(Vec<Option<[Tensor; 3]>>),
}

impl TinyOnnExpert {
    /// Reads the bank of layer `layer` for `spec`: the dense weights under their dense names, and `neuron_expert` of slices or the
    /// deltas of replicas.
    ///
    /// # Errors
    /// An MLP narrower than the number of its slices; a partition that leaves an expert empty or names one that does not
    /// exist; a missing or misshapen weight; an activation that is not the model's.
    pub fn new(spec: &MoeSpec, cfg: &Qwen3Config, layer: usize, vb: &VarBuilder<'_>) -> Result<Self> {
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
        Ok(Self { gate_proj, up_proj, down_proj, activation, parts, combine, balance_bias, layer })
    }

    /// x `[B, T, d]` to y `[B, T, d]`, under the gates of `routing`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn forward(&self, x: &Tensor, routing: &Routing, ctx: &RouteCtx) -> Result<Tensor> {
        let (gate, up, down) = (&self.gate_proj, &self.up_proj, &self.down_proj);
        let weights = ops::MlpWeights { gate, up, down, activation: self.activation };
        let probe = ctx.probe.clone().map(|probe| (probe, self.layer));
        match &self.parts {
            Parts::Slices(neuron_expert) => self.slices(x, weights, neuron_expert, routing, probe),
            // Until one has learnt they are all the dense MLP, and weights that add up to one change nothing.
            Parts::Replicas(deltas) if deltas.iter().all(Option::is_none) => Ok(ops::glu_mlp(x, weights, None, probe)?),
            Parts::Replicas(deltas) => self.replicas(x, weights, deltas, routing),
        }
    }

    fn slices(
        &self,
        x: &Tensor,
        weights: ops::MlpWeights<'_>,
        neuron_expert: &Tensor,
        routing: &Routing,
        probe: Option<(Arc<dyn ops::MlpProbe>, usize)>,
    ) -> Result<Tensor> {
        let gate = |gate_tn| ops::MlpGate { gate_tn, neuron_expert };
        Ok(match (routing, self.combine) {
            (Routing::All, _) => ops::glu_mlp(x, weights, None, probe)?,
            (Routing::Each(gate_tn), Combine::Dispatch) => ops::dispatch_mlp(x, weights, gate(gate_tn), probe)?,
            (Routing::Each(gate_tn), _) => ops::glu_mlp(x, weights, Some(gate(gate_tn)), probe)?,
            // Rows computed apart may round otherwise: what takes every expert whole is the dense MLP, bit for bit.
            (Routing::Shared { gate_dn, .. }, _) if all_ones(gate_dn)? => {
                let gate_tn = routing.by_token()?;
                ops::glu_mlp(x, weights, gate_tn.as_ref().map(gate), probe)?
            }
            (Routing::Shared { gate_dn, runs }, _) => ops::shared_mlp(x, weights, gate(gate_dn), runs, probe)?,
        })
    }

    fn replicas(
        &self,
        x: &Tensor,
        weights: ops::MlpWeights<'_>,
        deltas: &[Option<[Tensor; 3]>],
        routing: &Routing,
    ) -> Result<Tensor> {
        let deltas: Vec<Option<[&Tensor; 3]>> =
            deltas.iter().map(|delta| delta.as_ref().map(<[Tensor; 3]>::each_ref)).collect();
        let replicas = ops::Replicas { base: weights, deltas: &deltas };
        let rows = x.elem_count() / x.dim(candle_core::D::Minus1)?.max(1);
        let equal_1n = || Tensor::full(1.0 / deltas.len() as f32, (1, deltas.len()), x.device())?.to_dtype(x.dtype());
        let (gate_dn, runs) = match routing {
            Routing::Each(gate_tn) if self.combine == Combine::Dispatch => {
                return Ok(ops::replica_dispatch(x, replicas, gate_tn)?);
            }
            _ if self.combine == Combine::Dispatch => {
                let weights_tn = match routing.by_token()? {
                    Some(gate_tn) => gate_tn.broadcast_div(&gate_tn.sum_keepdim(1)?)?,
                    None => equal_1n()?.broadcast_as((rows, deltas.len()))?.contiguous()?,
                };
                return Ok(ops::replica_dispatch(x, replicas, &weights_tn)?);
            }
            Routing::All => (equal_1n()?, vec![ops::Run { rows: 0..rows, decision: Some(0) }]),
            Routing::Each(gate_tn) => {
                let each = |row| ops::Run { rows: row..row + 1, decision: Some(row) };
                (gate_tn.clone(), (0..rows).map(each).collect())
            }
            Routing::Shared { gate_dn, runs } => {
                // All active, all weigh alike: a decision behind the others.
                let open = gate_dn.dim(0)?;
                let decided = |run: &ops::Run| ops::Run { decision: Some(run.decision.unwrap_or(open)), ..run.clone() };
                (Tensor::cat(&[gate_dn, &equal_1n()?], 0)?, runs.iter().map(decided).collect())
            }
        };
        Ok(ops::merged_mlp(x, replicas, &gate_dn, &runs, None)?)
    }

    /// The expert of each neuron, `[I]` u32; replicas have no neurons of their own.
    pub fn neuron_expert(&self) -> Option<&Tensor> {
        match &self.parts {
            Parts::Slices(neuron_expert) => Some(neuron_expert),
            Parts::Replicas(_) => None,
        }
    }

    /// Where the experts are.
    pub fn device(&self) -> &Device {
        self.gate_proj.device()
    }

    /// What is added to the probabilities that selection compares, by level (`balance = bias`).
    ///
    /// # Errors
    /// What the device reports.
    pub fn balance_bias(&self, spec: &MoeSpec) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(bias) = &self.balance_bias else { return Ok(None) };
        let values = bias.to_vec1::<f32>()?;
        let mut rest = values.as_slice();
        let of_level = |level: &super::LevelSpec| {
            let (own, others) = rest.split_at(level.nodes());
            rest = others;
            own.to_vec()
        };
        Ok(Some(spec.levels.iter().map(of_level).collect()))
    }

    /// The layer this bank belongs to.
    pub fn layer(&self) -> usize {
        self.layer
    }
}

fn all_ones(gate_dn: &Tensor) -> Result<bool> {
    let others = gate_dn.detach().ne(1f64)?.to_dtype(DType::F32)?.sum_all()?;
    Ok(others.to_scalar::<f32>()? == 0.0)
}

/// The partition of a layer: each neuron has an expert, each expert a neuron.
fn slices(spec: &MoeSpec, cfg: &Qwen3Config, layer: usize, vb: &VarBuilder<'_>) -> Result<Tensor> {
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
        None => Ok(neuron_expert),
    }
}

/// The deltas that there are.
fn deltas(spec: &MoeSpec, cfg: &Qwen3Config, vb: &VarBuilder<'_>) -> Result<Vec<Option<[Tensor; 3]>>> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let of_expert = |expert: usize| {
        let names = PROJECTIONS.map(|projection| delta_name(expert, projection));
        if !names.iter().any(|name| vb.contains_tensor(name)) {
            return Ok(None);
        }
        let [gate, up, down] = names;
        Ok(Some([vb.get((i, d), &gate)?, vb.get((i, d), &up)?, vb.get((d, i), &down)?]))
    };
    (0..spec.experts()).map(of_expert).collect()
}

/// The model's activation, which must be the one that the variant declares, if it does.
fn activation(spec: &MoeSpec, cfg: &Qwen3Config) -> Result<&'static dyn ops::Activation> {
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
