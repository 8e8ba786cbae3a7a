//! What labels ask of one run of equal routers: which choices of which router each class of rows takes.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::imaging::labels::nodes_of_path;
use crate::moe::{MoeSpec, RouterSpec};

/// What the paths of one layer's classes ask of one run of routers.
pub(super) struct Targets {
    pub(super) parents: usize,
    pub(super) choices: usize,
    /// `taken[class]`: choices (parent · choices + choice, of this run) on the class's path.
    taken: Vec<Vec<usize>>,
}

impl Targets {
    pub(super) fn new(spec: &MoeSpec, paths: &[Vec<u32>], (level, run): (usize, usize)) -> Self {
        let runs = &spec.levels[level].routers;
        let nodes = |runs: &[RouterSpec]| runs.iter().map(|run| run.parents * run.choices).sum::<usize>();
        let own = nodes(&runs[..run])..nodes(&runs[..=run]);
        let of_class = |path: &Vec<u32>| {
            let taken = nodes_of_path(path, level, spec).into_iter();
            taken.filter(|node| own.contains(node)).map(|node| node - own.start).collect()
        };
        Self { parents: runs[run].parents, choices: runs[run].choices, taken: paths.iter().map(of_class).collect() }
    }

    /// Without choices that no row of the training `classes` takes, whose targets are `train`: a closed form gives those no probability at all, so
    /// that a single validation row which asks for one would drown all others.
    pub(super) fn known_to(mut self, train: &Self, classes: &[u32]) -> Self {
        let mut known = vec![false; self.parents * self.choices];
        let mut seen = vec![false; train.taken.len()];
        classes.iter().for_each(|class| seen[*class as usize] = true);
        let taken = train.taken.iter().zip(&seen).filter(|(_, seen)| **seen).flat_map(|(taken, _)| taken);
        taken.for_each(|node| known[*node] = true);
        self.taken.iter_mut().for_each(|taken| taken.retain(|node| known[*node]));
        self
    }

    /// The choices each class takes at one parent.
    pub(super) fn of_parent(&self, parent: usize) -> Vec<Vec<usize>> {
        let of_class = |nodes: &Vec<usize>| {
            nodes.iter().filter(|node| *node / self.choices == parent).map(|node| node % self.choices).collect()
        };
        self.taken.iter().map(of_class).collect()
    }

    /// Target shares `[classes, parents · choices]`: equal among the choices taken at each parent that the path passes.
    pub(super) fn table(&self, device: &Device) -> Result<Tensor> {
        let width = self.parents * self.choices;
        let mut shares = vec![0f32; self.taken.len() * width];
        for (row, nodes) in shares.chunks_exact_mut(width).zip(&self.taken) {
            for node in nodes {
                let beside = nodes.iter().filter(|other| *other / self.choices == node / self.choices).count();
                row[*node] = 1.0 / beside as f32;
            }
        }
        Ok(Tensor::from_vec(shares, (self.taken.len(), width), device)?)
    }
}
