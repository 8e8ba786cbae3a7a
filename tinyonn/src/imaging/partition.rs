//! Partitions: which expert each neuron of a dense MLP belongs to. Storage order never changes, so all are equally lossless.
//!
//! Every strategy is balanced: expert widths differ by at most one neuron, the first experts taking the remainder. The clustered
//! ones group neurons that are alike, top-down: first into groups, then each group into experts, by k-means whose clusters have
//! fixed sizes. A neuron is a vector of unit norm:
//! - `activation`, `sps`, `taylor`: its integral over tasks, contrasted (DESIGN §1).
//! - `kmeans`: its row of W_g (the parameter clustering of MoEfication, Zhang et al., 2022, and of LLaMA-MoE, Zhu et al., 2024).
//! - `coactivation`: its |h| over sampled tokens minus their mean. ‖a − b‖² = 2 − 2 ρ(a, b), ρ the correlation of two neurons
//!   over tokens: a continuous form of MoEfication's graph of how often two neurons fire together.
//!
//! `coactivation_binary` compares marks ([`NeuronMarks`]), zeros and ones, neither centred nor of unit norm: ‖a − b‖² is how often one of two neurons is marked without the other. `rate`, its control, cuts
//! the neurons into runs by how often they are marked. Under either, and wherever `always_by` is declared, the neurons of experts that always take part are found first, the best of all
//! (by rate unless it is declared), and dealt to these experts in their order; the others are clustered without them.

use candle_core::{DType, Device, Tensor};
use rand::seq::SliceRandom as _;
use rayon::prelude::*;

use super::balanced_k_means::{Points, balanced_k_means};
use super::{Integral, NeuronMarks, Score};
use crate::checkpoint::{ModelFolder, ParamStore};
pub use crate::moe::PartitionStrategy as Partition;
use crate::moe::{AlwaysBy, ExpertsAre, MoeSpec, expert};
use crate::random::{self, Rng};
use crate::{Error, Result};

/// W_g `[I, d]` of a layer, read when the layer is clustered: those of a whole model need not be in memory together.
pub type GateRows<'a> = &'a (dyn Fn(usize) -> Result<Tensor> + Sync);

/// What partitions are made from; a strategy reads what it needs and leaves the rest.
#[derive(Clone, Copy, Default)]
pub struct PartitionSources<'a> {
    /// The scan's integral of [`profile`]: `activation`, `sps` and `taylor`.
    pub integral: Option<&'a Integral>,
    /// W_g of each layer, as [`gate_rows`] has it of a store: `kmeans`.
    pub gate_rows: Option<GateRows<'a>>,
    /// |h| `[t, I]` of each layer over sampled tokens ([`super::coactivation()`]): `coactivation`.
    pub coactivation: Option<&'a [Tensor]>,
    /// Which neurons stand out on sampled tokens, of each layer ([`super::neuron_marks()`]): what [`reads_marks`].
    pub marks: Option<&'a [NeuronMarks]>,
}

/// W_g `[I, d]` of a layer of a dense model in memory.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{ModelFolder, ParamStore};
/// use tinyonn::imaging::partition::{GateRows, PartitionSources, assign, gate_rows, stored_gate_rows};
/// use tinyonn::gallery::Mixtral;
/// use tinyonn::imaging::Partition;
///
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let folder = ModelFolder::open(dir)?;
/// let store: ParamStore = folder.load(&Device::Cpu, None)?;
/// assert_eq!(gate_rows(&store, 0)?.dims(), stored_gate_rows(&folder, 0)?.dims());
///
/// // Neurons of like rows go to one expert, a layer in memory at a time.
/// let read = |layer| stored_gate_rows(&folder, layer);
/// let rows: GateRows<'_> = &read;
/// let (arch, sources) = (folder.arch()?, PartitionSources { gate_rows: Some(rows), ..PartitionSources::default() });
/// let owners = assign(Partition::Kmeans, &Mixtral::SPEC, (arch.num_hidden_layers, arch.intermediate_size), sources, 0)?;
/// assert_eq!((owners.len(), owners[0].len()), (arch.num_hidden_layers, arch.intermediate_size));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A store without it.
pub fn gate_rows(store: &ParamStore, layer: usize) -> Result<Tensor> {
    let name = gate_name(layer);
    let missing = || Error::tensor(&name, "is missing", "give the parameters of a dense model");
    Ok(store.get(&name).ok_or_else(missing)?.as_detached_tensor())
}

/// The same of a model on disk.
///
/// # Errors
/// A model without it.
pub fn stored_gate_rows(folder: &ModelFolder, layer: usize) -> Result<Tensor> {
    folder.source().load(&gate_name(layer), &Device::Cpu, None)
}

fn gate_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.gate_proj.weight")
}

/// The strategy of a run: the one given, else the one that `spec` declares, else `default`.
///
/// ```
/// use tinyonn::gallery::{Smear, TinyOnn};
/// use tinyonn::imaging::{Partition, Score, partition};
///
/// assert_eq!(partition::choose(None, &TinyOnn::SPEC, Partition::Contiguous)?, Partition::Contiguous);
/// assert_eq!(partition::choose(Some(Partition::Sps), &TinyOnn::SPEC, Partition::Contiguous)?, Partition::Sps);
/// assert!(partition::choose(Some(Partition::Sps), &Smear::SPEC, Partition::Contiguous).is_err());
/// let reads_text = |by| partition::reads_text(by, &TinyOnn::SPEC);
/// assert_eq!((partition::profile(Partition::Sps), reads_text(Partition::Sps)), (Some(Score::Sps), true));
/// assert_eq!((partition::profile(Partition::Kmeans), reads_text(Partition::Kmeans)), (None, false));
/// assert!(partition::reads_marks(Partition::Rate, &TinyOnn::SPEC) && !partition::reads_marks(Partition::Sps, &TinyOnn::SPEC));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// One that is given for replicas, which share out no neurons.
pub fn choose(given: Option<Partition>, spec: &MoeSpec, default: Partition) -> Result<Partition> {
    if given.is_some() && spec.experts_are == ExpertsAre::Replicate {
        let problem = format!("the experts of `{}` are replicas, which share out no neurons", spec.name);
        return Err(Error::setting("partition", problem, "leave it out"));
    }
    Ok(given.or(spec.partition).unwrap_or(default))
}

/// The score whose profile the strategy clusters, if it does.
#[must_use]
pub fn profile(partition: Partition) -> Option<Score> {
    match partition {
        Partition::Contiguous
        | Partition::Random
        | Partition::Kmeans
        | Partition::Coactivation
        | Partition::CoactivationBinary
        | Partition::Rate => None,
        Partition::Activation => Some(Score::Activation),
        Partition::Sps => Some(Score::Sps),
        Partition::Taylor => Some(Score::Taylor),
    }
}

/// Whether text must be read before neurons can be assigned to the experts of `spec`.
#[must_use]
pub fn reads_text(partition: Partition, spec: &MoeSpec) -> bool {
    partition == Partition::Coactivation || reads_marks(partition, spec) || profile(partition).is_some()
}

/// Whether [`PartitionSources::marks`] are needed for it.
#[must_use]
pub fn reads_marks(partition: Partition, spec: &MoeSpec) -> bool {
    always_by(partition, spec).is_some()
}

/// By what the neurons of experts that always take part are found before the others; `None` where they are clustered beside them.
fn always_by(partition: Partition, spec: &MoeSpec) -> Option<AlwaysBy> {
    let of_marks = matches!(partition, Partition::CoactivationBinary | Partition::Rate);
    spec.always_by.or(of_marks.then_some(AlwaysBy::Rate))
}

/// The expert of each neuron of each layer, `[layer][i]`, for MLPs of `width` neurons. Layers are clustered side by side;
/// the outcome depends on `seed` and `sources` alone. Replicas have no neurons of their own: no layers.
///
/// # Errors
/// Fewer neurons than experts; a clustered strategy without its source, or with one of another shape.
///
/// ```
/// use tinyonn::imaging::{Partition, PartitionSources, partition};
/// use tinyonn::moe::moe;
///
/// #[moe(groups = 2, experts = 2)]
/// struct Small;
///
/// let nothing = PartitionSources::default();
/// let units = partition::assign(Partition::Contiguous, &Small::SPEC, (1, 7), nothing, 0)?;
/// assert_eq!(units, [[0, 0, 1, 1, 2, 2, 3]]);
/// assert!(partition::assign(Partition::Activation, &Small::SPEC, (1, 7), nothing, 0).is_err()); // scan first
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn assign(
    partition: Partition,
    spec: &MoeSpec,
    (layers, width): (usize, usize),
    sources: PartitionSources<'_>,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    expert::check_width(spec, width, 0)?;
    if spec.experts_are == ExpertsAre::Replicate {
        return Ok(Vec::new());
    }
    let contrasted = profile(partition).and(sources.integral).map(Integral::contrasted);
    let sources = PartitionSources { integral: contrasted.as_ref(), ..sources };
    let widths = widths(width, spec.experts());
    let of_layer = |layer: usize| -> Result<Vec<u32>> {
        let mut rng = random::stream(seed, &format!("partition/{partition}/{layer}"));
        let by = always_by(partition, spec);
        let always = match by {
            Some(by) => runs(&marks_of(partition, layer, width, sources)?.best(by), &widths[spec.routed_experts()..]),
            None => Vec::new(),
        };
        let mut is_left = vec![true; width];
        always.iter().flatten().for_each(|neuron| is_left[*neuron] = false);
        let left = |order: Vec<usize>| order.into_iter().filter(|neuron| is_left[*neuron]).collect::<Vec<_>>();
        let mut order = left((0..width).collect());
        let others = match partition {
            Partition::Contiguous => runs(&order, &widths),
            Partition::Random => {
                order.shuffle(&mut rng);
                runs(&order, &widths)
            }
            Partition::Rate => runs(&left(marks_of(partition, layer, width, sources)?.best(AlwaysBy::Rate)), &widths),
            _ => {
                let points = vectors(partition, layer, width, sources)?;
                cluster_down(spec, &points, (order, by.is_some()), &widths, &mut rng)
            }
        };
        Ok(owners(width, others.into_iter().chain(always)))
    };
    // Collected before the first error is looked for: else it would be that of whichever thread failed first.
    (0..layers).into_par_iter().map(of_layer).collect::<Vec<_>>().into_iter().collect()
}

/// What a clustered strategy compares neurons by: a point of unit norm each.
fn vectors(partition: Partition, layer: usize, width: usize, sources: PartitionSources<'_>) -> Result<Points> {
    let missing = |problem: &str, remedy: &str| Error::setting("partition", format!("`{partition}` {problem}"), remedy);
    let misfit = |what: &str| {
        let problem = format!("the {what} is not of layer {layer} with {width} neurons");
        Error::setting("partition", problem, "scan this model")
    };
    // The neurons of a layer's matrix stand along its dimension `along`.
    let of_layer = |tensor: Option<&Tensor>, along: usize, what: &str| -> Result<Points> {
        let fits = |tensor: &&Tensor| tensor.rank() == 2 && tensor.dims()[along] == width;
        let tensor = tensor.filter(fits).ok_or_else(|| misfit(what))?;
        let neurons_first = if along == 0 { tensor.clone() } else { tensor.t()? };
        let values = neurons_first.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        let d = values.len() / width;
        Ok(Points::new(values, d))
    };
    let text_first = "scan text first, or use contiguous, random or kmeans";
    match partition {
        Partition::Kmeans => {
            let rows = sources.gate_rows.ok_or_else(|| {
                missing("clusters the rows of W_g", "give those of the dense model (`PartitionSources::gate_rows`)")
            })?;
            Ok(of_layer(Some(&rows(layer)?), 0, "gate projection")?.of_unit_norm())
        }
        Partition::Coactivation => {
            let hidden = sources
                .coactivation
                .ok_or_else(|| missing("clusters neurons by when they fire on text", text_first))?;
            Ok(of_layer(hidden.get(layer), 1, "sample of activations")?.centred().of_unit_norm())
        }
        Partition::CoactivationBinary => Ok(marks_of(partition, layer, width, sources)?.points()),
        _ => {
            let profiles = &sources
                .integral
                .ok_or_else(|| missing("clusters neurons by what they do on tasks", text_first))?
                .neurons;
            if !profiles.iter().all(|task| task.get(layer).is_some_and(|values| values.len() == width)) {
                return Err(misfit("scan"));
            }
            let values = (0..width).flat_map(|i| profiles.iter().map(move |task| task[layer][i])).collect();
            Ok(Points::new(values, profiles.len()).of_unit_norm())
        }
    }
}

/// The marks of a layer.
fn marks_of(partition: Partition, layer: usize, width: usize, sources: PartitionSources<'_>) -> Result<&NeuronMarks> {
    let marks = sources.marks.ok_or_else(|| {
        let problem = format!("`{partition}`, or `always_by`, reads which neurons stand out on text");
        Error::setting(
            "partition",
            problem,
            "read text first (`PartitionSources::marks`), or use contiguous, random or kmeans without `always_by`",
        )
    })?;
    marks.get(layer).filter(|marks| marks.width() == width).ok_or_else(|| {
        let problem = format!("the marks are not of layer {layer} with {width} neurons");
        Error::setting("partition", problem, "read text by this model")
    })
}

/// Widths of `experts` slices of `width` neurons: the first take the remainder.
fn widths(width: usize, experts: usize) -> Vec<usize> {
    (0..experts).map(|expert| width / experts + usize::from(expert < width % experts)).collect()
}

/// Runs of `order` of these widths, as far as it goes.
fn runs(order: &[usize], widths: &[usize]) -> Vec<Vec<usize>> {
    let mut rest = order.iter().copied();
    let run = |width: &usize| rest.by_ref().take(*width).collect::<Vec<_>>();
    widths.iter().map(run).take_while(|run| !run.is_empty()).collect()
}

/// The expert of each neuron, of the neurons of each expert.
fn owners(width: usize, shares: impl Iterator<Item = Vec<usize>>) -> Vec<u32> {
    let mut owner = vec![0u32; width];
    for (expert, share) in shares.enumerate() {
        for neuron in share {
            owner[neuron] = expert as u32;
        }
    }
    owner
}

/// Splits neurons among the choices of the first level, each share among those of the next, down to the experts. Experts that always take part get theirs beside the
/// choices of the first level, unless they have them already.
fn cluster_down(
    spec: &MoeSpec,
    points: &Points,
    (members, always_have): (Vec<usize>, bool),
    expert_widths: &[usize],
    rng: &mut Rng,
) -> Vec<Vec<usize>> {
    let room = |experts: std::ops::Range<usize>| expert_widths[experts].iter().sum::<usize>();
    let beside = if always_have { &[] } else { &expert_widths[spec.routed_experts()..] };
    if spec.levels.is_empty() {
        return if always_have { Vec::new() } else { balanced_k_means(points, &members, beside, rng) };
    }
    let mut shares: Vec<Vec<usize>> = vec![members];
    let mut always: Vec<Vec<usize>> = Vec::new();
    for (level, declared) in spec.levels.iter().enumerate() {
        let under = spec.experts_under(level);
        let mut next = Vec::with_capacity(under.len());
        for (share, slot) in shares.iter().zip(declared.slots()) {
            let mut capacities: Vec<usize> = slot.nodes.clone().map(|node| room(under[node].clone())).collect();
            if level == 0 {
                capacities.extend(beside);
            }
            let mut clusters = balanced_k_means(points, share, &capacities, rng);
            always.extend(clusters.split_off(slot.nodes.len()));
            next.extend(clusters);
        }
        shares = next;
    }
    shares.extend(always);
    shares
}
