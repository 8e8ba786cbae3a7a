//! The experts of a layer: slices of one dense MLP, kept in the dense order in one bank (DESIGN §1).
//!
//! A partition gives each neuron to one expert; a gate w[t, n] acts on the hidden activation of its neurons, so that
//! y_t = Σ_n w[t, n] Expert_n(x_t) costs the three products of the dense MLP (`combine = concat`). Without gates the bank
//! is the dense MLP, bit for bit, whatever the partition.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::{Balance, MoeSpec, Routing};
use crate::qwen3::{Qwen3Config, RouteCtx, mlp};
use crate::{Error, Result, ops};

/// All experts of one layer.
#[derive(Clone, Debug)]
pub struct TinyOnnExpert {
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    activation: &'static dyn ops::Activation,
    /// The expert of each neuron, `[I]` u32.
    neuron_expert: Tensor,
    /// Added to the probabilities that selection compares, by level and node in a row (`balance = bias`).
    balance_bias: Option<Tensor>,
    layer: usize,
}

impl TinyOnnExpert {
    /// Reads the bank of layer `layer` for `spec`: the dense weights under their dense names, and `neuron_expert`.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a partition that leaves an expert empty or names one that does not
    /// exist; a missing or misshapen weight; an unknown activation.
    pub fn new(spec: &MoeSpec, cfg: &Qwen3Config, layer: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let experts = spec.experts();
        check_width(spec, cfg.intermediate_size, layer)?;
        let [gate_proj, up_proj, down_proj] = mlp::projections(cfg, vb)?;
        let neuron_expert =
            vb.get_with_hints_dtype(cfg.intermediate_size, "neuron_expert", candle_nn::Init::Const(0.0), DType::U32)?;
        let owners = neuron_expert.to_vec1::<u32>()?;
        let mut widths = vec![0usize; experts];
        for owner in &owners {
            match widths.get_mut(*owner as usize) {
                Some(width) => *width += 1,
                None => return Err(bad_partition(layer, &format!("it names expert {owner} of {experts}"))),
            }
        }
        if let Some(empty) = widths.iter().position(|width| *width == 0) {
            return Err(bad_partition(layer, &format!("it leaves expert {empty} without a neuron")));
        }
        let balance_bias = match spec.balance {
            Balance::Bias { .. } => {
                let nodes: usize = spec.levels.iter().map(super::LevelSpec::nodes).sum();
                Some(vb.get_with_hints_dtype(nodes, "balance_bias", candle_nn::Init::Const(0.0), DType::F32)?)
            }
            Balance::None | Balance::Loss { .. } => None,
        };
        let activation = activation(spec, cfg)?;
        Ok(Self { gate_proj, up_proj, down_proj, activation, neuron_expert, balance_bias, layer })
    }

    /// x `[B, T, d]` to y `[B, T, d]`, under the gates of `routing`.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn forward(&self, x: &Tensor, routing: &Routing, ctx: &RouteCtx) -> Result<Tensor> {
        let (gate, up, down) = (&self.gate_proj, &self.up_proj, &self.down_proj);
        let weights = ops::MlpWeights { gate, up, down, activation: self.activation };
        let gate_tn = routing.by_token()?;
        let gate = gate_tn.as_ref().map(|gate_tn| ops::MlpGate { gate_tn, neuron_expert: &self.neuron_expert });
        Ok(ops::glu_mlp(x, weights, gate, ctx.probe.clone().map(|probe| (probe, self.layer)))?)
    }

    /// The expert of each neuron, `[I]` u32.
    pub fn neuron_expert(&self) -> &Tensor {
        &self.neuron_expert
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

/// The model's activation, which must be the one that the variant declares, if it does.
fn activation(spec: &MoeSpec, cfg: &Qwen3Config) -> Result<&'static dyn ops::Activation> {
    match &spec.activation {
        Some(declared) if *declared != cfg.hidden_act => {
            let problem =
                format!("it declares activation = {declared}, and `hidden_act` of the model is {}", cfg.hidden_act);
            Err(Error::variant(spec.name.clone(), problem, "declare the model's, or leave it out"))
        }
        _ => cfg.activation(),
    }
}

/// Refuses an MLP of fewer neurons than experts.
///
/// # Errors
/// The variant, the layer and both numbers.
pub fn check_width(spec: &MoeSpec, width: usize, layer: usize) -> Result<()> {
    let experts = spec.experts();
    if width >= experts {
        return Ok(());
    }
    let problem = format!("layer {layer} has {width} neurons for {experts} experts; each expert needs at least one");
    Err(Error::variant(spec.name.clone(), problem, format!("declare at most {width} experts")))
}

fn bad_partition(layer: usize, problem: &str) -> Error {
    Error::tensor(format!("model.layers.{layer}.mlp.neuron_expert"), problem, "upcycle the dense model again")
}
