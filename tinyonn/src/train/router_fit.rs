//! Phase 1: routers trained on labels, everything else frozen (DESIGN §4).
//!
//! Inputs and labels come from the pseudo-dense pass. The projection is found first ([`super::projection`]), then each router in
//! closed form ([`super::gda`]); then its scale is calibrated on validation text; then, as `fit` says, all its parameters are refined by
//! gradient (`router_tuning`) and the scale is calibrated again. Routers of other kinds have the gradient, or, of linear ones, a ridge regression that asks for no
//! labels ([`super::RouterSums`]), or discriminants ([`super::Discriminants`]).
//!
//! Rows are labelled by class ([`RowLabels`]): task labels are the case of a class a task, token labels that of a class a path.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::discriminant::Discriminants;
use super::gda;
use super::output_norms::{OutputNorms, RouterTarget};
use super::pooled_covariance::PooledCovariance;
use super::projection::{self, Projection};
pub use super::router_fit_config::{FitBy, RouterFitConfig};
use super::router_ridge::RouterSums;
use super::router_targets::Targets;
use super::router_tuning::{Model, Rows, Tuning};
use crate::checkpoint::ParamStore;
use crate::imaging::inputs::{Samples, spread};
use crate::imaging::{Labels, RowLabels};
use crate::moe::{Covariance, GaussianSpec, Project, Reduce, RouterKind, RouterShape};
use crate::ops::ClassSums;
use crate::{Error, Result};

/// λ of `fit = ridge`, as of a repair.
pub(crate) const RIDGE: f64 = 0.01;
/// Rows whose outputs are formed at once.
const BLOCK: usize = 4096;
/// Validation rows of a layer that calibration and stopping look at, at most.
const HELD: usize = 2048;

/// Inputs of all layers with what fits to them share: the projections, found once.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::imaging::{Labels, Partition, PartitionSources, inputs::Samples, partition};
/// use tinyonn::moe::{self, moe};
/// use tinyonn::decoder::{PathTable, Arch, CausalLm};
/// use tinyonn::train::{RouterFitConfig, RouterFitter};
///
/// #[moe(groups = 2, experts = 1)]
/// struct Pair;
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 1,
///     "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2,
/// }), "config.json")?;
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let variant = moe::variant("Pair")?;
/// let units = partition::assign(Partition::Contiguous, &Pair::SPEC, (1, 4), PartitionSources::default(), 0)?;
/// let store = upcycle(dense, &cfg, variant, &units, 0)?;
///
/// // Inputs of the layer: task 0 lies left, task 1 right.
/// let values = vec![-1.0, 0.2, 1.0, 0.3, -1.1, 0.4, 0.9, 0.1];
/// let rows = Samples { values, tasks: vec![0, 1, 0, 1], documents: vec![0, 1, 0, 1], ..Samples::default() };
/// let labels = Labels { paths: PathTable { experts: vec![vec![vec![1]], vec![vec![0]]] } };
/// let (train, validation) = ([rows.clone()], [rows]);
/// let mut fitter = RouterFitter::new(&train, &validation, 2, 64)?;
/// fitter.fit((&store, &cfg, variant), &labels, &RouterFitConfig::default(), 0)?;
///
/// let layer = (variant.build)(&cfg, 0, store.builder(DType::F32, |_| false).pp("model.layers.0.mlp"))?;
/// let logits = layer.routers()[0][0].logits(&Tensor::new(&[[-1f32, 0.3]], &Device::Cpu)?)?.to_vec3::<f32>()?;
/// assert!(logits[0][0][1] > logits[0][0][0]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct RouterFitter<'a> {
    train: &'a [Samples],
    validation: &'a [Samples],
    tasks: usize,
    dim: usize,
    /// What the last fit found.
    projected: Option<Projected>,
}

/// The rows of one layer that routers are fitted to: copied when it is the layer's turn.
struct LayerRows {
    /// `[n, d]`.
    x: Tensor,
    /// The collected rows that x holds, n of them.
    kept: Vec<usize>,
}

impl LayerRows {
    /// At most `most` of the samples, evenly spread.
    fn new(samples: &Samples, most: usize) -> Result<Self> {
        let count = samples.tasks.len();
        let kept: Vec<usize> = spread(count, most).collect();
        if kept.len() == count {
            return Ok(Self { x: samples.tensor(&Device::Cpu)?, kept });
        }
        let width = samples.values.len() / count.max(1);
        let values: Vec<f32> = kept.iter().flat_map(|row| &samples.values[row * width..][..width]).copied().collect();
        Ok(Self { x: Tensor::from_vec(values, (kept.len(), width), &Device::Cpu)?, kept })
    }

    /// The classes of the rows of x.
    fn classes(&self, labels: &RowLabels) -> Vec<u32> {
        self.kept.iter().map(|row| labels.class_of_row[*row]).collect()
    }
}

/// Learned projections of all layers, and what they make of the training rows.
struct Projected {
    by: (Projection, u64),
    /// P by layer, `[r, d]`.
    projections: Vec<Tensor>,
    /// z of the training rows by layer, `[n, r]`.
    z: Vec<Tensor>,
}

impl<'a> RouterFitter<'a> {
    /// Takes the inputs of all layers, for routers of at most `dim` learned dimensions; a narrower router takes the first of them.
    ///
    /// # Errors
    /// No inputs; inputs that are no finite numbers, of other layers or of more than `tasks` tasks; a `dim` of zero.
    pub fn new(train: &'a [Samples], validation: &'a [Samples], tasks: usize, dim: usize) -> Result<Self> {
        let known = |samples: &Samples| samples.tasks.iter().all(|task| (*task as usize) < tasks);
        if train.len() != validation.len() || !train.iter().chain(validation).all(known) {
            let problem = format!("training and validation are not of the same layers, or of more than {tasks} tasks");
            return Err(Error::setting("inputs", problem, "collect both from the same model and tasks"));
        }
        if dim == 0 {
            return Err(Error::setting("dim", "is 0: nothing would be left of the inputs", "use 1 or more"));
        }
        train.iter().try_for_each(|samples| projection::width(samples).map(drop))?;
        if validation.iter().any(|samples| samples.tasks.is_empty()) {
            return Err(Error::setting("inputs", "none were collected", "scan at least one sequence of each task"));
        }
        Ok(Self { train, validation, tasks, dim, projected: None })
    }

    /// Fits the routers of every layer and level to the tasks' labels and puts them into the store of the model. Deterministic in `seed`.
    ///
    /// # Errors
    /// As [`fit_rows`](Self::fit_rows); labels of other tasks or layers.
    pub fn fit(&mut self, model: Model<'_>, labels: &Labels, config: &RouterFitConfig, seed: u64) -> Result<()> {
        labels.check(&model.2.spec, self.tasks, self.train.len())?;
        let of_rows = |inputs: &[Samples]| -> Vec<RowLabels> {
            let layers = inputs.iter().enumerate();
            layers.map(|(layer, inputs)| RowLabels::of_tasks(labels, layer, &inputs.tasks)).collect()
        };
        self.fit_rows(model, [&of_rows(self.train), &of_rows(self.validation)], config, seed)
    }

    /// As [`fit`](Self::fit), to labels of the training rows and of the validation rows, by layer. Projections are those of the tasks all the
    /// same; of a choice that no training row takes validation rows ask nothing.
    ///
    /// ```
    /// use tinyonn::imaging::RowLabels;
    /// use tinyonn::train::{Model, RouterFitConfig, RouterFitter, refit};
    ///
    /// /// Routers fitted to labels of single tokens, and once more to what they see when they route.
    /// fn fit(fitter: &mut RouterFitter<'_>, model: Model<'_>, [train, validation]: [&[RowLabels]; 2]) -> tinyonn::Result<()> {
    ///     let config = RouterFitConfig::default();
    ///     fitter.fit_rows(model, [train, validation], &config, 0)?;
    ///     refit(model, 1, |routed| {
    ///         assert_eq!(routed.lm().config(), model.1);
    ///         Ok(()) // here inputs are collected through `routed`, and fitted to
    ///     })
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Routers that are missing from the store or of another shape than declared; labels of other rows; no steps for
    /// routers that have no closed form.
    pub fn fit_rows(
        &mut self,
        model: Model<'_>,
        [train, validation]: [&[RowLabels]; 2],
        config: &RouterFitConfig,
        seed: u64,
    ) -> Result<()> {
        let spec = &model.2.spec;
        for (inputs, labels) in [(self.train, train), (self.validation, validation)] {
            if inputs.len() != labels.len() {
                let problem = format!("they are of {} layers, the inputs of {}", labels.len(), inputs.len());
                return Err(Error::setting("labels", problem, "label the rows of every layer"));
            }
            inputs.iter().zip(labels).try_for_each(|(inputs, labels)| labels.check(inputs.tasks.len(), spec))?;
        }
        config.check(spec)?;
        // Nothing else is drawn.
        let by = (config.projection, if config.projection == Projection::Random { seed } else { 0 });
        let projected = match self.projected.take() {
            Some(last) if last.by == by => last,
            _ => self.project(by)?,
        };
        let of_layer = |layer: usize| -> Result<()> {
            let own = LayerRows::new(&self.train[layer], usize::MAX)?;
            let held = LayerRows::new(&self.validation[layer], HELD)?;
            let own = Layer {
                index: layer,
                projection_rd: &projected.projections[layer],
                x_nd: &own.x,
                z_nr: &projected.z[layer],
                labels: [&train[layer], &validation[layer]],
                classes: [own.classes(&train[layer]), held.classes(&validation[layer])],
            };
            own.fit(model, &held.x, config, seed)
        };
        // Steps over a few hundred rows leave most cores idle: on the processor layers, which share nothing, go side by side. A GPU has one queue.
        let layers = 0..self.train.len();
        let fitted: Vec<Result<()>> = if model.0.device().is_cpu() {
            layers.into_par_iter().map(of_layer).collect()
        } else {
            layers.map(of_layer).collect()
        };
        self.projected = Some(projected);
        fitted.into_iter().collect()
    }

    /// Finds the learned projections, of several layers at once.
    fn project(&self, (projection, seed): (Projection, u64)) -> Result<Projected> {
        let of_layer = |(layer, samples): (usize, &Samples)| -> Result<(Tensor, Tensor)> {
            let (values, r) = projection.find(samples, self.dim, (seed, layer))?;
            let x_nd = samples.tensor(&Device::Cpu)?;
            let projection_rd = Tensor::from_vec(values, (r, x_nd.dim(1)?), &Device::Cpu)?;
            let z_nr = x_nd.matmul(&projection_rd.t()?)?;
            Ok((projection_rd, z_nr))
        };
        let layers = self.train.par_iter().enumerate().map(of_layer).collect::<Result<Vec<_>>>()?;
        let (projections, z) = layers.into_iter().unzip();
        Ok(Projected { by: (projection, seed), projections, z })
    }
}

/// One layer in a fit; pairs are of training and validation rows.
struct Layer<'a> {
    index: usize,
    /// The learned projection.
    projection_rd: &'a Tensor,
    /// Training rows.
    x_nd: &'a Tensor,
    /// What the learned projection makes of them.
    z_nr: &'a Tensor,
    labels: [&'a RowLabels; 2],
    /// The class of each row.
    classes: [Vec<u32>; 2],
}

impl Layer<'_> {
    fn fit(&self, model: Model<'_>, held_nd: &Tensor, config: &RouterFitConfig, seed: u64) -> Result<()> {
        if config.fit == FitBy::Ridge {
            return self.ridge(model, config.target);
        }
        let (store, _, variant) = model;
        let (spec, device) = (&variant.spec, store.device());
        let on_device =
            |x: &Tensor, classes: &[u32]| -> Result<_> { Ok((x.to_device(device)?, Tensor::new(classes, device)?)) };
        let [train_classes, held_classes] = &self.classes;
        let (train, held) = (on_device(self.x_nd, train_classes)?, on_device(held_nd, held_classes)?);
        let rows = |(x, classes): &(Tensor, Tensor), targets: &Targets| -> Result<Rows> {
            Ok(Rows { x: x.clone(), classes: classes.clone(), shares: targets.table(device)? })
        };
        let sums = self.sums(self.z_nr)?;
        if let Some((run, r)) = spec.shared_projection(self.projection_rd.dim(1)?) {
            let p_rd = self.projection_rd.narrow(0, 0, r.min(self.projection_rd.dim(0)?))?.contiguous()?;
            set(store, &format!("model.layers.{}.mlp.{run}_router", self.index), "projection", &p_rd)?;
        }
        for level in 0..spec.levels.len() {
            for (run, declared) in spec.levels[level].routers.iter().enumerate() {
                if declared.kind == RouterKind::Random {
                    continue;
                }
                let path = format!("model.layers.{}.mlp.{}_router", self.index, declared.name);
                let [asked, of_held] = self.labels.map(|labels| Targets::new(spec, &labels.paths, (level, run)));
                let of_held = of_held.known_to(&asked, train_classes);
                let (train, held) = (rows(&train, &asked)?, rows(&held, &of_held)?);
                let tuning = Tuning { model, path: &path, place: (self.index, level, run), train, held };
                let gaussian = match &declared.kind {
                    RouterKind::Gaussian(form) => Some(form),
                    _ => None,
                };
                if let Some(form) = gaussian {
                    if form.project == Project::Learned {
                        let r = form.dim.min(self.projection_rd.dim(0)?);
                        set(store, &path, "projection", &self.projection_rd.narrow(0, 0, r)?.contiguous()?)?;
                    }
                    if config.fit != FitBy::Sgd {
                        self.closed_form(store, &path, form, (&sums, &asked))?;
                    }
                    tuning.calibrate()?;
                }
                if config.fit == FitBy::Discriminant {
                    self.discriminant(store, &path, &declared.kind, &asked)?;
                }
                if config.learns() {
                    tuning.refine(config, seed)?;
                    gaussian.map_or(Ok(()), |_| tuning.calibrate())?;
                }
            }
        }
        Ok(())
    }

    /// Sets linear routers to the ridge regression of what their choices would add.
    fn ridge(&self, (store, cfg, variant): Model<'_>, target: RouterTarget) -> Result<()> {
        let prefix = format!("model.layers.{}.mlp", self.index);
        let layer = (variant.build)(cfg, self.index, store.frozen().pp(&prefix))?;
        let (norms, mut sums) = (OutputNorms::new(&layer)?, RouterSums::new(cfg.hidden_size));
        let rows = self.x_nd.dim(0)?;
        for from in (0..rows).step_by(BLOCK) {
            let x_nd = self.x_nd.narrow(0, from, BLOCK.min(rows - from))?.to_device(store.device())?;
            let seen_nd = x_nd.to_dtype(layer.experts().weights().gate.dtype())?;
            sums.push(&x_nd, &target.of(&norms.of(&seen_nd)?)?)?;
        }
        for (name, value) in sums.solve(RIDGE)?.parameters(&variant.spec, store.device())? {
            store.set(&format!("{prefix}.{name}"), &value)?;
        }
        Ok(())
    }

    /// Sets linear routers to the log-odds of their choices.
    fn discriminant(&self, store: &ParamStore, path: &str, kind: &RouterKind, targets: &Targets) -> Result<()> {
        let x_nd = match kind.projects_to(self.x_nd.dim(1)?) {
            Some(r) => self.z_nr.narrow(1, 0, r.min(self.z_nr.dim(1)?))?.contiguous()?,
            None => self.x_nd.clone(),
        };
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for parent in 0..targets.parents {
            let found = Discriminants::fit(&x_nd, &self.classes[0], &targets.of_parent(parent), targets.choices)?;
            weights.extend(found.weight_cd.iter().map(|x| *x as f32));
            biases.extend(found.bias_c.iter().map(|x| *x as f32));
        }
        let nodes = targets.parents * targets.choices;
        set(store, path, "weight", &Tensor::from_vec(weights, (nodes, x_nd.dim(1)?), &Device::Cpu)?)?;
        set(store, path, "bias", &Tensor::from_vec(biases, nodes, &Device::Cpu)?)
    }

    /// Sums over the classes of training rows.
    fn sums(&self, z_nr: &Tensor) -> Result<ClassSums> {
        let mut sums = ClassSums::zero(self.labels[0].paths.len(), z_nr.dim(1)?);
        sums.push_rows(&z_nr.flatten_all()?.to_vec1::<f32>()?, &self.classes[0])?;
        Ok(sums)
    }

    /// Sets the Gaussians of routers from `learned`, the sums of the learned z, or those of a declared projection.
    fn closed_form(
        &self,
        store: &ParamStore,
        path: &str,
        form: &GaussianSpec,
        (learned, targets): (&ClassSums, &Targets),
    ) -> Result<()> {
        let (sums, z_nr) = match form.project {
            Project::Learned => (learned.narrow(form.dim.min(learned.width())), None),
            Project::Identity => (self.sums(self.x_nd)?, Some(self.x_nd.clone())),
            Project::Random => {
                let name = format!("{path}.projection");
                let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
                let projection_rd = store.get(&name).ok_or_else(missing)?.as_detached_tensor();
                let z_nr = self.x_nd.matmul(&projection_rd.to_device(&Device::Cpu)?.t()?)?;
                (self.sums(&z_nr)?, Some(z_nr))
            }
        };
        let (r, choices) = (sums.width(), targets.choices);
        // A full Σ alone reads the rows again.
        let z_nr = match (form.covariance, z_nr) {
            (Covariance::SharedFull, None) => Some(self.z_nr.narrow(1, 0, r)?.contiguous()?),
            (_, z_nr) => z_nr,
        };
        let (mut routers, mut decorrelations) = (Vec::with_capacity(targets.parents), Vec::<f32>::new());
        for parent in 0..targets.parents {
            let taken = targets.of_parent(parent);
            let mut router = gda::fit(&sums, &taken, choices).shared_by(form.covariance);
            if let (Covariance::SharedFull, Some(z_nr)) = (form.covariance, &z_nr) {
                let pooled = PooledCovariance::fit(z_nr, &self.classes[0], &taken, &router.mean)?;
                router.log_variance = vec![pooled.log_variance];
                decorrelations.extend(pooled.decorrelation.iter().map(|x| *x as f32));
            }
            routers.push(router);
        }
        let flat = |f: fn(&gda::Gaussians) -> &Vec<Vec<f64>>| -> Vec<f32> {
            routers.iter().flat_map(|router| f(router).iter().flatten().map(|x| *x as f32)).collect()
        };
        let shape = RouterShape { hidden: self.x_nd.dim(1)?, parents: targets.parents, choices };
        let log_prior: Vec<f32> =
            routers.iter().flat_map(|router| router.log_prior.iter().map(|x| *x as f32)).collect();
        let cpu = &Device::Cpu;
        let mean = Tensor::from_vec(flat(|router| &router.mean), (shape.parents, choices, r), cpu)?;
        set(store, path, "mean", &mean)?;
        let log_variance = Tensor::from_vec(flat(|router| &router.log_variance), form.variances(shape), cpu)?;
        set(store, path, "log_variance", &log_variance)?;
        if let Some(of) = form.decorrelations(shape) {
            set(store, path, "decorrelation", &Tensor::from_vec(decorrelations, of, cpu)?)?;
        }
        set(store, path, "log_prior", &Tensor::from_vec(log_prior, (shape.parents, choices), cpu)?)?;
        let scale = match form.reduce {
            Reduce::Mean => r as f32,
            Reduce::Sum => 1.0,
        };
        set(store, path, "scale", &Tensor::new(scale, cpu)?)
    }
}

/// Sets a parameter of the routers at `path`.
fn set(store: &ParamStore, path: &str, name: &str, value: &Tensor) -> Result<()> {
    store.set(&format!("{path}.{name}"), &value.to_device(store.device())?)
}
