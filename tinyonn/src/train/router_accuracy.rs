//! How well routers find the labelled paths on text they have not seen, and how sure that is.
//!
//! At each level: |predicted ∩ label| / |label|, over nodes of that level: groups, then experts (of the whole path, so that an expert
//! of a wrong group is a miss). `chance` is the same figure for always answering the commonest path: that of the most rows, where classes that
//! share a path count together. Rows of one document are no independent draws, so intervals are bootstrapped over documents.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::imaging::inputs::Samples;
use crate::imaging::labels::nodes_of_path;
use crate::imaging::{Labels, RowLabels};
use crate::metrics::{Interval, by_cluster, interval};
use crate::moe::{MoeLayer, MoeSpec, Scores, select};
use crate::{Error, Result};

/// Accuracy of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LevelAccuracy {
    /// By level, from the root.
    pub accuracy: Vec<f64>,
    /// By level, of the commonest path.
    pub chance: Vec<f64>,
    /// By level, the accuracy with its 95 % interval over documents.
    pub intervals: Vec<Interval>,
}

/// Accuracy of all layers.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::imaging::{Labels, RowLabels, inputs::Samples};
/// use tinyonn::model::TinyOnnForCausalLm;
/// use tinyonn::moe::variant;
/// use tinyonn::phases::RunConfig;
/// use tinyonn::train::{LevelAccuracy, RouterAccuracy, router_accuracy, row_accuracy};
///
/// let (cfg, mixtral) = (RunConfig::default().dense.arch(64, "silu"), variant("Mixtral")?);
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let owners = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 8).collect(); cfg.num_hidden_layers];
/// let store = upcycle(dense, &cfg, mixtral, &owners, 0)?;
/// let model = TinyOnnForCausalLm::new(&cfg, mixtral, &store.builder(DType::F32, |_| false))?;
///
/// // Routers that nothing was fitted to, on rows of two tasks.
/// let values = (0..4 * cfg.hidden_size).map(|i| (i % 7) as f32 - 3.0).collect();
/// let rows = Samples { values, tasks: vec![0, 0, 1, 1], documents: vec![0, 1, 2, 3], ..Samples::default() };
/// let (layers, labels) = ([model.moe(0)], Labels::random(2, 1, &mixtral.spec, 0));
/// let found: RouterAccuracy = router_accuracy(&layers, &[rows.clone()], &labels)?;
/// assert!((0.0..=1.0).contains(&found.mean(0)) && found.chance(0) >= 0.5);
/// let by_row: Vec<LevelAccuracy> = row_accuracy(&layers, &[rows.clone()], &[RowLabels::of_tasks(&labels, 0, &rows.tasks)])?;
/// assert_eq!(by_row[0].accuracy, found.layers[0].accuracy);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouterAccuracy {
    /// By layer.
    pub layers: Vec<LevelAccuracy>,
    /// By level, the mean over layers with its 95 % interval over documents.
    pub intervals: Vec<Interval>,
    /// `confusion[task][decoded]`: the share of a task's rows whose predicted path overlaps most with another task's label
    /// (ties to the lower task), mean over layers.
    pub confusion: Vec<Vec<f64>>,
    /// `load[layer][task][expert]`: the share of a task's rows that take an expert. Experts of one number in two layers are two
    /// experts, so there is no mean over layers.
    pub load: Vec<Vec<Vec<f64>>>,
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
/// No inputs; inputs or labels of other layers or tasks; rows without their documents; whatever the routers report.
pub fn router_accuracy(modules: &[&MoeLayer], inputs: &[Samples], labels: &Labels) -> Result<RouterAccuracy> {
    let (tasks, layers) = (labels.paths.experts.len(), modules.len());
    let known = inputs.iter().flat_map(|samples| &samples.tasks).all(|task| (*task as usize) < tasks);
    let experts = check(modules, inputs, known)?;
    labels.check(modules[0].spec(), tasks, layers)?;
    let mut total = RouterAccuracy {
        layers: Vec::new(),
        intervals: Vec::new(),
        confusion: vec![vec![0.0; tasks]; tasks],
        load: vec![vec![vec![0.0; experts]; tasks]; layers],
    };
    let mut hits = Vec::new();
    for (layer, (module, samples)) in modules.iter().zip(inputs).enumerate() {
        let predicted = predict(module, samples)?;
        let found = Hits::new(module.spec(), &RowLabels::of_tasks(labels, layer, &samples.tasks), &predicted);
        total.layers.push(found.accuracy(samples));
        hits.push(found);
        let mut rows = vec![0f64; tasks];
        samples.tasks.iter().for_each(|task| rows[*task as usize] += 1.0);
        let share = |task: usize| 1.0 / rows[task].max(1.0);
        for (path, task) in predicted.iter().zip(&samples.tasks) {
            let task = *task as usize;
            let overlap = |other: &usize| {
                let label = &labels.paths.experts[*other][layer];
                path.iter().filter(|expert| label.binary_search(expert).is_ok()).count()
            };
            let decoded = (0..tasks).rev().max_by_key(overlap).unwrap_or(0);
            total.confusion[task][decoded] += share(task) / layers as f64;
            for expert in path {
                total.load[layer][task][*expert as usize] += share(task);
            }
        }
    }
    let levels = 0..modules[0].spec().levels.len();
    let rows = |level: usize| hits.iter().zip(inputs).flat_map(move |(hits, samples)| hits.rows(level, samples));
    total.intervals = levels.map(|level| interval(&by_cluster(rows(level)), SEED)).collect();
    Ok(total)
}

/// Compares the routers' choices for `inputs`, by layer, with labels of the rows themselves (of their tokens, say).
///
/// # Errors
/// As [`router_accuracy`].
pub fn row_accuracy(modules: &[&MoeLayer], inputs: &[Samples], labels: &[RowLabels]) -> Result<Vec<LevelAccuracy>> {
    check(modules, inputs, labels.len() == inputs.len())?;
    let layer = |((module, samples), labels): ((&&MoeLayer, &Samples), &RowLabels)| {
        labels.check(samples.tasks.len(), module.spec())?;
        Ok(Hits::new(module.spec(), labels, &predict(module, samples)?).accuracy(samples))
    };
    modules.iter().zip(inputs).zip(labels).map(layer).collect()
}

/// The bootstrap's: it decides the ends of intervals and nothing else.
const SEED: u64 = 0;

/// Refuses inputs of other modules; the number of experts.
fn check(modules: &[&MoeLayer], inputs: &[Samples], labelled: bool) -> Result<usize> {
    let (layers, experts) = (modules.len(), modules.first().map_or(0, |module| module.spec().experts()));
    let same = modules.iter().all(|module| module.spec().experts() == experts);
    if layers == 0 || inputs.len() != layers || !same || !labelled {
        let problem = format!("they are not of the labelled tasks, and {layers} layers of {experts} experts");
        return Err(Error::setting("inputs", problem, "collect inputs, and label tasks, through this model"));
    }
    if inputs.iter().any(|samples| samples.documents.len() != samples.tasks.len()) {
        return Err(Error::setting("inputs", "rows lack their documents", "give each row the number of its document"));
    }
    Ok(experts)
}

/// The path of each row, as wide as labels are.
fn predict(module: &MoeLayer, samples: &Samples) -> Result<Vec<Vec<u32>>> {
    let x_td = samples.tensor(module.experts().device())?;
    select::paths(module.spec(), &Scores::new(module, &x_td)?.by_level()?)
}

/// |predicted ∩ label| / |label| of one layer, `[level][row]`.
struct Hits {
    found: Vec<Vec<f64>>,
    /// Of the commonest path.
    chance: Vec<Vec<f64>>,
}

impl Hits {
    fn new(spec: &MoeSpec, labels: &RowLabels, predicted: &[Vec<u32>]) -> Self {
        let commonest = commonest(labels);
        let mut hits = Self { found: Vec::new(), chance: Vec::new() };
        for level in 0..spec.levels.len() {
            let node_of = spec.node_of_experts(level);
            let of_class: Vec<Vec<usize>> = labels.paths.iter().map(|path| nodes_of_path(path, level, spec)).collect();
            let overlap = |nodes: &[usize], class: u32| {
                let label = &of_class[class as usize];
                nodes.iter().filter(|node| label.binary_search(node).is_ok()).count() as f64 / label.len().max(1) as f64
            };
            let found = |(path, class): (&Vec<u32>, &u32)| {
                let mut nodes: Vec<usize> = path.iter().map(|expert| node_of[*expert as usize]).collect();
                nodes.dedup();
                overlap(&nodes, *class)
            };
            hits.found.push(predicted.iter().zip(&labels.class_of_row).map(found).collect());
            let chance = |class: &u32| overlap(&of_class[commonest], *class);
            hits.chance.push(labels.class_of_row.iter().map(chance).collect());
        }
        hits
    }

    /// (document, hit) of the rows.
    fn rows<'a>(&'a self, level: usize, samples: &'a Samples) -> impl Iterator<Item = (u32, f64)> + 'a {
        samples.documents.iter().copied().zip(self.found[level].iter().copied())
    }

    fn accuracy(&self, samples: &Samples) -> LevelAccuracy {
        let mean = |rows: &Vec<f64>| rows.iter().sum::<f64>() / rows.len().max(1) as f64;
        let intervals = (0..self.found.len()).map(|level| interval(&by_cluster(self.rows(level, samples)), SEED));
        LevelAccuracy {
            accuracy: self.found.iter().map(mean).collect(),
            chance: self.chance.iter().map(mean).collect(),
            intervals: intervals.collect(),
        }
    }
}

/// The first class on the path of the most rows.
fn commonest(labels: &RowLabels) -> usize {
    let mut rows: BTreeMap<&[u32], usize> = BTreeMap::new();
    for class in &labels.class_of_row {
        *rows.entry(&labels.paths[*class as usize]).or_default() += 1;
    }
    let on_path = |class: &usize| rows.get(labels.paths[*class].as_slice()).copied().unwrap_or(0);
    (0..labels.paths.len()).rev().max_by_key(on_path).unwrap_or(0)
}
