//! A Tiny-ONN folder: a dense model folder whose `config.json` says `model_type: "tinyonn"` and has an object `tinyonn`.
//!
//! ```json
//! "model_type": "tinyonn",
//! "architectures": ["TinyOnnForCausalLM"],
//! "tinyonn": {
//!   "variant": "TinyOnn",
//!   "active": "all",
//!   "dense": { "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"] },
//!   "partition": { "strategy": "contiguous", "seed": 0 },
//!   "spec": { "name": "TinyOnn", "levels": [ .. ], "route_per": "token" }
//! }
//! ```
//!
//! Replicas have no `partition`; a variant that is routed by its task has `"paths": [{ "task": "prose", "experts": [[0, 3], ..] }, ..]`,
//! a list of experts a layer; one whose attention computes other pairs than it declares has these as `"attention"`. All other keys are the dense model's. `spec` is the declaration that the weights were made under: a
//! program whose variant of that name is declared otherwise refuses the folder, and shows each difference.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::folder::ModelFolder;
use super::key_directions::KeyDirections;
use super::params::{expected_tensors, neuron_expert_name};
use super::replicas::{is_delta, optional_tensors};
use super::store::ParamStore;
use super::variant_tensors::expected_variant_tensors;
use crate::decoder::{Arch, PathTable};
use crate::model::{ActiveMode, TinyOnnForCausalLm};
use crate::moe::{self, AttentionSpec, ExpertsAre, MoeSpec, RoutePer, Variant};
use crate::{Error, Result};

/// The key of `config.json` under which a variant is described.
const KEY: &str = "tinyonn";
/// The key under which transformers finds the classes of an export.
pub(super) const AUTO_MAP: &str = "auto_map";
/// The key under which an export names, layer by layer, what lies beside the weights.
pub(super) const BESIDE: &str = "tinyonn_beside";

/// The object `tinyonn` of `config.json`.
///
/// ```
/// use serde_json::json;
/// use tinyonn::checkpoint::{TaskPath, TinyOnnConfig};
/// use tinyonn::moe::variant;
///
/// let mut tinyonn = TinyOnnConfig::new(variant("DeMix")?, "contiguous", 0);
/// assert!(tinyonn.path_table().is_none());
/// tinyonn.paths = vec![TaskPath { task: "prose".into(), experts: vec![vec![0, 3]] }];
/// assert_eq!(tinyonn.path_table().map(|paths| paths.experts), Some(vec![vec![vec![0, 3]]]));
///
/// let written = tinyonn.write_to(&json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64 }));
/// assert_eq!((&written["model_type"], &written["vocab_size"]), (&json!("tinyonn"), &json!(64)));
/// assert_eq!(written["tinyonn"]["dense"]["model_type"], "llama");
/// assert_eq!(written["tinyonn"]["partition"]["strategy"], "contiguous");
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyOnnConfig {
    /// The declared type.
    pub variant: String,
    /// Which experts run unless the caller says otherwise.
    pub active: ActiveMode,
    /// How neurons were given to experts; replicas have no neurons of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionOrigin>,
    /// What the dense model's `config.json` said it is; Qwen3, where this is missing: version 0.1.0 knew no other.
    #[serde(default)]
    pub dense: DenseNames,
    /// The declaration, for whoever reads the folder later.
    pub spec: MoeSpec,
    /// What attention computes in routed passes, in place of what is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionSpec>,
    /// The paths of the tasks that it was labelled for, by task, where `route_per = task` decides by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<TaskPath>,
}

/// The names of a dense model in its `config.json`, which those of a Tiny-ONN take the place of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseNames {
    /// The family.
    pub model_type: String,
    /// The class that transformers loads it with.
    pub architectures: Value,
}

impl Default for DenseNames {
    fn default() -> Self {
        Self { model_type: "qwen3".into(), architectures: json!(["Qwen3ForCausalLM"]) }
    }
}

impl DenseNames {
    /// Those of `config`, a dense `config.json` or one of a Tiny-ONN made from it.
    fn of(config: &Value) -> Self {
        if is_tinyonn(config) {
            let own = config.get(KEY).and_then(|object| object.get("dense"));
            return own.and_then(|own| Self::deserialize(own).ok()).unwrap_or_default();
        }
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { model_type, architectures: config.get("architectures").cloned().unwrap_or(Value::Null) }
    }
}

/// The path of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskPath {
    /// The task's name; its id is its place.
    pub task: String,
    /// `experts[layer]`, ascending.
    pub experts: Vec<Vec<u32>>,
}

/// Where a partition comes from; the partition itself is in the weights.
///
/// ```
/// use tinyonn::checkpoint::TinyOnnConfig;
/// use tinyonn::checkpoint::tinyonn_folder::{DenseNames, PartitionOrigin};
/// use tinyonn::moe::variant;
///
/// let config = TinyOnnConfig::new(variant("TinyOnn")?, "random", 7);
/// let (origin, dense): (Option<&PartitionOrigin>, &DenseNames) = (config.partition.as_ref(), &config.dense);
/// assert_eq!((origin.map(|origin| origin.seed), dense.model_type.as_str()), (Some(7), "qwen3"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionOrigin {
    /// `contiguous`, `random`, ..
    pub strategy: String,
    /// Its seed.
    pub seed: u64,
}

impl TinyOnnConfig {
    /// Of a model just upcycled under the partition `strategy` with `seed`: all experts active.
    // By value, so that a strategy and its bare name are given alike.
    #[allow(clippy::needless_pass_by_value)]
    #[must_use]
    pub fn new(variant: &Variant, strategy: impl ToString, seed: u64) -> Self {
        Self {
            variant: variant.spec.name.to_string(),
            active: ActiveMode::All,
            partition: (variant.spec.experts_are == ExpertsAre::Slice)
                .then(|| PartitionOrigin { strategy: strategy.to_string(), seed }),
            dense: DenseNames::default(),
            spec: variant.spec.clone(),
            attention: None,
            paths: Vec::new(),
        }
    }

    /// The stored paths, as routing takes them; `None` where there are none.
    #[must_use]
    pub fn path_table(&self) -> Option<PathTable> {
        let experts = || self.paths.iter().map(|path| path.experts.clone()).collect();
        (!self.paths.is_empty()).then(|| PathTable { experts: experts() })
    }

    /// `config` (a dense or a Tiny-ONN `config.json`) with this object, in which `dense` is what `config` says; every other key stays, in
    /// its place.
    #[must_use]
    pub fn write_to(&self, config: &Value) -> Value {
        let own = Self { dense: DenseNames::of(config), ..self.clone() };
        let mut config = without_code(config);
        config["model_type"] = json!("tinyonn");
        config["architectures"] = json!(["TinyOnnForCausalLM"]);
        config[KEY] = json!(own);
        config
    }
}

/// The `config.json` of the dense model that a Tiny-ONN `config.json` was made from.
pub(super) fn dense_config(config: &Value) -> Value {
    let DenseNames { model_type, architectures } = DenseNames::of(config);
    let mut config = without_code(config);
    if let Some(object) = config.as_object_mut() {
        object.shift_remove(KEY);
        object.insert("model_type".into(), model_type.into());
        // A configuration without the key gets none.
        if architectures.is_null() {
            object.shift_remove("architectures");
        } else {
            object.insert("architectures".into(), architectures);
        }
    }
    config
}

/// `config` without what an export for transformers added: the code that it names is not copied with the weights.
fn without_code(config: &Value) -> Value {
    let mut config = config.clone();
    let class = config.get(AUTO_MAP).and_then(|map| map.get("AutoConfig")).and_then(Value::as_str);
    let ours = class.is_some_and(|class| class.contains("configuration_tinyonn."));
    if let Some(object) = config.as_object_mut() {
        object.shift_remove(BESIDE);
        if ours {
            object.shift_remove(AUTO_MAP);
        }
    }
    config
}

/// Whether `config.json` is of a Tiny-ONN folder.
pub fn is_tinyonn(config: &Value) -> bool {
    config.get("model_type").and_then(Value::as_str) == Some("tinyonn")
}

/// A Tiny-ONN folder, opened and checked.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder, is_tinyonn, upcycle_folder};
/// use tinyonn::decoder::Pass;
/// use tinyonn::files::StagedFolder;
/// use tinyonn::imaging::{Partition, PartitionSources, partition};
/// use tinyonn::moe::{moe, variant};
///
/// #[moe(groups = 2, experts = 3, top_k = [1, 2])]
/// struct OnDisk;
///
/// # let parent = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let dir = parent.path().join("sparse");
/// # let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let (dense, on_disk) = (ModelFolder::open(dense)?, variant("OnDisk")?);
/// let shape = (dense.arch()?.num_hidden_layers, dense.arch()?.intermediate_size);
/// let owners = partition::assign(Partition::Contiguous, &on_disk.spec, shape, PartitionSources::default(), 0)?;
/// let staged = StagedFolder::new(&dir)?;
/// let written = upcycle_folder(&dense, &staged, on_disk, (Partition::Contiguous, &owners), 0)?;
/// assert_eq!((written.dense, written.not_finite.len()), (dense.arch()?.parameters(), 0));
/// staged.publish()?;
///
/// let folder = TinyOnnFolder::open(&dir)?;
/// assert!(is_tinyonn(folder.folder().config()));
/// assert_eq!((folder.config().variant.as_str(), folder.variant().spec.experts()), ("OnDisk", 6));
/// assert!(folder.attention().is_dense() && folder.router_names().all(|name| name.contains("_router")));
/// let model = folder.model(&folder.load(&Device::Cpu, Some(DType::F32))?, DType::F32)?;
/// let logits = model.logits(&Tensor::new(&[[1u32, 2]], &Device::Cpu)?, &Pass::routed(), None)?;
/// assert_eq!(logits.dims(), [1, 2, folder.arch().vocab_size]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TinyOnnFolder {
    folder: ModelFolder,
    cfg: Arch,
    config: TinyOnnConfig,
    variant: &'static Variant,
    routers: Vec<(String, Vec<usize>)>,
}

impl TinyOnnFolder {
    /// Opens `dir` and checks its configuration, its variant, and every tensor's name, shape and type.
    ///
    /// # Errors
    /// A folder that is no Tiny-ONN checkpoint; a variant that is not linked in, or is declared otherwise than in the file;
    /// tensors that are missing, unexpected or misshapen.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::from_folder(ModelFolder::open(dir)?)
    }

    pub(super) fn from_folder(folder: ModelFolder) -> Result<Self> {
        let path = folder.config_path();
        let object = match folder.config().get(KEY) {
            Some(object) if is_tinyonn(folder.config()) => object,
            _ => {
                let problem = "is not of a Tiny-ONN checkpoint (`model_type: \"tinyonn\"` and an object `tinyonn`)";
                return Err(Error::file(path, problem, "upcycle the dense model with exp_upcycle"));
            }
        };
        let (config, variant) = read_object(object, &path)?;
        let cfg = folder.arch()?;
        folder.check_depth(&cfg)?;
        check_object(&config, &variant.spec, &cfg, &path)?;
        let mut expected = expected_variant_tensors(&cfg, variant)?;
        let deltas = optional_tensors(&cfg, &variant.spec);
        expected.extend(deltas.into_iter().filter(|(name, _)| folder.source().info(name).is_some()));
        folder.check_names(&expected)?;
        let dense = expected_tensors(&cfg);
        let partitions: Vec<String> = (0..cfg.num_hidden_layers).map(neuron_expert_name).collect();
        let routers: Vec<(String, Vec<usize>)> = expected
            .into_iter()
            .filter(|(name, _)| !dense.contains_key(name) && !partitions.contains(name) && !is_delta(name))
            .collect();
        check_types(&folder, partitions.iter(), Dtype::U32)?;
        check_types(&folder, routers.iter().map(|(name, _)| name), Dtype::F32)?;
        Ok(Self { folder, cfg, config, variant, routers })
    }

    /// Writes the new folder `dir`: `tinyonn` added to `config` (see [`TinyOnnConfig::write_to`]), every entry of `store`, and
    /// the tokenizer's files of the folder `tokenizer`. Whole or not at all, as [`ModelFolder::save`].
    ///
    /// # Errors
    /// `dir` exists and is not empty, or the system refuses a file.
    pub fn save(
        dir: impl AsRef<Path>,
        config: &Value,
        tinyonn: &TinyOnnConfig,
        store: &ParamStore,
        tokenizer: Option<&Path>,
    ) -> Result<()> {
        ModelFolder::save(dir, &tinyonn.write_to(config), store, tokenizer)
    }

    /// The folder under it.
    #[must_use]
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The shape of the dense model.
    #[must_use]
    pub fn arch(&self) -> &Arch {
        &self.cfg
    }

    /// The object `tinyonn` of `config.json`.
    #[must_use]
    pub fn config(&self) -> &TinyOnnConfig {
        &self.config
    }

    /// The declaration it belongs to.
    #[must_use]
    pub fn variant(&self) -> &'static Variant {
        self.variant
    }

    /// The names of the routers' parameters, sorted.
    pub fn router_names(&self) -> impl Iterator<Item = &str> {
        self.routers.iter().map(|(name, _)| name.as_str())
    }

    /// Loads the parameters: the dense ones in `dtype`, or as stored where `None`; the routers always in f32.
    ///
    /// # Errors
    /// What [`ModelFolder::load`] reports.
    pub fn load(&self, device: &Device, dtype: Option<DType>) -> Result<ParamStore> {
        let mut store = self.folder.load(device, dtype)?;
        if dtype.is_some_and(|dtype| dtype != DType::F32) {
            for (name, shape) in &self.routers {
                store.remove(name);
                store.insert(name, Tensor::from_raw_buffer(&self.folder.bytes(name)?, DType::F32, shape, device)?)?;
            }
        }
        Ok(store)
    }

    /// The model over a store that [`TinyOnnFolder::load`] gave, computing in `dtype`, frozen.
    ///
    /// # Errors
    /// A partition in the weights that leaves an expert empty or names one that does not exist; directions of another model's keys beside it.
    pub fn model(&self, store: &ParamStore, dtype: DType) -> Result<TinyOnnForCausalLm> {
        let model = TinyOnnForCausalLm::new(&self.cfg, self.variant, &store.builder(dtype, |_| false))?;
        self.attending(model.with_paths(self.config.path_table()))
    }

    /// Which pairs attention computes in routed passes.
    #[must_use]
    pub fn attention(&self) -> AttentionSpec {
        self.config.attention.unwrap_or(self.variant.spec.attention)
    }

    /// `model`, whose attention computes what this folder says, by the directions beside it, if there are any.
    pub(super) fn attending(&self, model: TinyOnnForCausalLm) -> Result<TinyOnnForCausalLm> {
        let attention = self.attention();
        let model = if attention == self.variant.spec.attention { model } else { model.with_attention(&attention)? };
        match attention.reads_directions().then(|| KeyDirections::beside(&self.folder)).transpose()?.flatten() {
            Some(directions) => model.with_key_directions(directions.layers()),
            None => Ok(model),
        }
    }
}

/// The object `tinyonn`, and the declared variant that it must agree with.
fn read_object(object: &Value, path: &Path) -> Result<(TinyOnnConfig, &'static Variant)> {
    let Some(name) = object.get("variant").and_then(Value::as_str) else {
        return Err(Error::file(path, "`tinyonn.variant` is not a name", "upcycle the dense model again"));
    };
    let variant = moe::variant(name)?;
    // On the raw values: a declaration that this program cannot read is shown like any other that differs.
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut differences = Vec::new();
    differing("spec", spec, &json!(variant.spec), &mut differences);
    if !differences.is_empty() {
        if differences.len() > LISTED {
            let more = differences.len() - LISTED;
            differences.truncate(LISTED);
            differences.push(format!("and {more} more"));
        }
        // What cannot be run has no hierarchy to speak of.
        let readable = MoeSpec::deserialize(spec).ok().filter(|spec| spec.validate().is_empty());
        let [file, declared] = [readable.map(|spec| spec.hierarchy()).unwrap_or_default(), variant.spec.hierarchy()];
        if !file.is_empty() && file != declared {
            differences.insert(0, format!("the hierarchy is {file} in the file, {declared} as declared"));
        }
        let problem = format!("{} was made under another declaration: {}", path.display(), differences.join("; "));
        let remedy = "declare the variant as the file says, or upcycle the dense model again";
        return Err(Error::variant(name, problem, remedy));
    }
    let unreadable = |e: serde_json::Error| {
        Error::file(path, format!("`tinyonn`: {e}"), "use the program that wrote it, or upcycle the dense model again")
    };
    Ok((TinyOnnConfig::deserialize(object).map_err(unreadable)?, variant))
}

/// What the declaration and the dense model ask of the rest of the object.
fn check_object(config: &TinyOnnConfig, spec: &MoeSpec, cfg: &Arch, path: &Path) -> Result<()> {
    let fail = |problem: String| Err(Error::file(path, problem, "upcycle the dense model again"));
    if spec.experts_are == ExpertsAre::Slice && config.partition.is_none() {
        return fail("`tinyonn.partition` is missing".into());
    }
    if !config.paths.is_empty() && spec.route_per != RoutePer::Task {
        return fail(format!("`tinyonn.paths` is there, and `{}` is not routed by its task", spec.name));
    }
    for TaskPath { task, experts } in &config.paths {
        if experts.len() != cfg.num_hidden_layers {
            let problem =
                format!("the path of task `{task}` has {} layers of {}", experts.len(), cfg.num_hidden_layers);
            return fail(problem);
        }
        let sound = |layer: &Vec<u32>| {
            layer.is_sorted_by(|a, b| a < b) && layer.last().is_some_and(|last| (*last as usize) < spec.experts())
        };
        if let Some(layer) = experts.iter().position(|layer| !sound(layer)) {
            let problem = format!(
                "in layer {layer} the path of task `{task}` is no ascending list of {} experts",
                spec.experts()
            );
            return fail(problem);
        }
    }
    Ok(())
}

/// At most so many differences in an error; the count tells the rest.
const LISTED: usize = 6;

/// Where two values differ: path, what the file has, what is declared.
pub(super) fn differing(path: &str, file: &Value, declared: &Value, differences: &mut Vec<String>) {
    let absent = &Value::Null;
    match (file, declared) {
        (Value::Object(a), Value::Object(b)) => {
            for key in b.keys().chain(a.keys().filter(|key| !b.contains_key(*key))) {
                let [a, b] = [a, b].map(|object| object.get(key).unwrap_or(absent));
                differing(&format!("{path}.{key}"), a, b, differences);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                let [a, b] = [a, b].map(|array| array.get(i).unwrap_or(absent));
                differing(&format!("{path}[{i}]"), a, b, differences);
            }
        }
        _ if file == declared => {}
        _ => {
            let [file, declared] = [file, declared].map(|value| match value {
                Value::Null => "nothing".to_owned(),
                value => value.to_string(),
            });
            differences.push(format!("`{path}` is {file} in the file, {declared} as declared"));
        }
    }
}

fn check_types<'a>(folder: &ModelFolder, names: impl Iterator<Item = &'a String>, dtype: Dtype) -> Result<()> {
    for name in names {
        if let Some((_, info)) = folder.tensors().find(|(other, info)| other == name && info.dtype != dtype) {
            let problem = format!("is {} in {}, must be {dtype}", info.dtype, folder.dir().display());
            return Err(Error::tensor(name, problem, "do not convert partitions and routers: upcycle again"));
        }
    }
    Ok(())
}
