//! Which units are touched: those that a score points at, and random ones to hold them against.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use tinyonn::imaging::{Integral, NeuronScan, Score};
use tinyonn::random::{self, Rng};

/// Units by task and layer.
pub(super) type Units = Vec<Vec<Vec<usize>>>;

/// Draws of random units.
const DRAWS: usize = 3;
/// What the name of a source ends with where its units are weakened to the norm of random ones.
pub const AS_RANDOM: &str = "_as_random";
/// The same, to the norm of others that were drawn to have as much.
pub const AS_OTHERS: &str = "_as_others";

/// A layer's units, experts or neurons.
pub(super) struct Layers<'a> {
    /// `expert` or `neuron`.
    pub(super) unit: &'static str,
    /// The unit of neuron i, `[layer][i]`.
    pub(super) owner: &'a [Vec<u32>],
    /// Units of a layer.
    pub(super) count: usize,
    /// Of these, touched.
    pub(super) touched: usize,
    /// Each unit's share of the output power, `[task][layer][unit]`.
    pub(super) power: Vec<Vec<Vec<f64>>>,
}

/// What a score points at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Highest { score: Score, contrasted: bool },
    LowestSps,
}

/// Random units, to hold a source's against.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// Of all units.
    Random,
    /// Of the units that are not the source's own, as many, with their output norm.
    OfNorm(Source),
}

pub(super) const SPS: Source = Source::Highest { score: Score::Sps, contrasted: false };
const ACTIVATION: Source = Source::Highest { score: Score::Activation, contrasted: false };
pub(super) const CONTROLS: [Control; 3] = [Control::Random, Control::OfNorm(SPS), Control::OfNorm(ACTIVATION)];

pub(super) fn sources() -> Vec<Source> {
    let scores = [
        Score::Sps,
        Score::Activation,
        Score::Surprise,
        Score::ActivationPlusSurprise,
        Score::Taylor,
        Score::TaylorMagnitude,
    ];
    let highest =
        scores.into_iter().flat_map(|score| [false, true].map(|contrasted| Source::Highest { score, contrasted }));
    highest.chain([Source::LowestSps]).collect()
}

impl Source {
    pub(super) fn name(self) -> String {
        match self {
            Self::Highest { score, contrasted: false } => score.name().into(),
            Self::Highest { score, contrasted: true } => format!("{}_contrasted", score.name()),
            Self::LowestSps => "sps_lowest".into(),
        }
    }

    /// The units of the highest values, ties to the lower index.
    pub(super) fn choose(self, scan: &NeuronScan, of: &Layers<'_>) -> Units {
        let integral = match self {
            Self::Highest { score, contrasted: false } => Integral::new(scan, score),
            Self::Highest { score, contrasted: true } => Integral::new(scan, score).contrasted(),
            Self::LowestSps => Integral::new(scan, Score::Sps).negated(),
        };
        let best = |values: &Vec<f64>| {
            let mut order: Vec<usize> = (0..of.count).collect();
            order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
            order.truncate(of.touched);
            order
        };
        integral.by_unit(of.owner, of.count).iter().map(|layers| layers.iter().map(best).collect()).collect()
    }
}

impl Control {
    pub(super) fn name(self) -> String {
        match self {
            Self::Random => "random".into(),
            Self::OfNorm(source) => format!("random_of_norm_of_{}", source.name()),
        }
    }

    /// The sources whose units, weakened to its norm, it is held against.
    pub(super) fn held_against(&self) -> &[Source] {
        match self {
            Self::Random => &[SPS, ACTIVATION],
            Self::OfNorm(source) => std::slice::from_ref(source),
        }
    }

    /// The name of a source's units weakened to its norm.
    pub(super) fn weakened(self, source: Source) -> String {
        let to = match self {
            Self::Random => AS_RANDOM,
            Self::OfNorm(_) => AS_OTHERS,
        };
        source.name() + to
    }

    /// Several draws, all from one stream; of draws that are all the same, one.
    pub(super) fn draw(self, scan: &NeuronScan, of: &Layers<'_>, seed: u64) -> Vec<Units> {
        let mut rng = random::stream(seed, &format!("causal/{}/{}", of.unit, self.name()));
        let matched = match self {
            Self::Random => None,
            Self::OfNorm(source) => Some(source.choose(scan, of)),
        };
        let mut layer = |task: usize, layer: usize| match &matched {
            None => drawn((0..of.count).collect(), of.touched, &mut rng),
            Some(matched) => random_of_norm(&of.power[task][layer], &matched[task][layer], &mut rng),
        };
        let (tasks, layers) = (of.power.len(), of.owner.len());
        let mut units = || (0..tasks).map(|task| (0..layers).map(|at| layer(task, at)).collect()).collect();
        let mut draws: Vec<Units> = (0..DRAWS).map(|_| units()).collect();
        draws.dedup();
        draws
    }
}

fn drawn(mut units: Vec<usize>, count: usize, rng: &mut Rng) -> Vec<usize> {
    units.shuffle(rng);
    units.truncate(count);
    units
}

/// As many random units as `matched`, none of them of it, whose power adds up to as much: drawn, then swapped one by one as long as that
/// brings the sum nearer, until it is within a hundredth. Where even the strongest of the others have too little, it is these; the
/// weakest, where they have too much.
#[must_use]
pub fn random_of_norm(power: &[f64], matched: &[usize], rng: &mut Rng) -> Vec<usize> {
    const CLOSE: f64 = 0.01;
    const TRIES: usize = 200;
    let sum = |units: &[usize]| units.iter().map(|unit| power[*unit]).sum::<f64>();
    let target = sum(matched);
    let mut is_matched = vec![false; power.len()];
    matched.iter().for_each(|unit| is_matched[*unit] = true);
    let mut others: Vec<usize> = (0..power.len()).filter(|unit| !is_matched[*unit]).collect();
    let touched = matched.len().min(others.len());
    others.sort_by(|a, b| power[*a].total_cmp(&power[*b]));
    let (weakest, strongest) = (&others[..touched], &others[others.len() - touched..]);
    if sum(strongest) <= target {
        return strongest.to_vec();
    }
    if sum(weakest) >= target {
        return weakest.to_vec();
    }
    others.shuffle(rng);
    let mut held = sum(&others[..touched]);
    for _ in 0..TRIES * touched {
        if (held - target).abs() <= CLOSE * target {
            break;
        }
        let (out, into) = (rng.random_range(0..touched), rng.random_range(touched..others.len()));
        let swapped = held - power[others[out]] + power[others[into]];
        if (swapped - target).abs() < (held - target).abs() {
            others.swap(out, into);
            held = swapped;
        }
    }
    others.truncate(touched);
    others
}
