//! How well routers find the labelled paths on text they have not seen.
//!
//! At each level: |predicted ∩ label| / |label|, over nodes of that level: groups, then experts (of the whole path, so that an expert
//! of a wrong group is a miss). `chance` is the same figure for always answering the commonest path: that of the most rows, where tasks that
//! share a path count together.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::imaging::Labels;
use crate::imaging::inputs::Samples;
use crate::moe::{MoeModule, Scores, select};
use crate::{Error, Result};

/// Accuracy of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelAccuracy {
    /// By level, from the root.
    pub accuracy: Vec<f64>,
    /// By level, of the commonest path.
    pub chance: Vec<f64>,
}

/// Accuracy of all layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterAccuracy {
    /// By layer.
    pub layers: Vec<LevelAccuracy>,
    /// `confusion[task][decoded]`: the share of a task's rows whose predicted path overlaps most with another task's label
    /// (ties to the lower task), mean over layers.
    pub confusion: Vec<Vec<f64>>,
    /// `load[task][expert]`: the share of a task's rows that take an expert, mean over layers.
    pub load: Vec<Vec<f64>>,
}

impl RouterAccuracy {
    /// The mean over layers of a level's accuracy.
    #[must_use]
    pub fn mean(&self, level: usize) -> f64 {
        self.layers.iter().map(|layer| layer.accuracy[level]).sum::<f64>() / self.layers.len() as f64
    }

    /// The mean over layers of a level's chance.
    #[must_use]
    pub fn chance(&self, level: usize) -> f64 {
        self.layers.iter().map(|layer| layer.chance[level]).sum::<f64>() / self.layers.len() as f64
    }
}

/// Compares the routers' choices for `inputs`, by layer, with the labels of the rows' tasks.
///
/// # Errors
/// No inputs; inputs or labels of other layers or tasks; whatever the routers report.
pub fn router_accuracy(modules: &[&dyn MoeModule], inputs: &[Samples], labels: &Labels) -> Result<RouterAccuracy> {
    let tasks = labels.paths.experts.len();
    let experts = modules.first().map_or(0, |module| module.spec().experts());
    let layers = modules.len();
    let fits = layers > 0
        && inputs.len() == layers
        && modules.iter().all(|module| module.spec().experts() == experts)
        && inputs.iter().flat_map(|samples| &samples.tasks).all(|task| (*task as usize) < tasks);
    if !fits {
        let problem = format!("they are not of {tasks} tasks, and {layers} layers of {experts} experts");
        return Err(Error::setting("inputs", problem, "collect inputs, and label tasks, through this model"));
    }
    labels.check(modules[0].spec(), tasks, layers)?;
    let mut total = RouterAccuracy {
        layers: Vec::new(),
        confusion: vec![vec![0.0; tasks]; tasks],
        load: vec![vec![0.0; experts]; tasks],
    };
    for (layer, (module, samples)) in modules.iter().zip(inputs).enumerate() {
        let device = module.experts().device();
        let predicted = predict(*module, &samples.tensor(device)?)?;
        let mut rows = vec![0f64; tasks];
        samples.tasks.iter().for_each(|task| rows[*task as usize] += 1.0);
        let path = |task: usize| &labels.paths.experts[task][layer];
        let on_path =
            |task: usize| (0..tasks).filter(|other| path(*other) == path(task)).map(|other| rows[other]).sum::<f64>();
        let commonest = (0..tasks).rev().max_by(|a, b| on_path(*a).total_cmp(&on_path(*b))).unwrap_or(0);
        total.layers.push(by_level(*module, samples, labels, layer, commonest, &predicted));
        let share = |task: usize| 1.0 / (rows[task].max(1.0) * modules.len() as f64);
        for (path, task) in predicted.iter().zip(&samples.tasks) {
            let task = *task as usize;
            let overlap = |other: &usize| {
                let label = &labels.paths.experts[*other][layer];
                path.iter().filter(|expert| label.binary_search(expert).is_ok()).count()
            };
            let decoded = (0..tasks).rev().max_by_key(overlap).unwrap_or(0);
            total.confusion[task][decoded] += share(task);
            for expert in path {
                total.load[task][*expert as usize] += share(task);
            }
        }
    }
    Ok(total)
}

/// The path of each row, as wide as labels are.
fn predict(module: &dyn MoeModule, x_td: &Tensor) -> Result<Vec<Vec<u32>>> {
    select::paths(module.spec(), &Scores::new(module, x_td)?.by_level()?)
}

fn by_level(
    module: &dyn MoeModule,
    samples: &Samples,
    labels: &Labels,
    layer: usize,
    commonest: usize,
    predicted: &[Vec<u32>],
) -> LevelAccuracy {
    let spec = module.spec();
    let mut result = LevelAccuracy { accuracy: Vec::new(), chance: Vec::new() };
    for level in 0..spec.levels.len() {
        let node_of = spec.node_of_experts(level);
        let of_task: Vec<Vec<usize>> =
            (0..labels.paths.experts.len()).map(|task| labels.nodes(task, layer, level, spec)).collect();
        let overlap = |nodes: &[usize], task: usize| {
            let label = &of_task[task];
            nodes.iter().filter(|node| label.binary_search(node).is_ok()).count() as f64 / label.len().max(1) as f64
        };
        let (mut hit, mut chance) = (0.0, 0.0);
        for (path, task) in predicted.iter().zip(&samples.tasks) {
            let mut nodes: Vec<usize> = path.iter().map(|expert| node_of[*expert as usize]).collect();
            nodes.dedup();
            hit += overlap(&nodes, *task as usize);
            chance += overlap(&of_task[commonest], *task as usize);
        }
        let rows = samples.tasks.len().max(1) as f64;
        result.accuracy.push(hit / rows);
        result.chance.push(chance / rows);
    }
    result
}
