//! Phase 1: routers trained on labels, everything else frozen (DESIGN §4).
//!
//! Inputs and labels come from the pseudo-dense pass. The projection is found first ([`super::projection`]), then each router in
//! closed form ([`super::gda`]); then its scale is calibrated on validation text; then, unless `steps` is zero, all its parameters
//! are refined by gradient (`router_tuning`). Routers of other kinds have no closed form: theirs is the gradient alone.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::gda::{self, Sums};
use super::projection;
use super::router_tuning::{Model, Rows, Tuning};
use crate::checkpoint::ParamStore;
use crate::imaging::Labels;
use crate::imaging::inputs::Samples;
use crate::moe::{GaussianSpec, MoeSpec, Project, Reduce, RouterKind, RouterShape, RouterSpec};
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
const HELD: usize = 2048;

/// Inputs of all layers with what fits them share: the projections, found once.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::imaging::{Labels, Partition, PartitionSources, inputs::Samples};
/// use tinyonn::moe::{self, moe};
/// use tinyonn::qwen3::{PathTable, Qwen3Config, Qwen3ForCausalLm};
/// use tinyonn::train::{RouterFitConfig, RouterFitter};
///
/// #[moe(groups = 2, experts = 1)]
/// struct Pair;
///
/// let cfg = Qwen3Config::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 1,
///     "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2,
/// }), "config.json")?;
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| Qwen3ForCausalLm::dense(&cfg, &vb).map(drop))?;
/// let variant = moe::variant("Pair")?;
/// let units = Partition::Contiguous.assign(&Pair::SPEC, (1, 4), PartitionSources::default(), 0)?;
/// let store = upcycle(&dense, &cfg, variant, &units, 0)?;
///
/// // Inputs of the layer: task 0 lies left, task 1 right.
/// let rows = Samples { values: vec![-1.0, 0.2, 1.0, 0.3, -1.1, 0.4, 0.9, 0.1], tasks: vec![0, 1, 0, 1] };
/// let labels = Labels { paths: PathTable { experts: vec![vec![vec![1]], vec![vec![0]]] } };
/// let (train, validation) = ([rows.clone()], [rows]);
/// let fitter = RouterFitter::new(&train, &validation, 2, 64)?;
/// fitter.fit((&store, &cfg, variant), &labels, &RouterFitConfig::default(), 0)?;
///
/// let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp"))?;
/// let logits = layer.routers()[0][0].logits(&Tensor::new(&[[-1f32, 0.3]], &Device::Cpu)?)?.to_vec3::<f32>()?;
/// assert!(logits[0][0][1] > logits[0][0][0]);
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
    /// No inputs; inputs of other layers or of more than `tasks` tasks; a `dim` of zero.
    pub fn new(train: &[Samples], validation: &[Samples], tasks: usize, dim: usize) -> Result<Self> {
        let known = |samples: &Samples| samples.tasks.iter().all(|task| (*task as usize) < tasks);
        if train.len() != validation.len() || !train.iter().chain(validation).all(known) {
            let problem = format!("training and validation are not of the same layers, or of more than {tasks} tasks");
            return Err(Error::setting("inputs", problem, "collect both from the same model and tasks"));
        }
        if dim == 0 {
            return Err(Error::setting("dim", "is 0: nothing would be left of the inputs", "use 1 or more"));
        }
        let cpu = Device::Cpu;
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

    /// Fits the routers of every layer and level to `labels` and puts them into the store of the model. Deterministic in `seed`.
    ///
    /// # Errors
    /// Routers that are missing from the store or of another shape than declared; labels of other tasks or layers; no steps for
    /// routers that have no closed form.
    pub fn fit(&self, model: Model<'_>, labels: &Labels, config: &RouterFitConfig, seed: u64) -> Result<()> {
        let (store, _, variant) = model;
        let spec = &variant.spec;
        let layers = self.train.len();
        labels.check(spec, self.tasks, layers)?;
        for layer in 0..layers {
            for level in 0..spec.levels.len() {
                for (run, declared) in spec.levels[level].routers.iter().enumerate() {
                    let path = format!("model.layers.{layer}.mlp.{}_router", declared.name);
                    let targets = Targets::new(spec, labels, self.tasks, layer, (level, run));
                    let tuning = Tuning {
                        model,
                        path: &path,
                        place: (layer, level, run),
                        shares: targets.table(store.device())?,
                        train: self.train[layer].to(store.device())?,
                        held: self.validation[layer].to(store.device())?,
                    };
                    match &declared.kind {
                        RouterKind::Random => continue,
                        RouterKind::Gaussian(form) => {
                            self.closed_form(store, &path, layer, form, &targets)?;
                            tuning.calibrate()?;
                        }
                        RouterKind::Linear | RouterKind::Cosine | RouterKind::Custom(_) if config.steps == 0 => {
                            let problem = format!("is 0, and `{}_router` has no closed form", declared.name);
                            return Err(Error::setting("router.steps", problem, "use 1 or more"));
                        }
                        RouterKind::Linear | RouterKind::Cosine | RouterKind::Custom(_) => {}
                    }
                    if config.steps > 0 {
                        tuning.refine(config, seed)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// z of the training rows of a layer, `[n, r]`, and the projection that a learned one is set to.
    fn inputs(
        &self,
        store: &ParamStore,
        path: &str,
        layer: usize,
        form: &GaussianSpec,
    ) -> Result<(Tensor, Option<Tensor>)> {
        match form.project {
            Project::Learned => {
                let r = form.dim.min(self.z[layer].dim(1)?);
                let projection = self.projections[layer].narrow(0, 0, r)?.contiguous()?;
                Ok((self.z[layer].narrow(1, 0, r)?, Some(projection)))
            }
            Project::Identity => Ok((self.train[layer].x.clone(), None)),
            Project::Random => {
                let name = format!("{path}.projection");
                let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
                let projection = store.get(&name).ok_or_else(missing)?.as_detached_tensor();
                Ok((self.train[layer].x.matmul(&projection.to_device(&Device::Cpu)?.t()?)?, None))
            }
        }
    }

    fn closed_form(
        &self,
        store: &ParamStore,
        path: &str,
        layer: usize,
        form: &GaussianSpec,
        targets: &Targets,
    ) -> Result<()> {
        let (z, projection) = self.inputs(store, path, layer, form)?;
        let r = z.dim(1)?;
        let mut sums = vec![Sums::zero(r); self.tasks];
        for (z, task) in z.to_vec2::<f32>()?.iter().zip(self.train[layer].tasks.to_vec1::<u32>()?) {
            sums[task as usize].push(z);
        }
        let routers: Vec<gda::Gaussians> = (0..targets.parents)
            .map(|parent| gda::fit(&sums, &targets.of_parent(parent), targets.choices).shared_by(form.covariance))
            .collect();
        let flat = |f: fn(&gda::Gaussians) -> &Vec<Vec<f64>>| -> Vec<f32> {
            routers.iter().flat_map(|router| f(router).iter().flatten().map(|x| *x as f32)).collect()
        };
        let shape =
            RouterShape { hidden: self.train[layer].x.dim(1)?, parents: targets.parents, choices: targets.choices };
        let log_prior: Vec<f32> =
            routers.iter().flat_map(|router| router.log_prior.iter().map(|x| *x as f32)).collect();
        let device = store.device();
        let set = |name: &str, value: Tensor| store.set(&format!("{path}.{name}"), &value.to_device(device)?);
        let cpu = Device::Cpu;
        if let Some(projection) = projection {
            set("projection", projection)?;
        }
        set("mean", Tensor::from_vec(flat(|router| &router.mean), (shape.parents, shape.choices, r), &cpu)?)?;
        set("log_variance", Tensor::from_vec(flat(|router| &router.log_variance), form.variances(shape), &cpu)?)?;
        set("log_prior", Tensor::from_vec(log_prior, (targets.parents, targets.choices), &cpu)?)?;
        let scale = match form.reduce {
            Reduce::Mean => r as f32,
            Reduce::Sum => 1.0,
        };
        set("scale", Tensor::new(scale, &cpu)?)
    }
}

/// What the labels of one layer ask of one run of routers.
struct Targets {
    parents: usize,
    choices: usize,
    /// `taken[task]`: choices (parent · choices + choice, of this run) on the task's path.
    taken: Vec<Vec<usize>>,
}

impl Targets {
    fn new(spec: &MoeSpec, labels: &Labels, tasks: usize, layer: usize, (level, run): (usize, usize)) -> Self {
        let runs = &spec.levels[level].routers;
        let nodes = |runs: &[RouterSpec]| runs.iter().map(|run| run.parents * run.choices).sum::<usize>();
        let own = nodes(&runs[..run])..nodes(&runs[..=run]);
        let of_task = |task| {
            let taken = labels.nodes(task, layer, level, spec).into_iter();
            taken.filter(|node| own.contains(node)).map(|node| node - own.start).collect()
        };
        Self { parents: runs[run].parents, choices: runs[run].choices, taken: (0..tasks).map(of_task).collect() }
    }

    /// The choices each task takes at one parent.
    fn of_parent(&self, parent: usize) -> Vec<Vec<usize>> {
        let of_task = |nodes: &Vec<usize>| {
            nodes.iter().filter(|node| *node / self.choices == parent).map(|node| node % self.choices).collect()
        };
        self.taken.iter().map(of_task).collect()
    }

    /// Target shares `[tasks, parents · choices]`: equal among the choices taken at each parent that the path passes.
    fn table(&self, device: &Device) -> Result<Tensor> {
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
