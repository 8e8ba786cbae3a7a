//! Phase 1: routers trained on labels, everything else frozen (DESIGN §4).
//!
//! Inputs and labels come from the pseudo-dense pass. The projection is found first ([`super::projection`]), then each router in
//! closed form ([`super::gda`]); then its scale is calibrated on validation text; then, unless `steps` is zero, all its parameters
//! are refined by gradient (`router_tuning`).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::gda::{self, Sums};
use super::projection;
use super::router_tuning::{Rows, Tuning};
use crate::checkpoint::ParamStore;
use crate::imaging::Labels;
use crate::imaging::inputs::Samples;
use crate::moe::MoeSpec;
use crate::{Error, Result};

/// How routers are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterFitConfig {
    /// Gradient steps behind the closed form; 0 keeps the closed form.
    pub steps: u64,
    /// Rows a step.
    pub batch: usize,
    /// The constant learning rate.
    pub rate: f64,
}

impl Default for RouterFitConfig {
    fn default() -> Self {
        Self { steps: 120, batch: 256, rate: 5e-3 }
    }
}

/// Validation rows of a layer that calibration and stopping look at, at most.
const HELD: usize = 4096;

/// Inputs of all layers with what fits them share: the projections, found once.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::imaging::{Labels, inputs::Samples};
/// use tinyonn::moe::{GaussianMoeRouter, Router, moe};
/// use tinyonn::qwen3::PathTable;
/// use tinyonn::train::{RouterFitConfig, RouterFitter};
///
/// #[moe(groups = 2, experts = 1)]
/// struct Pair;
///
/// // One layer, inputs of width 2: task 0 lies left, task 1 right.
/// let rows = Samples { values: vec![-1.0, 0.2, 1.0, 0.3, -1.1, 0.4, 0.9, 0.1], tasks: vec![0, 1, 0, 1] };
/// let labels = Labels { paths: PathTable { experts: vec![vec![vec![1]], vec![vec![0]]] } };
/// let at = "model.layers.0.mlp";
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| {
///     GaussianMoeRouter::new(2, 64, 1, 2, &vb.pp(at).pp("group_router"))?;
///     GaussianMoeRouter::new(2, 64, 2, 1, &vb.pp(at).pp("expert_router"))?;
///     Ok(())
/// })?;
///
/// let (train, validation) = ([rows.clone()], [rows]);
/// let fitter = RouterFitter::new(&train, &validation, 2, 64)?;
/// fitter.fit(&store, &Pair::SPEC, &labels, &RouterFitConfig::default(), 0)?;
///
/// let vb = store.builder(candle_core::DType::F32, |_| false).pp(at);
/// let router = GaussianMoeRouter::new(2, 64, 1, 2, &vb.pp("group_router"))?;
/// let log_p = router.log_probs(&Tensor::new(&[[-1f32, 0.3]], &Device::Cpu)?)?.to_vec3::<f32>()?;
/// assert!(log_p[0][0][1] > log_p[0][0][0]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct RouterFitter {
    train: Vec<Rows>,
    validation: Vec<Rows>,
    tasks: usize,
    /// P by layer, `[r, d]`.
    projections: Vec<Tensor>,
    /// z of the training rows by layer, `[n, r]`.
    z: Vec<Tensor>,
}

impl RouterFitter {
    /// Finds the projections of all layers for routers of at most `dim` dimensions; a narrower router takes the first of them.
    ///
    /// # Errors
    /// No inputs; inputs of other layers or of more than `tasks` tasks.
    pub fn new(train: &[Samples], validation: &[Samples], tasks: usize, dim: usize) -> Result<Self> {
        let known = |samples: &Samples| samples.tasks.iter().all(|task| (*task as usize) < tasks);
        if train.len() != validation.len() || !train.iter().chain(validation).all(known) {
            let problem = format!("training and validation are not of the same layers, or of more than {tasks} tasks");
            return Err(Error::setting("inputs", problem, "collect both from the same model and tasks"));
        }
        let cpu = candle_core::Device::Cpu;
        let (mut projections, mut z) = (Vec::new(), Vec::new());
        for samples in train {
            let (values, r) = projection::lda(samples, dim)?;
            let d = values.len() / r;
            let projection_rd = Tensor::from_vec(values, (r, d), &cpu)?;
            z.push(samples.tensor(&cpu)?.matmul(&projection_rd.t()?)?);
            projections.push(projection_rd);
        }
        let rows = |of: &[Samples], most| of.iter().map(|samples| Rows::new(samples, most)).collect::<Result<_>>();
        Ok(Self { train: rows(train, usize::MAX)?, validation: rows(validation, HELD)?, tasks, projections, z })
    }

    /// Fits the routers of every layer and level to `labels` and puts them into `store`. Deterministic in `seed`.
    ///
    /// # Errors
    /// Routers that are missing from the store or of another shape than `spec` says; labels of other tasks or layers.
    pub fn fit(
        &self,
        store: &ParamStore,
        spec: &MoeSpec,
        labels: &Labels,
        config: &RouterFitConfig,
        seed: u64,
    ) -> Result<()> {
        let layers = self.train.len();
        if labels.paths.experts.len() != self.tasks || labels.paths.experts.iter().any(|task| task.len() != layers) {
            let problem = format!("they are not of {} tasks and {layers} layers", self.tasks);
            return Err(Error::setting("labels", problem, "label the tasks and layers that the inputs are of"));
        }
        for layer in 0..layers {
            for (level, declared) in spec.levels.iter().enumerate() {
                let path = format!("model.layers.{layer}.mlp.{}_router", declared.name);
                let targets = Targets::new(spec, labels, self.tasks, layer, level);
                let dim = declared.router.dim();
                self.closed_form(store, &path, layer, dim, &targets)?;
                self.tune(store, &path, layer, &targets, config, seed)?;
            }
        }
        Ok(())
    }

    fn closed_form(&self, store: &ParamStore, path: &str, layer: usize, dim: usize, targets: &Targets) -> Result<()> {
        let r = dim.min(self.z[layer].dim(1)?);
        let mut sums = vec![Sums::zero(r); self.tasks];
        for (z, task) in self.z[layer].to_vec2::<f32>()?.iter().zip(self.train[layer].tasks.to_vec1::<u32>()?) {
            sums[task as usize].push(&z[..r]);
        }
        let routers: Vec<gda::Gaussians> =
            (0..targets.parents).map(|parent| gda::fit(&sums, &targets.of_parent(parent), targets.choices)).collect();
        let flat = |f: fn(&gda::Gaussians) -> &Vec<Vec<f64>>| -> Vec<f32> {
            routers.iter().flat_map(|router| f(router).iter().flatten().map(|x| *x as f32)).collect()
        };
        let shape = (targets.parents, targets.choices, r);
        let log_prior: Vec<f32> =
            routers.iter().flat_map(|router| router.log_prior.iter().map(|x| *x as f32)).collect();
        let device = store.device();
        let set = |name: &str, value: Tensor| store.set(&format!("{path}.{name}"), &value.to_device(device)?);
        let cpu = candle_core::Device::Cpu;
        set("projection", self.projections[layer].narrow(0, 0, r)?.contiguous()?)?;
        set("mean", Tensor::from_vec(flat(|router| &router.mean), shape, &cpu)?)?;
        set("log_variance", Tensor::from_vec(flat(|router| &router.log_variance), shape, &cpu)?)?;
        set("log_prior", Tensor::from_vec(log_prior, (targets.parents, targets.choices), &cpu)?)?;
        set("scale", Tensor::new(r as f32, &cpu)?)
    }

    /// The scale, then all parameters, by the cross-entropy of labelled choices.
    fn tune(
        &self,
        store: &ParamStore,
        path: &str,
        layer: usize,
        targets: &Targets,
        config: &RouterFitConfig,
        seed: u64,
    ) -> Result<()> {
        let device = store.device();
        let tuning = Tuning {
            store,
            path,
            parents: targets.parents,
            choices: targets.choices,
            shares: targets.table(device)?,
            train: self.train[layer].to(device)?,
            held: self.validation[layer].to(device)?,
        };
        tuning.calibrate()?;
        if config.steps > 0 {
            tuning.refine(config, seed)?;
        }
        Ok(())
    }
}

/// What the labels of one layer ask of one level's routers.
struct Targets {
    parents: usize,
    choices: usize,
    /// `taken[task]`: nodes (parent · choices + choice) on the task's path.
    taken: Vec<Vec<usize>>,
}

impl Targets {
    fn new(spec: &MoeSpec, labels: &Labels, tasks: usize, layer: usize, level: usize) -> Self {
        let taken = (0..tasks).map(|task| labels.nodes(task, layer, level, spec)).collect();
        Self { parents: spec.parents(level), choices: spec.levels[level].choices, taken }
    }

    /// The choices each task takes at one parent.
    fn of_parent(&self, parent: usize) -> Vec<Vec<usize>> {
        let of_task = |nodes: &Vec<usize>| {
            nodes.iter().filter(|node| *node / self.choices == parent).map(|node| node % self.choices).collect()
        };
        self.taken.iter().map(of_task).collect()
    }

    /// Target shares `[tasks, parents · choices]`: equal among the choices taken at each parent that the path passes.
    fn table(&self, device: &candle_core::Device) -> Result<Tensor> {
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
