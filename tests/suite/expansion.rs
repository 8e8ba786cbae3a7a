//! A model that grows: what it computes, what its optimizer remembers, and what is refused, by name.

mod recycling;
mod training;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::checkpoint::{
    Expansion, ModelFolder, ParamStore, TinyOnnConfig, TinyOnnFolder, expand_folder, expected_variant_tensors,
    export_dense, grow_deltas, is_delta, load_model, upcycle,
};
use tinyonn::decoder::{Arch, Pass};
use tinyonn::files::StagedFolder;
use tinyonn::imaging::{Labels, Partition};
use tinyonn::model::ActiveMode;
use tinyonn::moe::{ExpertsAre, MoeSpec};

use crate::gradients::inputs;
use crate::models::{self, CPU, apart, bits, config, ids, message, variant, weights};

pub(crate) mod declared {
    use tinyonn::moe::moe;

    /// `Moe2x4`, two children of each.
    #[moe(groups = 2, experts = 8, top_k = [1, 4])]
    pub(crate) struct Moe2x8;

    /// `Moe2x4`, some experts with two children.
    #[moe(groups = 2, experts = 6, top_k = [1, 2])]
    pub(crate) struct Moe2x6;

    /// Every kind of router over groups of their own size, and shared experts.
    #[moe(router = gaussian(dim = 5, covariance = shared), top_k = 2, balance = bias(0.01))]
    pub(crate) enum Young {
        #[group(experts = 3, top_k = 2)]
        Words,
        #[group(experts = 2, router = cosine, top_k = 1)]
        Sums,
        #[group(experts = 4, router = linear, top_k = 1)]
        Names,
        #[group(experts = 2, always)]
        Shared,
    }

    /// `Young`, two children of each that is routed.
    #[moe(router = gaussian(dim = 5, covariance = shared), top_k = 2, balance = bias(0.01))]
    pub(crate) enum Elder {
        #[group(experts = 6, top_k = 4)]
        Words,
        #[group(experts = 4, router = cosine, top_k = 2)]
        Sums,
        #[group(experts = 8, router = linear, top_k = 2)]
        Names,
        #[group(experts = 2, always)]
        Shared,
    }

    #[moe(levels = [4], top_k = 2, router = linear, gate = scaled, combine = dispatch)]
    pub(crate) struct Scaled4;

    #[moe(levels = [4], top_k = 2, combine = dispatch)]
    pub(crate) struct Dispatched4;

    #[moe(levels = [8], top_k = 4, router = linear, gate = scaled, combine = dispatch)]
    pub(crate) struct Scaled8;

    #[moe(groups = 2, experts = 2, top_k = [1, 1], route_per = task)]
    pub(crate) struct ByTask2x2;

    #[moe(groups = 2, experts = 6, top_k = [1, 3], route_per = task)]
    pub(crate) struct ByTask2x6;

    #[moe(levels = [3], top_k = 2, router = gaussian, experts_are = replicate, combine = merge, route_per = sequence(3))]
    pub(crate) struct Replicas3;

    #[moe(levels = [6], top_k = 4, router = gaussian, experts_are = replicate, combine = merge, route_per = sequence(3))]
    pub(crate) struct Replicas6;

    #[moe(levels = [4], top_k = 2, router = gaussian, experts_are = replicate, combine = merge, route_per = sequence(3))]
    pub(crate) struct Replicas4;

    #[moe(groups = 2, experts = 4, route_per = sequence(4))]
    pub(crate) struct OfSequences2x4;

    #[moe(levels = [2], router = tinyonn::gallery::LaplaceRouter)]
    pub(crate) struct Users2;

    #[moe(levels = [4], router = tinyonn::gallery::LaplaceRouter)]
    pub(crate) struct Users4;
}

/// A model of `name` with weights of order one; of replicas all have learnt something.
pub(crate) fn young(name: &str, cfg: &Arch, dtype: DType) -> ParamStore {
    let variant = variant(name);
    let slices = variant.spec.experts_are == ExpertsAre::Slice;
    let owners = slices.then(|| models::partition(Partition::Random, &variant.spec, cfg).unwrap());
    let mut store = upcycle(weights(cfg, dtype), cfg, variant, &owners.unwrap_or_default(), 4).unwrap();
    grow_deltas(&mut store, cfg, &variant.spec).unwrap();
    for (seed, (_, var)) in store.iter().filter(|(name, _)| is_delta(name)).enumerate() {
        let draw = inputs(seed as u64, &[var.dims()]).remove(0);
        var.set(&(draw * 0.1).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
    }
    store
}

pub(crate) fn expansion<'a>(cfg: &'a Arch, from: &str, to: &str, new_neurons: usize) -> Expansion<'a> {
    Expansion::new(cfg, [variant(from), variant(to)], None, new_neurons, 9).unwrap()
}

fn logits((cfg, name, store): (&Arch, &str, &ParamStore), pass: &Pass) -> Tensor {
    models::sparse(cfg, variant(name), store, DType::F32).logits(&ids((2, 9)), pass, None).unwrap()
}

/// Slices are bit-equal all active, and routed where no gate divides; a scaled gate's p is divided by another sum, and replicas are added up in another order: a
/// few roundings of numbers of order one.
#[rstest]
#[case::shared("Moe2x4", "Moe2x8", 0, 0.0)]
#[case::new_neurons("Moe2x4", "Moe2x8", 3, 0.0)]
#[case::every_router("Young", "Elder", 0, 0.0)]
#[case::every_router_and_new_neurons("Young", "Elder", 2, 0.0)]
#[case::a_scaled_gate("Scaled4", "Scaled8", 0, 1e-5)]
#[case::a_scaled_gate_and_new_neurons("Scaled4", "Scaled8", 5, 1e-5)]
#[case::replicas("Replicas3", "Replicas6", 0, 1e-5)]
#[case::shipped_replicas("Smear", "SmearDoubled", 0, 1e-5)]
fn a_grown_model_computes_what_it_computed(
    #[case] from: &str,
    #[case] to: &str,
    #[case] new_neurons: usize,
    #[case] roundings: f32,
) {
    let cfg = config(40, true);
    let before = young(from, &cfg, DType::F32);
    let expansion = expansion(&cfg, from, to, new_neurons);
    let (after, wide) = (expansion.store(&before).unwrap(), expansion.arch());
    assert!(expansion.keeps_routing());
    let expected = expected_variant_tensors(&wide, variant(to)).unwrap();
    assert!(after.names().filter(|name| !is_delta(name)).eq(expected.keys().map(String::as_str)));
    let slices = variant(from).spec.experts_are == ExpertsAre::Slice;
    for (pass, most) in [(Pass::all(), if slices { 0.0 } else { roundings }), (Pass::routed(), roundings)] {
        let [old, new] = [logits((&cfg, from, &before), &pass), logits((&wide, to, &after), &pass)];
        assert!(apart(&old, &new) <= most, "{}", apart(&old, &new));
        assert!(most > 0.0 || bits(&old) == bits(&new));
    }
    // Nine tokens are none that a sequence of 64 decides for.
    let [all, routed] = [Pass::all(), Pass::routed()].map(|pass| logits((&cfg, from, &before), &pass));
    assert_eq!(bits(&all) == bits(&routed), from == "Smear");
}

/// Beyond 512 neurons a product adds up blocks, whose bounds move with its length.
#[rstest]
#[case(500, 1, 0.0)]
#[case(500, 40, 1e-4)]
#[case(900, 100, 1e-4)]
fn new_neurons_change_roundings_alone_where_a_product_adds_blocks(
    #[case] width: usize,
    #[case] new_neurons: usize,
    #[case] most: f32,
) {
    let cfg = config(width, true);
    let before = young("Moe2x4", &cfg, DType::F32);
    let expansion = expansion(&cfg, "Moe2x4", "Moe2x8", new_neurons);
    let after = expansion.store(&before).unwrap();
    let old = logits((&cfg, "Moe2x4", &before), &Pass::all());
    assert!(apart(&old, &logits((&expansion.arch(), "Moe2x8", &after), &Pass::all())) <= most);
}

/// A family takes the neurons of its parent, nearly evenly, and a path the children of what it took.
#[test]
fn families_share_neurons_and_paths() {
    let cfg = config(40, true);
    let before = young("ByTask2x2", &cfg, DType::F32);
    let expansion = expansion(&cfg, "ByTask2x2", "ByTask2x6", 0);
    let after = expansion.store(&before).unwrap();
    assert_eq!(expansion.parents(), [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]]);
    let owners =
        |store: &ParamStore| -> Vec<u32> { store.get("model.layers.1.mlp.neuron_expert").unwrap().to_vec1().unwrap() };
    let (old, new) = (owners(&before), owners(&after));
    assert!(old.iter().zip(&new).all(|(old, new)| new / 3 == *old));
    let width = |expert: u32| new.iter().filter(|owner| **owner == expert).count();
    let widths: Vec<usize> = (0..12).map(width).collect();
    assert!(widths.iter().all(|width| (3..=4).contains(width)), "{widths:?}");

    // On disk, with its tasks' paths.
    let (parent, dir) = saved("ByTask2x2", &cfg, &before);
    let grown = parent.path().join("grown");
    let staged = StagedFolder::new(&grown).unwrap();
    expand_folder(&TinyOnnFolder::open(&dir).unwrap(), &expansion, &staged).unwrap();
    staged.publish().unwrap();
    let taken = TinyOnnFolder::open(&grown).unwrap().config().paths[1].experts[0].clone();
    let of_parent = |spec: &MoeSpec| Labels::random(2, 2, spec, 3).paths.experts[1][0].clone();
    let children = of_parent(&variant("ByTask2x2").spec).into_iter().flat_map(|taken| 3 * taken..3 * taken + 3);
    assert_eq!(taken, children.collect::<Vec<u32>>());
    let pass = Pass { tasks: Some(Arc::from([0, 1])), ..Pass::routed() };
    let [old, new] =
        [&dir, &grown].map(|dir| load_model(dir, &CPU, None).unwrap().logits(&ids((2, 9)), &pass).unwrap());
    assert_eq!(bits(&old), bits(&new));
}

/// Whoever had most to do has children first, and each layer decides for itself.
#[test]
fn new_children_go_to_the_overloaded() {
    let cfg = config(40, true);
    let load = [vec![1.0, 9.0, 2.0, 1.0, 0.0, 0.0, 0.0, 5.0], vec![4.0, 4.0, 4.0, 4.0, 9.0, 8.0, 1.0, 1.0]];
    let grown = Expansion::new(&cfg, [variant("Moe2x4"), variant("Moe2x6")], Some(&load), 0, 0).unwrap();
    assert_eq!(grown.parents()[0], [0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7]);
    assert_eq!(grown.parents()[1], [0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7]);
    assert!(!grown.keeps_routing());
    let before = young("Moe2x4", &cfg, DType::F32);
    let after = grown.store(&before).unwrap();
    let all = Pass::all();
    assert_eq!(
        bits(&logits((&cfg, "Moe2x4", &before), &all)),
        bits(&logits((&cfg, "Moe2x6", &after), &all)),
        "all active nothing changes, whoever has how many children"
    );
}

/// A folder of a model whose tasks have paths, where it is routed by them.
fn saved(name: &str, cfg: &Arch, store: &ParamStore) -> (TempDir, PathBuf) {
    let (parent, variant) = (tempfile::tempdir().unwrap(), variant(name));
    let dir = parent.path().join("young");
    let mut tinyonn = TinyOnnConfig { active: ActiveMode::Routed, ..TinyOnnConfig::new(variant, "random", 3) };
    if name.starts_with("ByTask") {
        let paths = Labels::random(2, 2, &variant.spec, 3).paths.experts.into_iter().enumerate();
        let path = |(task, experts)| tinyonn::checkpoint::TaskPath { task: format!("task{task}"), experts };
        tinyonn.paths = paths.map(path).collect();
    }
    TinyOnnFolder::save(&dir, &cfg.to_json(), &tinyonn, store, None).unwrap();
    (parent, dir)
}

/// What is written is an ordinary checkpoint of the larger variant, in the types that it was stored in; the dense model in it is what it was, with rows of zeros.
#[rstest]
#[case("Moe2x4", "Moe2x8", 0)]
#[case("Moe2x4", "Moe2x8", 3)]
#[case("Replicas3", "Replicas6", 0)]
fn a_grown_checkpoint_reloads_and_exports(
    #[case] from: &str,
    #[case] to: &str,
    #[case] new_neurons: usize,
    #[values(DType::F32, DType::BF16)] dtype: DType,
) {
    let cfg = config(40, true);
    let before = young(from, &cfg, dtype);
    let (parent, dir) = saved(from, &cfg, &before);
    let [grown, dense] = ["grown", "dense"].map(|name| parent.path().join(name));
    let expansion = expansion(&cfg, from, to, new_neurons);
    let staged = StagedFolder::new(&grown).unwrap();
    expand_folder(&TinyOnnFolder::open(&dir).unwrap(), &expansion, &staged).unwrap();
    staged.publish().unwrap();
    let opened = TinyOnnFolder::open(&grown).unwrap();
    assert_eq!((opened.variant().spec.name.as_ref(), opened.arch()), (to, &expansion.arch()));
    assert_eq!(opened.config().active, ActiveMode::Routed);
    let [old, new] = [&dir, &grown].map(|dir| load_model(dir, &CPU, Some(DType::F32)).unwrap());
    for mode in [ActiveMode::All, ActiveMode::Routed] {
        let [old, new] = [&old, &new].map(|model| model.logits(&ids((2, 9)), &mode.pass()).unwrap());
        assert!(apart(&old, &new) <= 1e-5);
    }
    if variant(from).spec.experts_are == ExpertsAre::Replicate {
        return;
    }
    export_dense(&grown, &dense).unwrap();
    let store = ModelFolder::open(&dense).unwrap().load(&CPU, None).unwrap();
    for (name, var) in store.iter() {
        let old = before.get(name).unwrap();
        assert_eq!(var.dtype(), dtype);
        assert_eq!(bits(&var.narrow(0, 0, old.dim(0).unwrap()).unwrap()), bits(old), "{name}");
        let rows = var.dim(0).unwrap() - old.dim(0).unwrap();
        assert_eq!(rows, if name.contains(".mlp.") { 8 * new_neurons } else { 0 }, "{name}");
        if rows > 0 {
            let values = bits(&var.narrow(0, 40, rows).unwrap());
            assert_eq!(values.iter().all(|bits| *bits == 0), name.ends_with("down_proj.weight"), "{name}");
        }
    }
}

#[rstest]
#[case::unknown("Moe2x4", "Nobody", None, 0, &["`Nobody`", "there is none of that name"])]
#[case::fewer_groups("Moe2x4", "Moe7x3", None, 0, &["`Moe7x3`", "is not that of `Moe2x4`, grown", "spec.levels"])]
#[case::another_unit("OfSequences2x4", "Moe2x8", None, 0, &["spec.route_per", "`OfSequences2x4`"])]
#[case::another_gate("Scaled4", "Moe2x8", None, 0, &["is not that of `Scaled4`, grown"])]
#[case::fewer("Moe2x8", "Moe2x6", None, 0, &["`expert_router` has 6 choices, and had 8"])]
#[case::as_many("Moe2x4", "Moe2x4", None, 0, &["as many experts as `Moe2x4`"])]
#[case::no_experts("OwnGate", "Moe2x4", None, 0, &["`OwnGate` has no experts behind routers"])]
#[case::a_users_router("Users2", "Users4", None, 0, &["`expert_router` is of a type", "`Users4`"])]
#[case::uneven_replicas("Replicas3", "Replicas4", None, 0, &["3 replicas become 4 in families of uneven size"])]
#[case::neurons_of_replicas("Replicas3", "Replicas6", None, 2, &["`new_neurons`", "no neurons of their own"])]
#[case::another_load("Moe2x4", "Moe2x8", Some(vec![vec![1.0; 8]]), 0, &["`load`", "2 layers of 8"])]
#[case::a_load_that_counts_nothing("Moe2x4", "Moe2x8", Some(vec![vec![f64::NAN; 8]; 2]), 0, &["`load`"])]
fn what_cannot_grow_is_refused_by_name(
    #[case] from: &str,
    #[case] to: &str,
    #[case] load: Option<Vec<Vec<f64>>>,
    #[case] new_neurons: usize,
    #[case] words: &[&str],
) {
    let cfg = config(40, true);
    let grown = tinyonn::moe::variant(to).and_then(|to| {
        Expansion::new(&cfg, [variant(from), to], load.as_deref(), new_neurons, 0).map(|grown| grown.arch())
    });
    let refused = message(grown);
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
}

#[test]
fn an_expert_of_fewer_neurons_than_children_is_refused_by_name() {
    let cfg = config(20, true);
    let mut before = young("Moe2x4", &cfg, DType::F32);
    let owners: Vec<u32> = (0..20).map(|i: u32| i.min(7)).collect();
    before.remove("model.layers.1.mlp.neuron_expert");
    before.insert("model.layers.1.mlp.neuron_expert", Tensor::new(owners, &CPU).unwrap()).unwrap();
    let refused = message(expansion(&cfg, "Moe2x4", "Moe2x8", 0).store(&before));
    let words = ["layers.1.mlp.neuron_expert", "expert 0 has 1 neurons for 2 children", "new_neurons"];
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    // With neurons of their own they need none of their parent's.
    expansion(&cfg, "Moe2x4", "Moe2x8", 1).store(&before).unwrap();
}

#[test]
fn a_checkpoint_of_another_variant_than_was_to_grow_is_refused() {
    let cfg = config(40, true);
    let (parent, dir) = saved("Moe7x3", &cfg, &young("Moe7x3", &cfg, DType::F32));
    let staged = StagedFolder::new(parent.path().join("grown")).unwrap();
    let opened = TinyOnnFolder::open(&dir).unwrap();
    let refused = message(expand_folder(&opened, &expansion(&cfg, "Moe2x4", "Moe2x8", 0), &staged));
    assert!(refused.contains("is of `Moe7x3`, and `Moe2x4` was to grow"), "{refused}");
}
