//! A model of more experts out of one that is trained, which computes what that one computes (DESIGN §4).
//!
//! An expert of `from` becomes a family of children of `to`. *Slices* share their parent's neurons out among the family, so that not a weight
//! changes; or the first child keeps them all and each other one brings new neurons, whose rows of W_g and W_u are drawn and whose rows of W_d
//! are zero: h grows wider, and what is new of it is multiplied by zero. A *replica's* children share its delta. A child's router has its
//! parent's parameters, so that it is chosen when its parent was.
//!
//! All active, slices that share are bit-equal to what they were. New neurons add zeros at the end of a sum: bit-equal where a product adds up
//! in one go (f32 on a CPU up to 512 neurons), to roundings where it adds blocks. Replicas weigh 1/N each: as much in all, added in
//! another order. Routed, the same holds where all families are equal and `top_k` grew by their size
//! ([`keeps_routing`](Expansion::keeps_routing)); otherwise the next fit of routers decides.

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::folder::ModelFolder;
use super::lineage;
use super::params::{mixture_prefix, neuron_expert_name};
use super::store::ParamStore;
use super::tinyonn_folder::{TaskPath, TinyOnnConfig, TinyOnnFolder};
use crate::decoder::Arch;
use crate::files::StagedFolder;
use crate::moe::{
    CHOICE_RULE, Covariance, ExpertsAre, LevelSpec, MoeSpec, NEURON_RULE, Pfag, RouterKind, RouterSpec, Variant, check,
    expert,
};
use crate::{Error, Result, random};

/// How a model grows.
#[derive(Clone)]
pub struct Expansion<'a> {
    cfg: &'a Arch,
    from: &'static Variant,
    to: &'static Variant,
    /// `[layer][expert of to]`: the expert of `from` that it comes from.
    parents: Vec<Vec<u32>>,
    /// Neurons that each child but the first of a family brings.
    new_neurons: usize,
    seed: u64,
}

/// What a tensor holds of a parameter, and so what stands in its new rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Its values: new rows of W_g and W_u are drawn, those of W_d are zero.
    Values,
    /// What an optimizer remembers, a value each: of what is new, nothing.
    Moments,
    /// Steps taken, one count or one a row: of what is new, none.
    Counts,
}

/// Behind `.mlp.` in the name of a parameter.
const PROJECTIONS: [&str; 3] = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"];

impl<'a> Expansion<'a> {
    /// Grows models of shape `cfg` from `from` to `to`, the same hierarchy with more choices at its last level. New children go to the experts of
    /// most `load` (`[layer][expert]`, of any scale), all of them evenly without one. With `new_neurons` of slices each child but the first of a family brings
    /// as many, drawn from `seed`; with 0 a family shares its parent's.
    ///
    /// # Errors
    /// A variant of another hierarchy, of no more experts, or with routers of the user's; a load of another shape or with numbers that count
    /// nothing; replicas with new neurons or in uneven families.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::{Expansion, ParamStore, upcycle};
    /// use tinyonn::decoder::{Arch, CausalLm, Pass};
    /// use tinyonn::imaging::{Partition, PartitionSources, partition};
    /// use tinyonn::model::TinyOnnForCausalLm;
    /// use tinyonn::moe::{self, moe};
    ///
    /// #[moe(groups = 2, experts = 3, top_k = [1, 2])]
    /// struct Young;
    /// #[moe(groups = 2, experts = 6, top_k = [1, 4])]
    /// struct Grown;
    ///
    /// let cfg = Arch::from_json(&serde_json::json!({
    ///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 1,
    ///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    /// }), "config.json")?;
    /// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    /// let units = partition::assign(Partition::Random, &Young::SPEC, (1, 24), PartitionSources::default(), 0)?;
    /// let young = upcycle(dense, &cfg, moe::variant("Young")?, &units, 0)?;
    ///
    /// let expansion = Expansion::new(&cfg, [moe::variant("Young")?, moe::variant("Grown")?], None, 5, 0)?;
    /// let (grown, wide) = (expansion.store(&young)?, expansion.arch());
    /// assert_eq!((wide.intermediate_size, expansion.keeps_routing()), (24 + 6 * 5, true));
    ///
    /// let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?;
    /// let young = TinyOnnForCausalLm::new(&cfg, moe::variant("Young")?, &young.builder(DType::F32, |_| false))?;
    /// let grown = TinyOnnForCausalLm::new(&wide, moe::variant("Grown")?, &grown.builder(DType::F32, |_| false))?;
    /// for pass in [Pass::all(), Pass::routed()] {
    ///     let [before, after] = [young.logits(&ids, &pass, None)?, grown.logits(&ids, &pass, None)?];
    ///     assert_eq!(before.to_vec3::<f32>()?, after.to_vec3::<f32>()?);
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn new(
        cfg: &'a Arch,
        [from, to]: [&'static Variant; 2],
        load: Option<&[Vec<f64>]>,
        new_neurons: usize,
        seed: u64,
    ) -> Result<Self> {
        lineage::check(&from.spec, &to.spec)?;
        check(&to.spec)?;
        if new_neurons > 0 && from.spec.experts_are == ExpertsAre::Replicate {
            let problem = "replicas have no neurons of their own";
            return Err(Error::setting("new_neurons", problem, "use 0: a replica's children share its delta"));
        }
        let (layers, experts) = (cfg.num_hidden_layers, from.spec.experts());
        let even = vec![vec![1.0; experts]; if load.is_none() { layers } else { 0 }];
        let load = load.unwrap_or(&even);
        let counts = |layer: &Vec<f64>| layer.len() == experts && layer.iter().all(|n| *n >= 0.0 && n.is_finite());
        if load.len() != layers || !load.iter().all(counts) {
            let problem = format!("is not of {layers} layers of {experts} finite numbers, 0 or more");
            return Err(Error::setting("load", problem, "measure the load of this model"));
        }
        let parents = load.iter().map(|load| lineage::parents(&from.spec, &to.spec, load)).collect::<Result<_>>()?;
        let expansion = Self { cfg, from, to, parents, new_neurons, seed };
        expert::check_width(&to.spec, expansion.arch().intermediate_size, 0)?;
        Ok(expansion)
    }

    /// The shape of the dense model under the grown one.
    #[must_use]
    pub fn arch(&self) -> Arch {
        Arch { intermediate_size: self.cfg.intermediate_size + self.new_rows(), ..self.cfg.clone() }
    }

    /// What it grows from and to.
    #[must_use]
    pub fn variants(&self) -> [&'static Variant; 2] {
        [self.from, self.to]
    }

    /// The shape of the dense model under the one it grows from.
    #[must_use]
    pub fn arch_before(&self) -> &Arch {
        self.cfg
    }

    /// `[layer][expert]`: which of the experts before each one comes from.
    #[must_use]
    pub fn parents(&self) -> &[Vec<u32>] {
        &self.parents
    }

    /// Whether the grown model, routed, takes just the children of what was taken: all families are of one size, and `top_k` of the last level
    /// has grown by it.
    #[must_use]
    pub fn keeps_routing(&self) -> bool {
        let routed = self.to.spec.routed_experts();
        let mut sizes = self.parents.iter().map(|parents| lineage::family_size(&parents[..routed]));
        let Some(size) = sizes.next().flatten().filter(|size| sizes.all(|other| other == Some(*size))) else {
            return false;
        };
        let last = |spec: &'static MoeSpec| spec.levels.last().into_iter().flat_map(|level| level.routers.iter());
        let mut runs = last(&self.from.spec).zip(last(&self.to.spec));
        self.to.spec.pfag == Pfag::Off && runs.all(|(own, grown)| grown.top_k == size * own.top_k)
    }

    /// The parameters of the grown model, none of whose storage it shares with `store`.
    ///
    /// # Errors
    /// An expert of fewer neurons than children that are to share them; parameters that are not of the model; choices that text has bounded.
    pub fn store(&self, store: &ParamStore) -> Result<ParamStore> {
        let bounded = [CHOICE_RULE, NEURON_RULE].map(|rule| format!(".mlp.{rule}."));
        if let Some(name) = store.names().find(|name| bounded.iter().any(|rule| name.contains(rule))) {
            let problem = "was calibrated to the experts that there were";
            return Err(Error::tensor(name, problem, "grow the model before exp_sparsify"));
        }
        let mut grown = ParamStore::new(store.device());
        for (name, var) in store.iter() {
            for (name, value) in self.grown(name, &var.as_detached_tensor(), Held::Values)? {
                grown.insert(name, value)?;
            }
        }
        Ok(grown)
    }

    /// What becomes of what is `held` of the parameter `name`, lying as in memory.
    pub(crate) fn grown(&self, name: &str, value: &Tensor, held: Held) -> Result<Vec<(String, Tensor)>> {
        let as_it_is = || Ok(vec![(name.to_owned(), value.clone())]);
        let Some((layer, own)) = of_mixture(name).filter(|(layer, _)| *layer < self.parents.len()) else {
            return as_it_is();
        };
        let one = |value: Tensor| Ok(vec![(name.to_owned(), value)]);
        if PROJECTIONS.contains(&own) {
            return one(self.with_new_rows(name, value, held)?);
        }
        if own == "neuron_expert" {
            let owners = self.owners(layer, &value.to_vec1::<u32>()?)?;
            return one(Tensor::new(owners, value.device())?);
        }
        if let Some((expert, rest)) = own.strip_prefix("delta.").and_then(|rest| rest.split_once('.')) {
            let children = self.parents[layer].iter().enumerate().filter(|(_, parent)| parent.to_string() == expert);
            let named = |(child, _): (usize, &u32)| format!("{}.delta.{child}.{rest}", mixture_prefix(layer));
            return Ok(children.map(|child| (named(child), value.clone())).collect());
        }
        if held == Held::Counts {
            return as_it_is();
        }
        if own == "balance_bias" {
            let levels = self.from.spec.levels.iter().rev().skip(1);
            let above: usize = levels.map(LevelSpec::nodes).sum();
            let routed =
                self.parents[layer][..self.to.spec.routed_experts()].iter().map(|parent| above as u32 + parent);
            return one(value.index_select(&index((0..above as u32).chain(routed), value.device())?, 0)?);
        }
        for (run, nodes) in self.runs() {
            let parameter = own.strip_prefix(&format!("{}_router.", run.name));
            if parameter.is_some_and(|parameter| is_by_choice(&run.kind, parameter)) {
                return one(self.choices(layer, (run, nodes), value)?);
            }
        }
        as_it_is()
    }

    /// The runs of the last level before growth, each with its first node.
    fn runs(&self) -> impl Iterator<Item = (&'static RouterSpec, usize)> {
        let runs = self.from.spec.levels.last().into_iter().flat_map(|level| level.routers.iter());
        runs.scan(0, |next, run| {
            let first = *next;
            *next += run.parents * run.choices;
            Some((run, first))
        })
    }

    /// What a run has of each of its choices, `[P, C, ..]` of Gaussian routers and `[P·C, ..]` of others, of their children.
    fn choices(&self, layer: usize, (run, first): (&RouterSpec, usize), value: &Tensor) -> Result<Tensor> {
        let nodes = first..first + run.parents * run.choices;
        let of_run = self.parents[layer].iter().filter(|parent| nodes.contains(&(**parent as usize)));
        let rows = index(of_run.map(|parent| *parent - first as u32), value.device())?;
        // Other routers have the choices of all in a row.
        if !matches!(run.kind, RouterKind::Gaussian(_)) {
            return Ok(value.index_select(&rows, 0)?);
        }
        let mut dims = value.dims()[1..].to_vec();
        dims[0] = run.parents * run.choices;
        let grown = value.reshape(dims.as_slice())?.index_select(&rows, 0)?;
        dims[0] = rows.dim(0)? / run.parents;
        dims.insert(0, run.parents);
        Ok(grown.reshape(dims)?)
    }

    /// Neurons that are added to a layer.
    fn new_rows(&self) -> usize {
        self.new_neurons * (self.to.spec.experts() - self.from.spec.experts())
    }

    fn with_new_rows(&self, name: &str, value: &Tensor, held: Held) -> Result<Tensor> {
        let rows = self.new_rows();
        // One count for a whole matrix goes on counting it.
        if rows == 0 || held == Held::Counts && value.dim(0)? != self.cfg.intermediate_size {
            return Ok(value.clone());
        }
        let mut dims = value.dims().to_vec();
        dims[0] = rows;
        let new = if held == Held::Values && !name.ends_with("down_proj.weight") {
            // As large as those there are: a new neuron is worth what a random one is.
            let scale = value.to_dtype(DType::F32)?.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
            let mut stream = random::stream(self.seed, &format!("expansion/{name}"));
            let values = random::normal(dims.iter().product(), 0.0, f64::from(scale), &mut stream);
            Tensor::from_vec(values, dims, value.device())?.to_dtype(value.dtype())?
        } else {
            Tensor::zeros(dims, value.dtype(), value.device())?
        };
        Ok(Tensor::cat(&[value, &new], 0)?)
    }

    /// The partition among the children.
    fn owners(&self, layer: usize, owners: &[u32]) -> Result<Vec<u32>> {
        let mut grown = vec![0u32; owners.len()];
        let (mut first, mut new) = (0u32, Vec::with_capacity(self.new_rows()));
        for family in self.parents[layer].chunk_by(|a, b| a == b) {
            let own: Vec<usize> = (0..owners.len()).filter(|i| owners[*i] == family[0]).collect();
            let sharing = if self.new_neurons > 0 { 1 } else { family.len() };
            if own.len() < sharing {
                let problem = format!("expert {} has {} neurons for {sharing} children to share", family[0], own.len());
                let remedy = "give children neurons of their own (new_neurons), or grow into fewer experts";
                return Err(Error::tensor(neuron_expert_name(layer), problem, remedy));
            }
            for (at, neuron) in own.iter().enumerate() {
                grown[*neuron] = first + (at * sharing / own.len()) as u32;
            }
            for child in 1..family.len() as u32 {
                new.extend(std::iter::repeat_n(first + child, self.new_neurons));
            }
            first += family.len() as u32;
        }
        grown.extend(new);
        Ok(grown)
    }

    /// A task's path: the children of what it took.
    fn path(&self, path: &TaskPath) -> TaskPath {
        let children = |(taken, parents): (&Vec<u32>, &Vec<u32>)| {
            let taken = |child: &usize| taken.contains(&parents[*child]);
            (0..parents.len()).filter(taken).map(|child| child as u32).collect()
        };
        let experts = path.experts.iter().zip(&self.parents).map(children).collect();
        TaskPath { task: path.task.clone(), experts }
    }
}

/// Grows the checkpoint `from` into the folder `staged`, with the tokenizer's files: weights in the types they are stored in, all of them in memory. It
/// is an ordinary checkpoint of the larger variant. What was written is not verified: compare it ([`super::compare`]).
///
/// ```
/// use tinyonn::checkpoint::{Expansion, TinyOnnFolder, expand_folder};
/// use tinyonn::files::StagedFolder;
/// use tinyonn::moe::variant;
///
/// fn grow(from: &str, to: &str) -> tinyonn::Result<()> {
///     let from = TinyOnnFolder::open(from)?;
///     let variants = [variant("TinyOnn")?, variant("TinyOnnDoubled")?];
///     let expansion = Expansion::new(from.arch(), variants, None, 0, 0)?;
///     assert_eq!((expansion.variants()[1].spec.experts(), expansion.arch_before()), (200, from.arch()));
///     assert_eq!(expansion.parents()[0][..4], [0, 0, 1, 1]); // two children of each expert
///     let staged = StagedFolder::new(to)?;
///     expand_folder(&from, &expansion, &staged)?;
///     staged.publish()
/// }
/// # let _ = grow;
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// As of [`Expansion::store`]; a checkpoint of another variant than the expansion is for; the system refuses a file.
pub fn expand_folder(from: &TinyOnnFolder, expansion: &Expansion<'_>, staged: &StagedFolder) -> Result<()> {
    let [own, grown] = expansion.variants();
    if from.variant().spec != own.spec || from.arch() != expansion.arch_before() {
        let problem = format!("is of `{}`, and `{}` was to grow", from.variant().spec.name, own.spec.name);
        return Err(Error::file(from.folder().dir(), problem, "open the checkpoint that is to grow"));
    }
    let mut store = expansion.store(&from.folder().load(&Device::Cpu, None)?)?;
    from.folder().restore_head(&mut store)?;
    let config = TinyOnnConfig {
        active: from.config().active,
        attention: from.config().attention,
        partition: from.config().partition.clone(),
        paths: from.config().paths.iter().map(|path| expansion.path(path)).collect(),
        ..TinyOnnConfig::new(grown, "", 0)
    };
    let mut config = config.write_to(from.folder().config());
    config["intermediate_size"] = json!(expansion.arch().intermediate_size);
    ModelFolder::write_into(staged, &config, &store, Some(from.folder().dir()))
}

/// The layer of a parameter of a mixture, and its name there.
fn of_mixture(name: &str) -> Option<(usize, &str)> {
    let (layer, own) = name.strip_prefix("model.layers.")?.split_once(".mlp.")?;
    Some((layer.parse().ok()?, own))
}

/// Whether a router has the parameter once for each of its choices.
fn is_by_choice(kind: &RouterKind, parameter: &str) -> bool {
    match (kind, parameter) {
        (RouterKind::Gaussian(form), "log_variance") => {
            !matches!(form.covariance, Covariance::Shared | Covariance::SharedFull)
        }
        (RouterKind::Gaussian(_), "mean" | "log_prior")
        | (RouterKind::Linear | RouterKind::LowRank { .. }, "weight" | "bias")
        | (RouterKind::Cosine | RouterKind::Random, "weight") => true,
        _ => false,
    }
}

fn index(rows: impl Iterator<Item = u32>, device: &Device) -> Result<Tensor> {
    let rows: Vec<u32> = rows.collect();
    let count = rows.len();
    Ok(Tensor::from_vec(rows, count, device)?)
}
