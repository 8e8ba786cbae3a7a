//! How much labels say: how many paths there are, how evenly they use the experts, how much of them tasks share.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Labels;
use crate::moe::MoeSpec;

/// How much the labels say.
///
/// ```
/// use tinyonn::decoder::PathTable;
/// use tinyonn::gallery::Mixtral;
/// use tinyonn::imaging::{LabelStatistics, Labels};
///
/// // Two tasks that take the same two experts say as much as one.
/// let labels = Labels { paths: PathTable { experts: vec![vec![vec![0, 1]]; 2] } };
/// let found: LabelStatistics = labels.statistics(&Mixtral::SPEC);
/// assert_eq!((found.distinct_paths, found.overlap), (1, 1.0));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LabelStatistics {
    /// Tasks.
    pub tasks: usize,
    /// Different whole paths among the tasks.
    pub distinct_paths: usize,
    /// [`LayerStatistics::entropy`], mean over layers.
    pub entropy: f64,
    /// [`LayerStatistics::overlap`], mean over layers.
    pub overlap: f64,
    /// By layer.
    pub layers: Vec<LayerStatistics>,
}

/// How much the labels of one layer say.
///
/// ```
/// use tinyonn::imaging::{Labels, LayerStatistics};
/// use tinyonn::gallery::Mixtral;
///
/// let labels = Labels::random(4, 2, &Mixtral::SPEC, 0);
/// let of_layer: &LayerStatistics = &labels.statistics(&Mixtral::SPEC).layers[1];
/// assert!(of_layer.distinct_paths <= 4 && (0.0..=1.0).contains(&of_layer.overlap));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LayerStatistics {
    /// Different paths among the tasks.
    pub distinct_paths: usize,
    /// Entropy in nats of the choice of an expert over tasks (each task's experts in equal shares).
    /// ln(active experts) if all tasks share one path, ln(N) if they use all experts alike.
    pub entropy: f64,
    /// |A ∩ B| / |A ∪ B| of two tasks' paths (Jaccard), mean over pairs: 1 if all tasks share one path (or there is but one task), 0
    /// if no two share an expert.
    pub overlap: f64,
}

impl Labels {
    /// Distinct paths, entropy and overlap, over all and by layer.
    ///
    /// ```
    /// use tinyonn::imaging::Labels;
    /// use tinyonn::moe::moe;
    /// use tinyonn::decoder::PathTable;
    ///
    /// #[moe(groups = 2, experts = 2, top_k = [1, 2])]
    /// struct Four;
    ///
    /// // Two layers; the tasks part ways in the second.
    /// let experts = vec![vec![vec![0, 1], vec![0, 1]], vec![vec![0, 1], vec![2, 3]]];
    /// let statistics = Labels { paths: PathTable { experts } }.statistics(&Four::SPEC);
    /// assert_eq!(statistics.distinct_paths, 2);
    /// assert_eq!([0, 1].map(|layer| statistics.layers[layer].overlap), [1.0, 0.0]);
    /// assert!(statistics.warning().is_some_and(|warning| warning.contains("layer 0")));
    /// ```
    #[must_use]
    pub fn statistics(&self, spec: &MoeSpec) -> LabelStatistics {
        let tasks = &self.paths.experts;
        let of_layer = |layer: usize| {
            let paths: Vec<&Vec<u32>> = tasks.iter().map(|task| &task[layer]).collect();
            LayerStatistics {
                distinct_paths: paths.iter().collect::<BTreeSet<_>>().len(),
                entropy: entropy(&paths, spec.experts()),
                overlap: overlap(&paths),
            }
        };
        let layers: Vec<LayerStatistics> = (0..tasks.first().map_or(0, Vec::len)).map(of_layer).collect();
        let mean = |of: fn(&LayerStatistics) -> f64| layers.iter().map(of).sum::<f64>() / layers.len().max(1) as f64;
        LabelStatistics {
            tasks: tasks.len(),
            distinct_paths: tasks.iter().collect::<BTreeSet<_>>().len(),
            entropy: mean(|layer| layer.entropy),
            overlap: mean(|layer| layer.overlap),
            layers,
        }
    }
}

impl LabelStatistics {
    /// The collapse of the labels in plain words, if there is one: the tasks share one path, or do so in some layers.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let remedy = "scan more text (`scan_tokens`), label by what sets tasks apart (`contrast = true`), or let tasks share the \
                      experts out (`balance = sinkhorn`)";
        if self.tasks < 2 {
            return None;
        }
        if self.distinct_paths == 1 {
            return Some(format!("all tasks share one path: routing cannot tell them apart; {remedy}"));
        }
        let shared = self.layers.iter().enumerate().filter(|(_, layer)| layer.distinct_paths == 1);
        let shared: Vec<String> = shared.map(|(layer, _)| layer.to_string()).collect();
        let layers = if shared.len() == 1 { "layer" } else { "layers" };
        (!shared.is_empty()).then(|| {
            format!("in {layers} {} all tasks share one path: routing says nothing there; {remedy}", shared.join(", "))
        })
    }
}

/// Of the choice of an expert when each task's experts have equal shares.
fn entropy(paths: &[&Vec<u32>], experts: usize) -> f64 {
    let mut share = vec![0f64; experts];
    for path in paths {
        for expert in *path {
            share[*expert as usize] += 1.0 / (path.len() * paths.len()) as f64;
        }
    }
    -share.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// The mean over pairs of |A ∩ B| / |A ∪ B|; the paths are ascending.
fn overlap(paths: &[&Vec<u32>]) -> f64 {
    let pairs = (0..paths.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
    let jaccard = |(a, b): (usize, usize)| {
        let shared = paths[a].iter().filter(|expert| paths[b].binary_search(expert).is_ok()).count();
        shared as f64 / (paths[a].len() + paths[b].len() - shared).max(1) as f64
    };
    let of_pairs: Vec<f64> = pairs.map(jaccard).collect();
    if of_pairs.is_empty() { 1.0 } else { of_pairs.iter().sum::<f64>() / of_pairs.len() as f64 }
}
