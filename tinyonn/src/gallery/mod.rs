//! Variants that ship with the library: the seed's, and what the literature routes by, declared over the experts of DESIGN §1.
//!
//! Each is like its model in what decides, for whom, how many, and with what weight; its experts are slices of a pretrained MLP
//! (or copies of it: [`Smear`], [`Lory`]), so that upcycling to any of them is lossless. The numbers of experts are small enough for
//! the model that `exp_phase2` pretrains. `exp_variants` lists them; each is run in the test module `gallery`.
//!
//! ```
//! use tinyonn::gallery::*;
//!
//! let experts = [TinyOnn::SPEC, Flat100::SPEC, RandomPaths::SPEC, LinearPaths::SPEC, CosinePaths::SPEC]
//!     .map(|spec| (spec.experts(), spec.active_experts()));
//! assert_eq!(experts, [(100, 64); 5]);
//! let grown = [TinyOnnDoubled::SPEC, SmearDoubled::SPEC].map(|spec| spec.experts());
//! assert_eq!(grown, [200, 16]);
//! let of_the_literature = [Smear::SPEC, Lory::SPEC, Switch::SPEC, Mixtral::SPEC, DeepSeek::SPEC, XMoe::SPEC, Nucleus::SPEC, DeMix::SPEC, Laplace::SPEC];
//! let counts = of_the_literature.map(|spec| (spec.experts(), spec.levels.len()));
//! assert_eq!(counts, [(8, 1), (8, 1), (16, 1), (8, 1), (66, 2), (16, 1), (16, 1), (16, 2), (16, 1)]);
//! assert_eq!((Depth3::SPEC.levels.len(), NamedGroups::SPEC.experts()), (3, 19));
//! assert!(LongContext::SPEC.attention.pairs().is_some()); // the dense MLP, and an eighth of the pairs
//! let groups = [GroupedGate::SPEC, WholeGroups::SPEC].map(|spec| (spec.experts(), spec.router_words()));
//! assert_eq!(groups, [(128, "linear(32)".to_owned()), (128, "linear(32)".to_owned())]);
//! assert!(OwnGate::SPEC.levels.is_empty() && Pruned::SPEC.levels.is_empty()); // single neurons: no experts to choose
//! ```

mod laplace;

pub use laplace::{Laplace, LaplaceRouter};

use crate::moe::moe;

/// The seed's hierarchy: 10 groups of 10 experts behind two levels of Gaussian routers.
#[moe(groups = 10, experts = 10, router = gaussian, top_k = [8, 8])]
pub struct TinyOnn;

/// [`TinyOnn`] grown: two children of each expert, taken whenever it was (`exp_expand`).
#[moe(groups = 10, experts = 20, router = gaussian, top_k = [8, 16])]
pub struct TinyOnnDoubled;

/// As many experts as [`TinyOnn`] and as many of them taken, behind one router: what the hierarchy is compared with.
#[moe(levels = [100], top_k = 64)]
pub struct Flat100;

/// Three decisions, one below the other: 4 clusters of 5 groups of 5 experts (PDD 3).
#[moe(levels = [4, 5, 5], top_k = [2, 3, 3])]
pub struct Depth3;

/// Like SMEAR (Muqeeth et al., 2023): the weights of all experts are merged, once a sequence, by the router's probabilities.
///
/// There by the mean over the whole input; here by that of its first 64 tokens, so that it is causal.
#[moe(levels = [8], top_k = 8, router = linear, experts_are = replicate, combine = merge, route_per = sequence(64))]
pub struct Smear;

/// [`Smear`] grown: two children of each replica, which weigh as much as it did (`exp_expand`).
#[moe(levels = [16], top_k = 16, router = linear, experts_are = replicate, combine = merge, route_per = sequence(64))]
pub struct SmearDoubled;

/// Like Lory (Zhong et al., 2024): the weights of all experts are merged for each segment of 256 tokens, by the segment before.
#[moe(levels = [8], top_k = 8, router = linear, experts_are = replicate, combine = merge, route_per = segment(256))]
pub struct Lory;

/// Like the Switch Transformer (Fedus et al., 2021): one expert a token, dispatched, with the auxiliary loss and the jitter of its routers.
///
/// The weight p of the chosen expert would shrink a slice: it is 1 forward and p backward.
#[moe(levels = [16], top_k = 1, router = linear, gate = straight_through, balance = loss(0.01), jitter = 0.01, combine = dispatch)]
pub struct Switch;

/// Like Mixtral (Jiang et al., 2024): two of eight experts a token, weighted by the softmax over the two (times two: slices add up),
/// each computed on the tokens that chose it.
#[moe(levels = [8], top_k = 2, router = linear, gate = scaled, combine = dispatch)]
pub struct Mixtral;

/// Like DeepSeek-V3 (DeepSeek-AI, 2024): fine experts of which a token takes few, in two of four groups; two that all tokens
/// share; load evened by a bias on selection, without a loss.
#[moe(groups = 4, experts = 16, always = 2, top_k = [2, 3], router = linear, gate = scaled, balance = bias(0.001))]
pub struct DeepSeek;

/// Named groups of uneven size, each with a router of its own kind (DESIGN §5).
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::gallery::{NamedGroups, NamedGroupsGroup};
/// use tinyonn::moe::variant;
/// use tinyonn::phases::RunConfig;
///
/// assert_eq!(NamedGroupsGroup::ALL.map(NamedGroupsGroup::name), ["language", "arithmetic", "memory"]);
/// // Every declaration has a constructor of its layers.
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let owners = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 19).collect(); cfg.num_hidden_layers];
/// let store = upcycle(dense, &cfg, variant("NamedGroups")?, &owners, 0)?;
/// let layer = NamedGroups::layer(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp"))?;
/// assert_eq!(layer.routers()[1].len(), 3); // below the root a run of routers a group, each of its own kind
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[moe(router = gaussian(dim = 32), top_k = 2)]
pub enum NamedGroups {
    #[group(experts = 10, top_k = 4)]
    Language,
    #[group(experts = 6, router = cosine)]
    Arithmetic,
    #[group(experts = 3, router = linear)]
    Memory,
}

/// Like X-MoE (Chi et al., 2022): routed by the angle to each expert's vector, which no expert can win by its length;
/// without the paper's projection to fewer dimensions.
#[moe(levels = [16], top_k = 2, router = cosine, gate = straight_through)]
pub struct XMoe;

/// Like dynamic routing (Huang et al., 2024): as few experts as hold 40 % of the probability, so that hard tokens take more.
#[moe(levels = [16], router = linear, pfag = nucleus(0.4), balance = loss(0.01))]
pub struct Nucleus;

/// Like DEMix layers (Gururangan et al., 2021): a sequence takes the experts of its task, which the caller names: an oracle.
#[moe(groups = 4, experts = 4, top_k = [2, 2], route_per = task)]
pub struct DeMix;

/// Routers that were drawn once and know nothing, as in hash layers (Roller et al., 2021): what a fitted router must beat.
#[moe(groups = 10, experts = 10, router = random, top_k = [8, 8])]
pub struct RandomPaths;

/// The dense MLP behind attention to an eighth of the (query, key) pairs, chosen as SparQ chooses them (Ribar et al., 2024): for long texts.
#[moe(attention = pairs(keep = 0.125, index = components(8), near = 32, first = 4, by = kv_head))]
pub struct LongContext;

/// Every token takes single neurons of the whole MLP, which its own gate values choose: no experts, no routers.
#[moe(neurons = gate)]
pub struct OwnGate;

/// The same neurons for every token, those that add most: what any choice must beat.
#[moe(neurons = pruned)]
pub struct Pruned;

/// A router chooses among 128 groups of neurons, and of these each token takes those whose own gates promise most: gate rows of what was not chosen are not
/// computed. All groups are taken until text has said which (`exp_sparsify`).
#[moe(levels = [128], top_k = 128, router = linear(dim = 32), neurons = gate, partition = coactivation)]
pub struct GroupedGate;

/// The groups of [`GroupedGate`], taken whole.
#[moe(levels = [128], top_k = 128, router = linear(dim = 32), partition = coactivation)]
pub struct WholeGroups;

/// [`TinyOnn`] behind linear routers: what Gaussian ones are compared with.
#[moe(groups = 10, experts = 10, router = linear, top_k = [8, 8])]
pub struct LinearPaths;

/// [`TinyOnn`] behind cosine routers.
#[moe(groups = 10, experts = 10, router = cosine, top_k = [8, 8])]
pub struct CosinePaths;
