//! Routing of every declared kind: selection, gates, routers, what shares a decision; each against its definition.

mod gates;
mod route_per;
mod routers;
mod select;

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use tinyonn::checkpoint::ParamStore;
use tinyonn::decoder::{Arch, Ask, FeedForward as _, Pass, Trace};
use tinyonn::moe::{AlwaysSpec, LevelSpec, MoeLayer, MoeSpec, RouterKind, RouterSpec, Scores, Variant};
use tinyonn::random;

use crate::tiny;

/// One variant, or more, of each kind that the grammar has; widths of 26 neurons hold them all.
pub(crate) mod declared {
    use candle_core::{DType, Tensor};
    use candle_nn::{Init, VarBuilder};
    use tinyonn::moe::{Router, RouterShape, moe};

    #[moe(levels = [5], router = linear, top_k = 2, gate = scaled)]
    pub(crate) struct Flat5;

    #[moe(levels = [3, 2, 2], router = [linear, gaussian(dim = 6), cosine], top_k = [2, 2, 1])]
    pub(crate) struct Deep3;

    #[moe(levels = [2, 3, 2, 2], router = gaussian(dim = 4, covariance = shared), top_k = [2, 1, 2, 1], gate = straight_through)]
    pub(crate) struct Deep4;

    /// Named, uneven, with experts that always take part.
    #[moe(router = gaussian(dim = 6), top_k = 2, gate = straight_through)]
    pub(crate) enum Cortex {
        #[group(experts = 5, top_k = 3)]
        Language,
        #[group(experts = 3, router = cosine)]
        Arithmetic,
        #[group(experts = 1)]
        Lone,
        #[group(experts = 2, always)]
        Shared,
    }

    #[moe(groups = 3, experts = 4, router = linear, top_k = [2, 2], gate = scaled)]
    pub(crate) struct Linear3x4;

    #[moe(groups = 3, experts = 4, router = cosine, top_k = [2, 2], gate = straight_through)]
    pub(crate) struct Cosine3x4;

    #[moe(groups = 3, experts = 4, router = random, top_k = [2, 2], gate = scaled)]
    pub(crate) struct Random3x4;

    #[moe(groups = 3, experts = 4, router = Prototypes, top_k = [2, 2], gate = scaled)]
    pub(crate) struct Custom3x4;

    #[moe(groups = 3, experts = 4, router = gaussian(reduce = sum, covariance = isotropic, dim = 6), top_k = [2, 2], gate = scaled)]
    pub(crate) struct Isotropic3x4;

    #[moe(groups = 3, experts = 4, router = gaussian(project = identity), top_k = [2, 2], gate = straight_through)]
    pub(crate) struct Identity3x4;

    #[moe(groups = 3, experts = 4, router = gaussian(project = random, dim = 6), top_k = [2, 2], gate = straight_through)]
    pub(crate) struct Drawn3x4;

    #[moe(groups = 3, experts = 4, router = linear, route_per = segment(3))]
    pub(crate) struct SegmentOf3;

    #[moe(groups = 3, experts = 4, route_per = segment(1), gate = scaled)]
    pub(crate) struct SegmentOf1;

    #[moe(groups = 3, experts = 4, route_per = sequence(2))]
    pub(crate) struct SequenceOf2;

    #[moe(groups = 3, experts = 4, route_per = task)]
    pub(crate) struct ByTask;

    #[moe(groups = 3, experts = 4, router = linear, combine = dispatch)]
    pub(crate) struct Dispatch3x4;

    #[moe(groups = 3, experts = 4, router = linear, pfag = entropy)]
    pub(crate) struct ByEntropy;

    #[moe(groups = 3, experts = 4, router = linear, pfag = nucleus(0.55), balance = bias(0.01))]
    pub(crate) struct ByNucleus;

    #[moe(groups = 3, experts = 4, router = linear, pfag = surprisal)]
    pub(crate) struct BySurprisal;

    #[moe(groups = 3, experts = 4, router = cosine, pfag = surprisal, route_per = segment(3))]
    pub(crate) struct SegmentBySurprisal;

    /// A router of one's own: ℓ_c = −½ ‖x − μ_c‖².
    #[derive(Debug)]
    pub(crate) struct Prototypes {
        prototype: Tensor,
        shape: RouterShape,
    }

    impl Router for Prototypes {
        fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> tinyonn::Result<Self> {
            let of = (shape.parents * shape.choices, shape.hidden);
            let spread = Init::Randn { mean: 0.0, stdev: 1.0 };
            let vb = vb.clone().set_dtype(DType::F32);
            Ok(Self { prototype: vb.get_with_hints(of, "prototype", spread)?, shape })
        }

        fn logits(&self, x_td: &Tensor) -> tinyonn::Result<Tensor> {
            let apart = x_td.unsqueeze(1)?.broadcast_sub(&self.prototype.unsqueeze(0)?)?;
            let logits = (apart.sqr()?.sum(2)? * -0.5)?;
            Ok(logits.reshape(((), self.shape.parents, self.shape.choices))?)
        }
    }
}

/// All of them that a router is asked in, token by token.
pub(crate) const BY_TOKEN: [&str; 13] = [
    "Flat5",
    "Deep3",
    "Deep4",
    "Cortex",
    "Linear3x4",
    "Cosine3x4",
    "Random3x4",
    "Custom3x4",
    "Isotropic3x4",
    "Identity3x4",
    "Drawn3x4",
    "ByEntropy",
    "ByNucleus",
];

/// Uneven hierarchies of 1 to 4 levels, drawn at random: runs of routers of any sizes, some with experts that always take part.
/// `wide` ones have routers of more choices than selection compares one by one.
pub(crate) fn hierarchy(seed: u64, wide: bool) -> MoeSpec {
    let mut rng = random::stream(seed, "tests/hierarchy");
    let depth = rng.random_range(1..=4);
    let mut nodes = 1;
    let mut levels = Vec::new();
    for level in 0..depth {
        let mut routers = Vec::new();
        let mut left = nodes;
        while left > 0 {
            let parents = rng.random_range(1..=left);
            let choices = if wide && level == 0 { rng.random_range(20..40) } else { rng.random_range(1..=4) };
            let top_k = match rng.random_range(0..3) {
                0 => 1,
                1 => choices,
                _ => rng.random_range(1..=choices),
            };
            let name = format!("run{level}_{left}").into();
            routers.push(RouterSpec { name, parents, choices, top_k, kind: RouterKind::Linear });
            left -= parents;
        }
        let level = LevelSpec { name: format!("level{level}").into(), routers: routers.into() };
        nodes = level.nodes();
        levels.push(level);
    }
    let always =
        (0..rng.random_range(0..3)).map(|at| AlwaysSpec { name: format!("always{at}").into(), experts: 1 + at });
    let spec = MoeSpec { levels: levels.into(), always: always.collect(), ..tiny::spec(&[(2, 1)]) };
    tinyonn::moe::check(&spec).unwrap();
    spec
}

/// ℓ of every router of `spec` for `t` inputs, `[t, P, C]` by level and run, of the size of `spread`.
pub(crate) fn scores(spec: &MoeSpec, seed: u64, t: usize, spread: f64) -> Scores {
    let mut rng = random::stream(seed, "tests/scores");
    let mut of_run = |run: &RouterSpec| {
        let values: Vec<f32> =
            (0..t * run.parents * run.choices).map(|_| (spread * (rng.random::<f64>() - 0.5)) as f32).collect();
        Tensor::from_vec(values, (t, run.parents, run.choices), &Device::Cpu).unwrap()
    };
    Scores { logits: spec.levels.iter().map(|level| level.routers.iter().map(&mut of_run).collect()).collect() }
}

/// The nodes under each router of a level, by adding up.
pub(crate) fn slots(level: &LevelSpec) -> Vec<(std::ops::Range<usize>, usize)> {
    let mut next = 0;
    let mut slots = Vec::new();
    for run in level.routers.iter() {
        for _ in 0..run.parents {
            slots.push((next..next + run.choices, run.top_k));
            next += run.choices;
        }
    }
    slots
}

/// log p of every node of a level given the node above it, by the definition, from ℓ of the nodes in a row.
pub(crate) fn log_softmax(level: &LevelSpec, logits: &[f64]) -> Vec<f64> {
    let mut log_p = vec![0.0; logits.len()];
    for (nodes, _) in slots(level) {
        let top = logits[nodes.clone()].iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = top + logits[nodes.clone()].iter().map(|l| (l - top).exp()).sum::<f64>().ln();
        nodes.for_each(|node| log_p[node] = logits[node] - total);
    }
    log_p
}

/// log p of every routed expert, walking from the root: by level, ℓ of the nodes in a row.
pub(crate) fn log_p_of_experts(spec: &MoeSpec, logits: &[Vec<f64>]) -> Vec<f64> {
    let mut above = vec![0.0];
    for (level, logits) in spec.levels.iter().zip(logits) {
        let own = log_softmax(level, logits);
        let mut joint = vec![0.0; own.len()];
        for ((nodes, _), above) in slots(level).into_iter().zip(&above) {
            nodes.for_each(|node| joint[node] = above + own[node]);
        }
        above = joint;
    }
    above
}

/// By level and input, ℓ of the nodes in a row.
pub(crate) fn by_input(scores: &Scores) -> Vec<Vec<Vec<f64>>> {
    let rows = |level: &Tensor| level.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let levels: Vec<Vec<Vec<f64>>> = scores.by_level().unwrap().iter().map(rows).collect();
    (0..levels[0].len()).map(|t| levels.iter().map(|level| level[t].clone()).collect()).collect()
}

/// The gates `[B·T][N]` that a layer says it used.
pub(crate) fn gates_of(trace: &Trace) -> Vec<Vec<f32>> {
    let gates = trace.gates.as_ref().expect("the layer is routed");
    gates.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

/// The same pass, asked for its gates.
pub(crate) fn asking_gates(pass: &Pass) -> Pass {
    Pass { ask: Ask { gates: true, ..Ask::default() }, ..pass.clone() }
}

/// The gates of one layer's pass over x `[B, T, d]`.
pub(crate) fn layer_gates(layer: &MoeLayer, x: &Tensor, pass: &Pass) -> Vec<Vec<f32>> {
    gates_of(&layer.forward(x, &asking_gates(pass)).unwrap().1)
}

/// A small model of a declared variant, its weights large enough that every part shows.
pub(crate) fn upcycled(name: &str) -> (Arch, &'static Variant, ParamStore) {
    let cfg = tiny::config(40);
    let (variant, store) = tiny::upcycled(&cfg, name, &tiny::dense_store(&cfg, 3));
    (cfg, variant, store)
}
