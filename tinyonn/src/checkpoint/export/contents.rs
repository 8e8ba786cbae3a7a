//! What a checkpoint has beside the dense weights that a format may have no place for.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::params::mixture_prefix;
use crate::checkpoint::replicas::is_delta;
use crate::checkpoint::tinyonn_folder::TinyOnnFolder;
use crate::moe::{
    CHOICE_RULE, CHOICES_MOST, KEPT, LEAST_HIDDEN, LEAST_INPUT, Neurons, REPAIR, REPAIR_BIAS, REPAIR_DOWN, WORTH,
};
use crate::ops::host;
use crate::{Error, Result};

/// What was found.
#[derive(Debug)]
pub(super) struct Contents {
    /// Layers with a repair, ascending.
    pub(super) repaired: Vec<usize>,
    /// By layer, what a choice of neurons may have and need not, by its name under `neurons`, and `choices` where routers' choices are bounded.
    pub(super) beside: BTreeMap<usize, Vec<&'static str>>,
    /// The first layer whose repair has a bias that is not zero.
    pub(super) biased: Option<usize>,
    /// The name of the first weight of a replica that has learnt.
    pub(super) delta: Option<String>,
}

impl Contents {
    pub(super) fn of(source: &TinyOnnFolder) -> Result<Self> {
        let layers = 0..source.arch().num_hidden_layers;
        let has = |layer: usize, name: &str| source.folder().source().info(&repair_name(layer, name)).is_some();
        let repaired: Vec<usize> = layers.clone().filter(|layer| has(*layer, REPAIR_DOWN)).collect();
        let of_gate = (source.variant().spec.neurons == Neurons::Gate).then_some([KEPT, LEAST_HIDDEN, LEAST_INPUT]);
        let optional: Vec<&'static str> =
            of_gate.into_iter().flatten().chain([WORTH]).chain(REPAIR).chain([REPAIR_BIAS]).collect();
        let of_layer = |layer: usize| {
            let names = optional.iter().filter(|name| has(layer, name));
            let bounded = has(layer, CHOICES_MOST).then_some(CHOICE_RULE);
            (layer, names.filter_map(|name| Some(name.split_once('.')?.1)).chain(bounded).collect::<Vec<_>>())
        };
        let beside = layers.map(of_layer).filter(|(_, names)| !names.is_empty()).collect();
        let mut biased = None;
        for layer in &repaired {
            let bias = values(source, &repair_name(*layer, REPAIR_BIAS))?;
            if biased.is_none() && bias.is_some_and(|bias| bias.iter().any(|value| *value != 0.0)) {
                biased = Some(*layer);
            }
        }
        let delta = source.folder().tensors().map(|(name, _)| name).find(|name| is_delta(name)).map(str::to_owned);
        Ok(Self { repaired, beside, biased, delta })
    }

    /// Whether text has bounded the choices of any layer's routers.
    pub(super) fn bounds_choices(&self) -> bool {
        self.beside.values().any(|names| names.contains(&CHOICE_RULE))
    }

    /// Refuses a bias, for which no MLP of the other format has a place.
    pub(super) fn refuse_bias(&self, format: &str) -> Result<()> {
        let Some(layer) = self.biased else { return Ok(()) };
        let problem = format!("the MLPs of {format} have no bias, which the repair of the layer has");
        let remedy = "repair with `bias = false`, or export all active (--active all)";
        Err(Error::tensor(repair_name(layer, REPAIR_BIAS), problem, remedy))
    }

    /// Beside the dense weights, what a model of all experts leaves behind.
    pub(super) fn left_out_all_active(&self, source: &TinyOnnFolder) -> Vec<String> {
        let spec = &source.variant().spec;
        let mut lines = Vec::new();
        if !spec.levels.is_empty() {
            lines.push(format!("the routers ({}), since all experts take part", spec.router_words()));
        }
        if spec.neurons != Neurons::All {
            let repair = if self.repaired.is_empty() { "" } else { ", and the repair beside the weights" };
            lines.push(format!(
                "the choice of neurons (`neurons = {}`){repair}: all neurons take part",
                spec.neurons.word()
            ));
        } else if !self.repaired.is_empty() {
            lines.push("the repair beside the weights: all neurons take part".to_owned());
        }
        if !source.attention().is_dense() {
            lines.push("the choice of pairs (`attention = pairs(..)`): attention computes all; exp_generate and exp_eval take it with --attention".to_owned());
        }
        lines
    }
}

/// Refuses attention to some pairs, which no format has a place for.
pub(super) fn refuse_pairs(source: &TinyOnnFolder) -> Result<()> {
    if source.attention().is_dense() {
        return Ok(());
    }
    let problem = "in a routed pass its attention computes some pairs alone (`attention = pairs(..)`), which no export has a place for";
    Err(Error::variant(source.variant().spec.name.clone(), problem, "export all active (--active all)"))
}

/// The name of a part of a layer's repair.
pub(super) fn repair_name(layer: usize, part: &str) -> String {
    format!("{}.{part}", mixture_prefix(layer))
}

/// A tensor in f32, as it lies in its file; `None` of one that is not there.
pub(super) fn tensor(source: &TinyOnnFolder, name: &str) -> Result<Option<Tensor>> {
    let weights = source.folder().source();
    if weights.info(name).is_none() {
        return Ok(None);
    }
    weights.load(name, &Device::Cpu, Some(DType::F32)).map(Some)
}

/// Its values.
pub(super) fn values(source: &TinyOnnFolder, name: &str) -> Result<Option<Vec<f32>>> {
    Ok(tensor(source, name)?.map(|tensor| host::in_memory(&tensor)).transpose()?)
}
