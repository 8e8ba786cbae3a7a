//! Labels: each task's optimal computation path, by layer: the best `k₁` groups by ∫SPS, in each the best `k₂` experts.

use std::collections::BTreeSet;

use rand::seq::SliceRandom as _;

use super::Integral;
use super::balanced_k_means::{Points, balanced_k_means};
use super::label_balance::{self, LabelBalance};
use crate::decoder::PathTable;
use crate::moe::{MoeSpec, select};
use crate::random;
use crate::{Error, Result};

/// The paths of all tasks.
///
/// ```
/// use tinyonn::gallery::TinyOnn;
/// use tinyonn::imaging::labels::{Labels, nodes_of_path};
///
/// let labels = Labels::random(5, 2, &TinyOnn::SPEC, 0);
/// labels.check(&TinyOnn::SPEC, 5, 2)?;
/// assert!(labels.check(&TinyOnn::SPEC, 6, 2).is_err()); // of five tasks
/// // A path takes eight groups, and eight experts of each.
/// assert_eq!((labels.paths.experts[0][0].len(), labels.nodes(0, 0, 0, &TinyOnn::SPEC).len()), (64, 8));
/// assert_eq!(nodes_of_path(&[0, 9, 37], 0, &TinyOnn::SPEC), [0, 3]); // expert 37 is in group 3
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Chosen experts, `[task][layer]`, ascending.
    pub paths: PathTable,
}

impl Labels {
    /// From scores integrated over tasks; `units[layer][i]` is the expert of neuron i. A group is scored by the mean over its
    /// neurons. Ties go to the lower index.
    ///
    /// ```
    /// use tinyonn::imaging::{Integral, Labels};
    /// use tinyonn::moe::moe;
    ///
    /// #[moe(groups = 2, experts = 2, top_k = [1, 1])]
    /// struct Small;
    ///
    /// // One layer of four neurons, each an expert of its own, on two tasks.
    /// let integral = Integral { neurons: vec![vec![vec![0.9, 0.1, -0.5, 0.0]], vec![vec![-0.9, 0.0, 0.2, 0.3]]] };
    /// let labels = Labels::from_integral(&integral, &[vec![0, 1, 2, 3]], &Small::SPEC);
    /// assert_eq!(labels.paths.experts, [[[0]], [[3]]]);
    /// assert_eq!(labels.statistics(&Small::SPEC).distinct_paths, 2);
    /// assert_eq!(labels.permuted(0).paths.experts, [[[3]], [[0]]]);
    /// ```
    #[must_use]
    pub fn from_integral(integral: &Integral, units: &[Vec<u32>], spec: &MoeSpec) -> Self {
        Self::balanced(integral, units, spec, LabelBalance::None)
    }

    /// As [`from_integral`](Self::from_integral), the scores of each router's choices balanced over the tasks that pass it, layer by
    /// layer: those of the root first, then, among the tasks that take a group, those of its experts.
    ///
    /// ```
    /// use tinyonn::imaging::{Integral, LabelBalance, Labels};
    /// use tinyonn::moe::moe;
    ///
    /// #[moe(levels = [2], top_k = 1)]
    /// struct Shared;
    ///
    /// let integral = Integral { neurons: vec![vec![vec![0.9, 0.0]], vec![vec![0.5, 0.4]]] };
    /// let labels = Labels::balanced(&integral, &[vec![0, 1]], &Shared::SPEC, LabelBalance::Sinkhorn);
    /// assert_eq!(labels.paths.experts, [[[0]], [[1]]]);
    /// ```
    #[must_use]
    pub fn balanced(integral: &Integral, units: &[Vec<u32>], spec: &MoeSpec, balance: LabelBalance) -> Self {
        let scores = node_scores(integral, units, spec);
        let widths = select::path_widths(spec);
        let mut experts = vec![Vec::with_capacity(units.len()); integral.neurons.len()];
        for layer in 0..units.len() {
            // By task and level.
            let mut scores: Vec<Vec<Vec<f64>>> =
                scores.iter().map(|task| task.iter().map(|level| level[layer].clone()).collect()).collect();
            if balance == LabelBalance::Sinkhorn {
                label_balance::even(spec, &widths, &mut scores);
            }
            for (task, scores) in scores.iter().enumerate() {
                experts[task].push(path(spec, scores));
            }
        }
        Self { paths: PathTable { experts } }
    }

    /// For replicas, whose experts all do the same at first: tasks of like neuron profiles (their integrals, contrasted, of unit
    /// norm) take the same experts. At each node the tasks that pass are clustered, each cluster has a choice, and a task takes the
    /// choices of the clusters nearest to it. Deterministic in `seed`.
    ///
    /// ```
    /// use tinyonn::gallery::Smear;
    /// use tinyonn::imaging::{Integral, Labels};
    ///
    /// // Tasks 0 and 2 use the neurons alike: they take the same replicas.
    /// let profiles = [[1.0, -1.0], [-1.0, 1.0], [1.0, -0.9]].map(|layer| vec![layer.to_vec()]).to_vec();
    /// let labels = Labels::from_profiles(&Integral { neurons: profiles }, &Smear::SPEC, 0);
    /// assert_eq!(labels.paths.experts[0], labels.paths.experts[2]);
    /// assert_ne!(labels.paths.experts[0], labels.paths.experts[1]);
    /// ```
    #[must_use]
    pub fn from_profiles(integral: &Integral, spec: &MoeSpec, seed: u64) -> Self {
        let (contrasted, widths) = (integral.contrasted(), select::path_widths(spec));
        let (tasks, layers) = (integral.neurons.len(), integral.neurons.first().map_or(0, Vec::len));
        let mut experts = vec![Vec::with_capacity(layers); tasks];
        for layer in 0..layers {
            let values: Vec<f64> = contrasted.neurons.iter().flat_map(|task| &task[layer]).copied().collect();
            let width = values.len() / tasks.max(1);
            let profiles = Points::new(values, width).of_unit_norm();
            let mut rng = random::stream(seed, &format!("labels/profiles/{layer}"));
            // The tasks that pass each node of the level before.
            let mut passing: Vec<Vec<usize>> = vec![(0..tasks).collect()];
            for (level, widths) in spec.levels.iter().zip(&widths) {
                let mut next = Vec::with_capacity(level.nodes());
                for ((members, slot), width) in passing.iter().zip(level.slots()).zip(widths) {
                    next.extend(deal(&profiles, members, (slot.nodes.len(), *width), &mut rng));
                }
                passing = next;
            }
            for (task, paths) in experts.iter_mut().enumerate() {
                let takes = passing.iter().enumerate().filter(|(_, tasks)| tasks.contains(&task));
                paths.push(takes.map(|(expert, _)| expert as u32).collect());
            }
        }
        Self { paths: PathTable { experts } }
    }

    /// Paths drawn at random: the control that knows nothing.
    #[must_use]
    pub fn random(tasks: usize, layers: usize, spec: &MoeSpec, seed: u64) -> Self {
        use rand::Rng as _;
        let mut rng = random::stream(seed, "labels/random");
        let mut path = || {
            let scores: Vec<Vec<f32>> =
                spec.levels.iter().map(|level| (0..level.nodes()).map(|_| rng.random()).collect()).collect();
            select::chosen(spec, |level| &scores[level])
        };
        let experts = (0..tasks).map(|_| (0..layers).map(|_| path()).collect()).collect();
        Self { paths: PathTable { experts } }
    }

    /// The same paths, each given to another task: the null that keeps everything but the task (a single task keeps its own).
    #[must_use]
    pub fn permuted(&self, seed: u64) -> Self {
        let tasks = self.paths.experts.len();
        let mut order: Vec<usize> = (0..tasks).collect();
        order.shuffle(&mut random::stream(seed, "labels/permuted"));
        // Along a random cycle through all tasks no task keeps its path.
        let mut experts = self.paths.experts.clone();
        for (at, task) in order.iter().enumerate() {
            experts[*task].clone_from(&self.paths.experts[order[(at + 1) % tasks]]);
        }
        Self { paths: PathTable { experts } }
    }

    /// Refuses labels of other tasks, layers or experts.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, spec: &MoeSpec, tasks: usize, layers: usize) -> Result<()> {
        let remedy = "label the tasks and layers of this model, for this variant";
        let paths = &self.paths.experts;
        if paths.len() != tasks || paths.iter().any(|task| task.len() != layers) {
            let problem = format!("they are not of {tasks} tasks and {layers} layers");
            return Err(Error::setting("labels", problem, remedy));
        }
        let experts = spec.experts();
        if let Some(expert) = paths.iter().flatten().flatten().find(|expert| **expert as usize >= experts) {
            return Err(Error::setting("labels", format!("one names expert {expert} of {experts}"), remedy));
        }
        Ok(())
    }

    /// The nodes of `level` that a path of (task, layer) passes through, ascending.
    #[must_use]
    pub fn nodes(&self, task: usize, layer: usize, level: usize, spec: &MoeSpec) -> Vec<usize> {
        nodes_of_path(&self.paths.experts[task][layer], level, spec)
    }
}

/// The mean score of each node's neurons, `[task][level][layer][node]`.
pub(super) fn node_scores(integral: &Integral, units: &[Vec<u32>], spec: &MoeSpec) -> Vec<Vec<Vec<Vec<f64>>>> {
    let mut by_task = vec![Vec::with_capacity(spec.levels.len()); integral.neurons.len()];
    for (level, declared) in spec.levels.iter().enumerate() {
        let nodes = declared.nodes();
        // Experts that always take part are nobody's choice: they share a unit behind the nodes.
        let node_of = spec.node_of_experts(level);
        let node = |expert: &u32| node_of.get(*expert as usize).map_or(nodes as u32, |node| *node as u32);
        let of_level: Vec<Vec<u32>> = units.iter().map(|layer| layer.iter().map(node).collect()).collect();
        for (task, mut layers) in integral.by_unit(&of_level, nodes + 1).into_iter().enumerate() {
            layers.iter_mut().for_each(|scores| scores.truncate(nodes));
            by_task[task].push(layers);
        }
    }
    by_task
}

/// The nodes of `level` that a path passes through, ascending. An expert that no router chooses is under no node.
#[must_use]
pub fn nodes_of_path(path: &[u32], level: usize, spec: &MoeSpec) -> Vec<usize> {
    let node_of = spec.node_of_experts(level);
    let under = |expert: &u32| node_of.get(*expert as usize).copied();
    path.iter().filter_map(under).collect::<BTreeSet<usize>>().into_iter().collect()
}

/// The tasks that take each of `choices` choices: each task the `top_k` whose clusters are nearest to it, its own first.
fn deal(
    profiles: &Points,
    members: &[usize],
    (choices, top_k): (usize, usize),
    rng: &mut random::Rng,
) -> Vec<Vec<usize>> {
    let mut takes = vec![Vec::new(); choices];
    if members.is_empty() {
        return takes;
    }
    let count = choices.min(members.len());
    let room: Vec<usize> = (0..count).map(|c| members.len() / count + usize::from(c < members.len() % count)).collect();
    let clusters = balanced_k_means(profiles, members, &room, rng);
    let centres: Vec<Vec<f64>> = clusters.iter().map(|cluster| profiles.mean(cluster)).collect();
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    for task in members {
        let far = |choice: usize| match clusters.get(choice) {
            Some(cluster) if cluster.contains(task) => -1.0,
            Some(_) => apart(profiles.row(*task), &centres[choice]),
            // Choices without a cluster come last.
            None => f64::INFINITY,
        };
        let mut order: Vec<usize> = (0..choices).collect();
        order.sort_by(|a, b| far(*a).total_cmp(&far(*b)).then(a.cmp(b)));
        order.truncate(top_k);
        order.into_iter().for_each(|choice| takes[choice].push(*task));
    }
    takes
}

/// The path by one layer's scores `[level][node]`.
pub(super) fn path(spec: &MoeSpec, scores: &[Vec<f64>]) -> Vec<u32> {
    let places: Vec<Vec<f32>> = scores.iter().map(|level| places(level)).collect();
    select::chosen(spec, |level| &places[level])
}

/// How many scores each score exceeds: the same order and the same ties, exact in f32.
fn places(scores: &[f64]) -> Vec<f32> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    scores.iter().map(|score| sorted.partition_point(|other| other < score) as f32).collect()
}
