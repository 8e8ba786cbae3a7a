//! What a load looks like: how even it is, which experts are dead, how many a token takes, and when that is a collapse.
//!
//! Of the N experts of a layer that routers choose from (those that always take part are nobody's choice), n_i the tokens that took
//! expert i and q_i = n_i / Σ n: *evenness* is max n / mean n (1 is even) and the entropy H = −Σ q_i ln q_i (ln N is even); exp H is
//! the number of experts that the load is spread over. An expert without a token is *dead*.
//!
//! Labels leave experts out on purpose: five tasks of two experts each ask for ten of a hundred. So a load is held against what was
//! asked for: the load of the labels' own paths ([`LoadFigures::of_paths`]), or an even one ([`LoadFigures::even`]). A layer has
//! collapsed when it spreads over less than half as many experts as asked, exp H < ½ exp H_asked, or when its busiest expert
//! is more than twice as far above the mean as asked, max/mean > 2 (max/mean)_asked. Half and twice: one of two
//! tasks routed along the other's path is a collapse; routers that err now and then, or take tasks of uneven length, are none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MoeSpec;
use crate::decoder::PathTable;

/// The load of all layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LoadFigures {
    /// By layer.
    pub layers: Vec<LayerLoad>,
}

/// The load of one layer.
///
/// ```
/// use tinyonn::moe::{LayerLoad, LoadFigures, moe};
///
/// #[moe(levels = [4], top_k = 1)]
/// struct Four;
///
/// let load = LayerLoad::new(&Four::SPEC, &[50.0, 50.0, 0.0, 0.0]);
/// assert_eq!((load.max_over_mean, load.dead.as_slice(), load.busiest[0]), (2.0, &[2, 3][..], (0, 0.5)));
/// assert!((load.spread() - 2.0).abs() < 1e-9); // it is spread over two experts
/// assert!(load.taken().is_none()); // of a load by expert alone nobody knows how many a token took
///
/// let found = LoadFigures::new(&Four::SPEC, &[vec![50.0, 50.0, 0.0, 0.0]]);
/// let even = LoadFigures::even(&Four::SPEC, 1);
/// assert_eq!((&found.layers[0], found.dead(), even.dead(), even.evenness()), (&load, 2.0, 0.0, 1.0));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerLoad {
    /// max n / mean n; 0 without a token.
    pub max_over_mean: f64,
    /// H in nats.
    pub entropy: f64,
    /// H / ln N; 1 of a single expert.
    pub evenness: f64,
    /// Experts that no token took, ascending.
    pub dead: Vec<usize>,
    /// The experts that took most, at most three, and their shares q_i; the busiest first.
    pub busiest: Vec<(usize, f64)>,
    /// Tokens by the number of experts they took, those that always take part among them; of a load by expert alone, none.
    pub experts_taken: BTreeMap<usize, u64>,
}

/// How many experts tokens took.
///
/// ```
/// use tinyonn::moe::{LayerLoad, LoadFigures, Taken, moe};
///
/// #[moe(levels = [4], top_k = 2)]
/// struct Four;
///
/// let mut load = LayerLoad::new(&Four::SPEC, &[3.0, 2.0, 1.0, 0.0]);
/// load.experts_taken = [(1, 2), (2, 2)].into(); // two tokens took one expert, two took two
/// assert_eq!(load.taken(), Some(Taken { fewest: 1, mean: 1.5, most: 2 }));
/// let mut figures = LoadFigures::even(&Four::SPEC, 1);
/// assert_eq!(figures.taken(), None);
/// figures.layers = vec![load.clone(), load];
/// assert_eq!(figures.taken(), Some(Taken { fewest: 1, mean: 1.5, most: 2 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// The fewest that one took.
    pub fewest: usize,
    /// The mean over tokens.
    pub mean: f64,
    /// The most.
    pub most: usize,
}

impl Taken {
    /// Over the tokens of several layers; `None` without any.
    fn of(layers: &[LayerLoad]) -> Option<Self> {
        let each = || layers.iter().flat_map(|layer| &layer.experts_taken);
        let (sum, tokens) = each().fold((0.0, 0.0), |(sum, count), (experts, tokens)| {
            (sum + *experts as f64 * *tokens as f64, count + *tokens as f64)
        });
        let (fewest, most) = (each().map(|(experts, _)| *experts).min()?, each().map(|(experts, _)| *experts).max()?);
        Some(Self { fewest, mean: sum / tokens, most })
    }
}

/// The share of what is asked at which exp H is a collapse.
const SPREAD: f64 = 0.5;
/// The multiple of what is asked at which max/mean is one.
const PEAK: f64 = 2.0;

impl LayerLoad {
    /// Of the tokens that each expert took, in running index.
    #[must_use]
    pub fn new(spec: &MoeSpec, taken: &[f64]) -> Self {
        let taken = &taken[..taken.len().min(spec.routed_experts())];
        let total: f64 = taken.iter().sum();
        let share: Vec<f64> = taken.iter().map(|count| if total > 0.0 { count / total } else { 0.0 }).collect();
        let most = share.iter().copied().fold(0.0, f64::max);
        // −0 of one expert that takes all would be read as a defect.
        let entropy = share.iter().filter(|q| **q > 0.0).map(|q| -q * q.ln()).sum::<f64>().max(0.0);
        let mut busiest: Vec<(usize, f64)> = share.iter().copied().enumerate().filter(|(_, q)| *q > 0.0).collect();
        busiest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        busiest.truncate(3);
        let experts = taken.len() as f64;
        Self {
            max_over_mean: most * experts,
            entropy,
            evenness: if taken.len() > 1 { entropy / experts.ln() } else { 1.0 },
            dead: (0..taken.len()).filter(|expert| taken[*expert] <= 0.0).collect(),
            busiest,
            experts_taken: BTreeMap::new(),
        }
    }

    /// exp H: the number of experts that the load is spread over.
    #[must_use]
    pub fn spread(&self) -> f64 {
        self.entropy.exp()
    }

    /// How many experts tokens took.
    #[must_use]
    pub fn taken(&self) -> Option<Taken> {
        Taken::of(std::slice::from_ref(self))
    }

    fn collapsed(&self, asked: &Self) -> bool {
        !self.busiest.is_empty()
            && (self.spread() < SPREAD * asked.spread() || self.max_over_mean > PEAK * asked.max_over_mean)
    }
}

impl LoadFigures {
    /// Of the tokens that each expert of each layer took, `[layer][expert]`.
    #[must_use]
    pub fn new(spec: &MoeSpec, taken: &[Vec<f64>]) -> Self {
        Self { layers: taken.iter().map(|taken| LayerLoad::new(spec, taken)).collect() }
    }

    /// What labels ask for: the load if every token took the path of its task; `tokens[task]` counts them.
    ///
    /// ```
    /// use tinyonn::moe::{LoadFigures, moe};
    /// use tinyonn::decoder::PathTable;
    ///
    /// #[moe(groups = 2, experts = 2, top_k = [1, 1])]
    /// struct Quarter;
    ///
    /// // Three tasks, one layer: they ask for three of the four experts.
    /// let paths = PathTable { experts: vec![vec![vec![0]], vec![vec![1]], vec![vec![3]]] };
    /// let asked = LoadFigures::of_paths(&Quarter::SPEC, &paths, &[100.0, 100.0, 200.0]);
    /// assert_eq!((asked.layers[0].max_over_mean, &asked.layers[0].dead), (2.0, &vec![2]));
    /// // Routers that send all to expert 3 have collapsed.
    /// let found = LoadFigures::new(&Quarter::SPEC, &[vec![0.0, 0.0, 0.0, 200.0]]);
    /// let warnings = found.warnings(&Quarter::SPEC, &asked);
    /// assert!(warnings[0].starts_with("collapse: layer 0 ") && warnings[0].contains("expert 3"));
    /// assert!(asked.warnings(&Quarter::SPEC, &asked).is_empty());
    /// ```
    #[must_use]
    pub fn of_paths(spec: &MoeSpec, paths: &PathTable, tokens: &[f64]) -> Self {
        let of_layer = |layer: usize| {
            let mut taken = vec![0.0; spec.experts()];
            for (path, tokens) in paths.experts.iter().zip(tokens) {
                path[layer].iter().for_each(|expert| taken[*expert as usize] += tokens);
            }
            taken
        };
        let layers = paths.experts.first().map_or(0, Vec::len);
        Self::new(spec, &(0..layers).map(of_layer).collect::<Vec<_>>())
    }

    /// Every expert of each of `layers` layers takes as many tokens.
    #[must_use]
    pub fn even(spec: &MoeSpec, layers: usize) -> Self {
        Self::new(spec, &vec![vec![1.0; spec.experts()]; layers])
    }

    /// One sentence for each layer whose load has collapsed beside what was `asked` for: which layer, which experts, what to do.
    #[must_use]
    pub fn warnings(&self, spec: &MoeSpec, asked: &Self) -> Vec<String> {
        let layers = self.layers.iter().zip(&asked.layers).enumerate();
        let collapsed = layers.filter(|(_, (found, asked))| found.collapsed(asked));
        collapsed.map(|(layer, (found, asked))| sentence(spec, layer, found, asked)).collect()
    }

    /// The largest max/mean of a layer.
    #[must_use]
    pub fn max_over_mean(&self) -> f64 {
        self.layers.iter().map(|layer| layer.max_over_mean).fold(0.0, f64::max)
    }

    /// H / ln N, mean over layers.
    #[must_use]
    pub fn evenness(&self) -> f64 {
        self.layers.iter().map(|layer| layer.evenness).sum::<f64>() / self.layers.len().max(1) as f64
    }

    /// How many experts tokens took, over all layers.
    #[must_use]
    pub fn taken(&self) -> Option<Taken> {
        Taken::of(&self.layers)
    }

    /// Dead experts, mean over layers.
    #[must_use]
    pub fn dead(&self) -> f64 {
        self.layers.iter().map(|layer| layer.dead.len() as f64).sum::<f64>() / self.layers.len().max(1) as f64
    }
}

fn sentence(spec: &MoeSpec, layer: usize, found: &LayerLoad, asked: &LayerLoad) -> String {
    let last = spec.levels.len().saturating_sub(1);
    let name = |expert: usize| match last {
        0 => format!("expert {expert}"),
        _ => format!("expert {expert} ({})", spec.node_name(0, spec.node_of_experts(0)[expert])),
    };
    let busy: Vec<String> =
        found.busiest.iter().map(|(expert, share)| format!("{} {:.0} %", name(*expert), 100.0 * share)).collect();
    format!(
        "collapse: layer {layer} spreads its load over {:.1} experts, {:.1} are asked for ({} of {} take nothing; {}); fit the \
         routers to more text or for more steps, check that the labels tell tasks apart, or, if routers learn with the model, \
         declare `balance = loss(0.01)`",
        found.spread(),
        asked.spread(),
        found.dead.len(),
        spec.routed_experts(),
        busy.join(", "),
    )
}
