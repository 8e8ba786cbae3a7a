//! One new token of each of a few texts through a layer of experts, on a GPU: by launches that a captured graph can hold.
//!
//! Gates of a hierarchy of Gaussian routers come of two launches; other routers are asked by their own operations. Slices are computed as the dense MLP's neurons under
//! their experts' gates, and what no row takes is not read ([`gemv`](crate::ops::gemv)); neurons that choose themselves are scored by their gates' rows first.

use candle_core::Tensor;

use super::routing::route;
use super::{MoeLayer, RoutePer};
use crate::Result;
use crate::decoder::feed_forward::NewTokens;
use crate::decoder::{Active, Pass};
use crate::ops::{NeuronChoice, gaussian_gates, gemv, rms_norm};

/// The stream behind the layer; `None` where there are no launches for it.
///
/// # Errors
/// What the device reports; routing that cannot be.
pub(super) fn decode(layer: &MoeLayer, new: &mut NewTokens<'_>, pass: &Pass) -> Result<Option<Tensor>> {
    let (experts, all) = (layer.experts(), matches!(pass.active, Active::All));
    if !new.takes(experts.weights())? || !experts.computes_by_neuron(all) {
        return Ok(None);
    }
    let gate_bn = if all { None } else { gates(layer, new, pass)? };
    let gates = match (&gate_bn, experts.neuron_expert()) {
        (Some(gate_bn), Some(neuron_expert)) => Some(gemv::Gates { gate_bn, neuron_expert }),
        _ => None,
    };
    let Some(rule) = experts.rule().filter(|_| !all) else { return Ok(new.glu(experts.weights(), gates)?) };
    // The matrices of a routed pass do not change while a text is written.
    let used = rule.used(experts.matrices())?;
    let (weights, choice) = (used.weights(experts.weights()), rule.choice(&used));
    let launched = match choice {
        NeuronChoice::Fixed(_) => false,
        // A part of x is read of W_g by channels, where no experts were chosen.
        NeuronChoice::Gate { inputs: Some(inputs), .. } => inputs.by_channel.is_some() && gates.is_none(),
        NeuronChoice::Gate { inputs: None, .. } => true,
    };
    if !launched || !new.takes(weights)? {
        return Ok(None);
    }
    let h_bi =
        gemv::chosen(gemv::Normed { x_bd: new.x_bd, norm: Some(new.norm) }, weights, gates, choice, new.workspace)?;
    Ok(Some(gemv::weighted_rows(&h_bi, weights.down, Some(new.x_bd), used.bias_d(), true, new.workspace)?))
}

/// The gates of every row `[B, N]`; `None` where all experts take part.
fn gates(layer: &MoeLayer, new: &mut NewTokens<'_>, pass: &Pass) -> Result<Option<Tensor>> {
    if layer.spec().levels.is_empty() {
        return Ok(None);
    }
    if layer.spec().route_per == RoutePer::Token
        && let (Some(hierarchy), Some(gaussians)) = (layer.hierarchy(), layer.gaussians())
    {
        let of = gemv::Normed { x_bd: new.x_bd, norm: Some(new.norm) };
        if let Some(gate_bn) = gaussian_gates::forward(gaussians, hierarchy, of, new.workspace)? {
            return Ok(Some(gate_bn));
        }
    }
    let normed = rms_norm::forward(new.x_bd, new.norm.0, new.norm.1)?.unsqueeze(1)?;
    let gates = route(layer, &normed, pass)?.routing.by_token()?;
    Ok(gates.map(|gate_bn| gate_bn.contiguous()).transpose()?)
}
