//! Labels: each task's optimal computation path, by layer: the best `k₁` groups by ∫SPS, in each the best `k₂` experts.

use std::collections::BTreeSet;

use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::Integral;
use super::partition::{balanced_k_means, distance, unit};
use crate::moe::{MoeSpec, select};
use crate::qwen3::PathTable;
use crate::random;
use crate::{Error, Result};

/// The paths of all tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Chosen experts, `[task][layer]`, ascending.
    pub paths: PathTable,
}

/// How much the labels say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelStatistics {
    /// Different whole paths among the tasks.
    pub distinct_paths: usize,
    /// Entropy in nats of the choice of an expert over tasks (each task's experts in equal shares), mean over layers.
    /// ln(active experts) if all tasks share one path, ln(N) if they use all experts alike.
    pub entropy: f64,
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
        let levels: Vec<Vec<Vec<Vec<f64>>>> = (0..spec.levels.len())
            .map(|level| {
                let nodes = spec.levels[level].nodes();
                // Experts that always take part are nobody's choice: they share a unit behind the nodes.
                let node_of = spec.node_of_experts(level);
                let node = |expert: &u32| node_of.get(*expert as usize).map_or(nodes as u32, |node| *node as u32);
                let of_level: Vec<Vec<u32>> = units.iter().map(|layer| layer.iter().map(node).collect()).collect();
                integral.by_unit(&of_level, nodes + 1)
            })
            .collect();
        let path = |task: usize, layer: usize| {
            let scores: Vec<Vec<f32>> = (0..levels.len())
                .map(|level| places(&levels[level][task][layer][..spec.levels[level].nodes()]))
                .collect();
            select::chosen(spec, |level| &scores[level])
        };
        let experts =
            (0..integral.neurons.len()).map(|task| (0..units.len()).map(|layer| path(task, layer)).collect()).collect();
        Self { paths: PathTable { experts } }
    }

    /// For replicas, whose experts all do the same at first: tasks of like neuron profiles (their integrals, contrasted, of unit
    /// norm) take the same experts. At each node the tasks that pass are clustered, each cluster has a choice, and a task takes the
    /// choices of the clusters nearest to it. Deterministic in `seed`.
    #[must_use]
    pub fn from_profiles(integral: &Integral, spec: &MoeSpec, seed: u64) -> Self {
        let (contrasted, widths) = (integral.contrasted(), select::path_widths(spec));
        let (tasks, layers) = (integral.neurons.len(), integral.neurons.first().map_or(0, Vec::len));
        let mut experts = vec![Vec::with_capacity(layers); tasks];
        for layer in 0..layers {
            let profiles: Vec<Vec<f64>> = contrasted.neurons.iter().map(|task| unit(task[layer].clone())).collect();
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

    /// Distinct paths and entropy.
    #[must_use]
    pub fn statistics(&self, spec: &MoeSpec) -> LabelStatistics {
        let tasks = &self.paths.experts;
        let distinct_paths = tasks.iter().collect::<BTreeSet<_>>().len();
        let layers = tasks.first().map_or(0, Vec::len);
        let entropy_of = |layer: usize| {
            let mut share = vec![0f64; spec.experts()];
            for task in tasks {
                for expert in &task[layer] {
                    share[*expert as usize] += 1.0 / (task[layer].len() * tasks.len()) as f64;
                }
            }
            -share.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
        };
        let entropy = (0..layers).map(entropy_of).sum::<f64>() / layers.max(1) as f64;
        LabelStatistics { distinct_paths, entropy }
    }
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
    profiles: &[Vec<f64>],
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
    let centre = |cluster: &Vec<usize>| -> Vec<f64> {
        let sum = |j: usize| cluster.iter().map(|task| profiles[*task][j]).sum::<f64>();
        (0..profiles[0].len()).map(|j| sum(j) / cluster.len() as f64).collect()
    };
    let centres: Vec<Vec<f64>> = clusters.iter().map(centre).collect();
    for task in members {
        let far = |choice: usize| match clusters.get(choice) {
            Some(cluster) if cluster.contains(task) => -1.0,
            Some(_) => distance(&profiles[*task], &centres[choice]),
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

/// How many scores each score exceeds: the same order and the same ties, exact in f32.
fn places(scores: &[f64]) -> Vec<f32> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    scores.iter().map(|score| sorted.partition_point(|other| other < score) as f32).collect()
}
