//! A model of slices as one of the mixtures of experts of transformers.
//!
//! The formats weigh K experts by their softmax, whose sum is 1; ours weigh 1, or sum to K: W_d is written K times itself. Experts are padded by neurons of zeros,
//! which add nothing, to one width, a multiple of 8.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::contents::{Contents, repair_name, tensor, values};
use super::dense::as_stored;
use super::linear_gate::linear_gate;
use super::mixture_format::MixtureFormat;
use super::{name_type, write_folder};
use crate::checkpoint::not_finite::NotFinite;
use crate::checkpoint::params::{expected_tensors, mixture_prefix, neuron_expert_name};
use crate::checkpoint::tinyonn_folder::{TinyOnnFolder, dense_config};
use crate::decoder::Family;
use crate::files::StagedFolder;
use crate::model::ActiveMode;
use crate::moe::{Balance, ExpertsAre, Gate, KEPT, MoeSpec, Neurons, Pfag, REPAIR, REPAIR_DOWN, RoutePer};
use crate::ops::host;
use crate::{Error, Result};

/// Widths are multiples of it: grouped products of others crash or are slow.
const MULTIPLE: usize = 8;

/// What is taken apart for the format.
struct Plan {
    format: MixtureFormat,
    /// K: experts that a token takes.
    top_k: usize,
    /// Whether routers choose them.
    routed: bool,
    /// Whether a fixed set of neurons is kept, and its repair.
    pruned: bool,
    /// The width of every expert.
    width: usize,
}

pub(super) fn write(
    source: &TinyOnnFolder,
    contents: &Contents,
    staged: &StagedFolder,
    (format, active): (MixtureFormat, ActiveMode),
) -> Result<(Vec<String>, NotFinite)> {
    let (spec, arch) = (&source.variant().spec, source.arch());
    format.check_attention(arch)?;
    refuse_activation(source)?;
    let (routed, pruned) = match active {
        ActiveMode::All => (false, false),
        ActiveMode::Routed => routed(source, contents, format)?,
    };
    if spec.experts_are != ExpertsAre::Slice {
        return Err(refuse(format, spec, "replicas, each as wide as the dense MLP"));
    }
    let layers = (0..arch.num_hidden_layers).map(|layer| neurons(source, layer, pruned)).collect::<Result<Vec<_>>>()?;
    let widest = layers.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let width = widest.max(1).next_multiple_of(MULTIPLE);
    let top_k = if routed { spec.active_experts() } else { spec.experts() };
    let plan = Plan { format, top_k, routed, pruned, width };
    let mut made = Vec::new();
    for (layer, neurons) in layers.iter().enumerate() {
        made.extend(experts(source, layer, neurons, &plan)?);
    }
    let dense = expected_tensors(arch);
    let copied = |name: &str| dense.contains_key(name) && !name.contains(".mlp.");
    let left_out = match (active, routed) {
        (ActiveMode::All, _) => contents.left_out_all_active(source),
        (_, true) => what_routing_loses(spec),
        _ => Vec::new(),
    };
    Ok((left_out, write_folder(source.folder(), staged, &config(source, &plan), copied, &made)?))
}

/// Whether the routers choose, and whether a fixed set of neurons is kept, in the routed pass.
fn routed(source: &TinyOnnFolder, contents: &Contents, format: MixtureFormat) -> Result<(bool, bool)> {
    let spec = &source.variant().spec;
    match spec.neurons {
        Neurons::Gate => return Err(refuse(format, spec, "single neurons chosen by each token (`neurons = gate`)")),
        Neurons::Pruned => {
            contents.refuse_bias(format.name)?;
            return Ok((false, true));
        }
        Neurons::All => {}
    }
    if spec.levels.is_empty() {
        return Ok((false, false));
    }
    if contents.bounds_choices() || !contents.repaired.is_empty() {
        return Err(refuse(format, spec, "choices that text has bounded, and their repair (`exp_sparsify`)"));
    }
    if spec.route_per != RoutePer::Token {
        return Err(refuse(format, spec, "decisions that many tokens share (`route_per`)"));
    }
    if spec.pfag != Pfag::Off {
        return Err(refuse(format, spec, "a number of experts that depends on the token (`pfag`)"));
    }
    if spec.always_experts() > 0 {
        return Err(refuse(format, spec, "experts that always take part (`always`)"));
    }
    if matches!(spec.balance, Balance::Bias { .. }) {
        for layer in 0..source.arch().num_hidden_layers {
            let name = format!("{}.balance_bias", mixture_prefix(layer));
            if values(source, &name)?.is_some_and(|bias| bias.iter().any(|value| *value != 0.0)) {
                return Err(refuse(format, spec, "a bias on selection (`balance = bias`) that has moved"));
            }
        }
    }
    // Who takes all at weight one needs no router.
    Ok((spec.active_experts() < spec.experts() || spec.gate == Gate::Scaled, false))
}

fn refuse(format: MixtureFormat, spec: &MoeSpec, what: &str) -> Error {
    let problem = format!("`{}` cannot hold {what}", format.word);
    Error::variant(
        spec.name.clone(),
        problem,
        "export it as `tinyonn` where that covers it, or all active (--active all)",
    )
}

/// What becomes of the routers, in words.
fn what_routing_loses(spec: &MoeSpec) -> Vec<String> {
    let mut lines = Vec::new();
    if spec.levels.len() > 1 {
        lines.push(format!("the levels: one gate chooses {} of {} experts", spec.active_experts(), spec.experts()));
    }
    lines.push("of the routers all but their linear part: constants, and differences of variances".into());
    if spec.gate != Gate::Scaled && spec.active_experts() > 1 {
        lines.push(format!("`gate = {}`: chosen experts are weighted by their softmax", spec.gate.word()));
    }
    lines
}

/// Refuses an activation that transformers does not know.
pub(super) fn refuse_activation(source: &TinyOnnFolder) -> Result<()> {
    let name = &source.arch().hidden_act;
    if matches!(name.as_str(), "silu" | "gelu") {
        return Ok(());
    }
    let problem = format!("`{name}` is an activation of your own, which transformers does not know");
    Err(Error::setting("hidden_act", problem, "keep the Tiny-ONN checkpoint"))
}

/// The neurons of each expert of a layer, ascending; of a fixed set those that are kept.
fn neurons(source: &TinyOnnFolder, layer: usize, pruned: bool) -> Result<Vec<Vec<u32>>> {
    let name = neuron_expert_name(layer);
    let owners = source.folder().source().load(&name, &Device::Cpu, None)?.to_dtype(DType::F32)?;
    let kept = if pruned { values(source, &repair_name(layer, KEPT))? } else { None };
    let mut of_experts = vec![Vec::new(); source.variant().spec.experts()];
    for (neuron, owner) in host::in_memory(&owners)?.into_iter().enumerate() {
        let taken = kept.as_ref().is_none_or(|kept| kept.get(neuron).is_some_and(|kept| *kept != 0.0));
        let expert = of_experts.get_mut(owner as usize);
        let expert = expert.ok_or_else(|| {
            Error::tensor(
                &name,
                format!("it names expert {owner}, which there is not"),
                "upcycle the dense model again",
            )
        })?;
        if taken {
            expert.push(neuron as u32);
        }
    }
    Ok(of_experts)
}

/// The tensors of a layer's mixture, as files have them.
fn experts(source: &TinyOnnFolder, layer: usize, neurons: &[Vec<u32>], plan: &Plan) -> Result<Vec<(String, Tensor)>> {
    let prefix = mixture_prefix(layer);
    let weight = |projection: &str| {
        let name = format!("{prefix}.{projection}.weight");
        source.folder().source().load(&name, &Device::Cpu, None)
    };
    let with_delta = |projection: &str, delta: &str| {
        let w_id = weight(projection)?;
        match tensor(source, &repair_name(layer, delta))?.filter(|_| plan.pruned) {
            Some(delta_id) => Ok((w_id.to_dtype(DType::F32)? + delta_id)?.to_dtype(w_id.dtype())?),
            None => Ok::<_, Error>(w_id),
        }
    };
    let [of_gate, of_up, _] = REPAIR;
    let (gate_id, up_id) = (with_delta("gate_proj", of_gate)?, with_delta("up_proj", of_up)?);
    let mut down_di = weight("down_proj")?.to_dtype(DType::F32)?;
    if let Some(delta_id) = tensor(source, &repair_name(layer, REPAIR_DOWN))?.filter(|_| plan.pruned) {
        down_di = (down_di + delta_id.t()?)?;
    }
    let down_di = as_stored(source, &format!("{prefix}.down_proj.weight"), &(down_di * plan.top_k as f64)?)?;
    let gate_nd = if plan.routed {
        linear_gate(source, layer)?
    } else {
        Tensor::zeros((neurons.len(), source.arch().hidden_size), DType::F32, &Device::Cpu)?
    };
    let mixture = plan.format.prefix(layer);
    let mut made = vec![(format!("{mixture}.gate.weight"), gate_nd.contiguous()?)];
    for (expert, neurons) in neurons.iter().enumerate() {
        let part = |matrix: &Tensor, dim: usize| {
            // Of a fixed set that keeps none of its neurons nothing but padding is left.
            if neurons.is_empty() {
                let (rows, columns) = matrix.dims2()?;
                let shape = if dim == 0 { (plan.width, columns) } else { (rows, plan.width) };
                return Tensor::zeros(shape, matrix.dtype(), &Device::Cpu);
            }
            let own = matrix.index_select(&Tensor::new(neurons.as_slice(), &Device::Cpu)?, dim)?;
            own.pad_with_zeros(dim, 0, plan.width - neurons.len())?.contiguous()
        };
        let matrices = [(&gate_id, 0), (&up_id, 0), (&down_di, 1)];
        for (projection, (matrix, dim)) in plan.format.projections.into_iter().zip(matrices) {
            made.push((format!("{mixture}.experts.{expert}.{projection}.weight"), part(matrix, dim)?));
        }
    }
    Ok(made)
}

/// The dense configuration, what goes without saying in one class and not in the other said, and what the format asks for.
fn config(source: &TinyOnnFolder, plan: &Plan) -> Value {
    let mut config = dense_config(source.folder().config());
    if let Some(said) = source.arch().to_json().as_object() {
        for (key, value) in said {
            if config.get(key).is_none_or(Value::is_null) {
                config[key] = value.clone();
            }
        }
    }
    let experts = source.variant().spec.experts();
    let (format, class) = (plan.format, if plan.format.dense == Family::Qwen3 { "Qwen3Moe" } else { "Mixtral" });
    for (key, value) in [
        ("model_type", json!(format.model_type)),
        ("architectures", json!([format!("{class}ForCausalLM")])),
        (format.width_key, json!(plan.width)),
        (format.experts_key, json!(experts)),
        ("num_local_experts", json!(experts)),
        ("num_experts_per_tok", json!(plan.top_k)),
        ("output_router_logits", json!(false)),
        ("router_aux_loss_coef", json!(0.0)),
    ] {
        config[key] = value;
    }
    if format.dense == Family::Qwen3 {
        config["decoder_sparse_step"] = json!(1);
        config["mlp_only_layers"] = json!([]);
        config["norm_topk_prob"] = json!(true);
    }
    name_type(source, &mut config);
    config
}
