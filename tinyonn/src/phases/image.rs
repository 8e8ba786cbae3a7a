//! Imaging alone: ∫SPS of a model's experts on some text, or of stored scans.

mod merged;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::merged::{MergeConfig, merge_scans};
use super::DeviceName;
use super::room::check_room_for_image;
use super::text::{documents, tokenizer};
use super::weights;
use crate::checkpoint::{ModelFolder, ParamStore, TinyOnnFolder, expected_tensors, is_tinyonn, tokens};
use crate::data::{Counted, TokenFile};
use crate::decoder::{Arch, CausalLm, Mlp};
use crate::imaging::partition::{self, gate_rows};
use crate::imaging::scan_file::name_of;
use crate::imaging::{
    ExpertForm, Form, Integral, Log1p, NeuronMarks, NeuronScan, Norm, Partition, PartitionSources, ScanFile,
    ScanOptions, ScanRequest, Score, Shard, StoredScan, Units, coactivation, dump, neuron_marks, scan_batches,
};
use crate::moe::{ExpertsAre, MoeSpec, variant};
use crate::ops::GradSite;
use crate::train::Precision;
use crate::{Error, Result, files};

/// What is imaged, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// A dense or Tiny-ONN checkpoint; the second brings its own variant and partition.
    pub model: PathBuf,
    /// The declared variant whose experts a dense model is seen as.
    pub variant: String,
    /// How a dense model's neurons are given to experts; without it as the variant declares, or else in runs.
    pub partition: Option<Partition>,
    /// Decides the partition and the generated tasks of the default text.
    pub seed: u64,
    /// Where it computes.
    pub device: DeviceName,
    /// What its passes compute in; sums are f64 either way.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub dtype: Precision,
}

/// How text is imaged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Tasks as `NAME=PATH`; without any, the default text.
    pub data: Vec<String>,
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch.
    pub batch: usize,
    /// At most this many tokens of each task.
    pub tokens: usize,
    /// The shard of its batches.
    pub shard: Shard,
    /// Which gradient's norm surprise is.
    pub grad_site: GradSite,
    /// How ∫SPS is formed.
    pub form: Form,
    /// Where the scan is kept as it goes, and continued if it is there; without one, in the folder of the results alone.
    pub scan_file: Option<PathBuf>,
    /// The folder of the results, which exists.
    pub out: PathBuf,
}

/// A scan that is being made is written this often.
const KEPT_EVERY: Duration = Duration::from_mins(1);
/// What coactivation samples is among at most this many tokens of each task, which are in memory.
const SAMPLED: usize = 1 << 18;
/// The scan in the folder of the results.
const SCAN: &str = "scan.safetensors";

/// What a model was seen to do.
///
/// ```
/// use tinyonn::imaging::{Form, Shard};
/// use tinyonn::ops::GradSite;
/// use tinyonn::phases::image::dump_tokens;
/// use tinyonn::phases::{Dense, DenseShape, DeviceName, Image, ImageConfig, MergeConfig, RunConfig, Text, TextConfig, image, merge_scans};
/// use tinyonn::train::Precision;
///
/// # let dir = tempfile::tempdir()?;
/// # let tasks = [tinyonn::data::sorting(0, 12_000), tinyonn::data::arithmetic(0, 12_000)].map(|task| {
/// #     let path = dir.path().join(&task.name).with_extension("jsonl");
/// #     let lines = task.documents.iter().map(|d| serde_json::json!({ "text": d.text }).to_string());
/// #     std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
/// #     Ok(format!("{}={}", task.name, path.display()))
/// # });
/// # let data = tasks.into_iter().collect::<Result<Vec<_>, std::io::Error>>()?;
/// # let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
/// let mut config = RunConfig { variant: "Mixtral".into(), data, out, cache, ..RunConfig::quick() };
/// config.dense = DenseShape { vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, ..config.dense };
/// (config.length, config.scan_tokens, config.test_tokens) = (32, 512, 256);
/// (config.pretrain.steps, config.router.steps, config.smk.steps) = (4, 4, 2);
/// let text = Text::new(&config.data, config.seed)?;
/// let dense = Dense::obtain(&config, &text, &candle_core::Device::Cpu, None)?;
/// let of = ImageConfig { model: dense.dir.clone(), variant: "Mixtral".into(), partition: None, seed: 0, device: DeviceName::Cpu, dtype: Precision::F32 };
///
/// // Each half by itself, as two machines would.
/// let half = |index: usize| {
///     let out = dir.path().join(format!("half-{index}"));
///     std::fs::create_dir(&out)?;
///     let (shard, scan_file) = (Shard { index, of: 2 }, None);
///     let form = Form::default();
///     image(&of, &TextConfig { data: config.data.clone(), length: 32, batch: 4, tokens: 512, shard, grad_site: GradSite::Weight, form, scan_file, out })?;
///     Ok::<_, Box<dyn std::error::Error>>(dir.path().join(format!("half-{index}/scan.safetensors")))
/// };
/// let files = vec![half(0)?, half(1)?];
/// let out = dir.path().join("whole");
/// std::fs::create_dir(&out)?;
/// let whole: Image = merge_scans(&MergeConfig { files, variant: "Mixtral".into(), partition: None, seed: 0, form: Form::default(), mixed: false, out })?;
/// assert_eq!((whole.experts[0][0].len(), whole.stored.scan.tokens[0]), (8, 512)); // ∫SPS of eight experts
///
/// // Raw values of some tokens.
/// let (ids, dump) = (dir.path().join("ids.json"), dir.path().join("dump.safetensors"));
/// std::fs::write(&ids, "[[1, 2, 3, 4]]")?;
/// dump_tokens(&of, &ids, &dump)?;
/// assert!(dump.is_file());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Image {
    /// The sums of the scan.
    pub stored: StoredScan,
    /// The hierarchy that its neurons are seen as.
    pub spec: MoeSpec,
    /// How neurons were given to experts.
    pub strategy: String,
    /// How ∫SPS is formed.
    pub form: Form,
    /// ∫SPS a token, `[task][layer][expert]`.
    pub experts: Vec<Vec<Vec<f64>>>,
}

impl Image {
    /// The image of `stored`, whose integral is written into the folder `out`; `units[layer][i]` is the expert of neuron i.
    fn new(
        stored: StoredScan,
        (spec, strategy): (&MoeSpec, String),
        form: Form,
        units: &[Vec<u32>],
        out: &Path,
    ) -> Result<Self> {
        let experts = Integral::of(&stored.scan, Score::Sps, form)?.by_unit(units, spec.experts());
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (layer, units) in units.iter().enumerate() {
            let sps: Vec<Vec<f64>> = experts.iter().map(|task| task[layer].clone()).collect();
            tensors.insert(format!("layers.{layer}.sps"), Tensor::new(sps, &Device::Cpu)?);
            tensors.insert(format!("layers.{layer}.neuron_expert"), Tensor::new(units.as_slice(), &Device::Cpu)?);
        }
        write_tensors(&tensors, &out.join("integral.safetensors"))?;
        Ok(Self { stored, spec: spec.clone(), strategy, form, experts })
    }
}

/// A model ready to be imaged: its dense reading, and which expert each neuron would belong to.
struct Subject {
    cfg: Arch,
    store: ParamStore,
    spec: MoeSpec,
    /// The partition's strategy, as the checkpoint or the configuration has it.
    strategy: String,
    owners: Owners,
    device: Device,
}

/// The expert of each neuron by layer.
enum Owners {
    Known(Vec<Vec<u32>>),
    /// Waits for text.
    Clustered(Partition),
}

impl Owners {
    /// The experts of `scan`'s neurons; `hidden` reads what coactivation clusters, `marks` which neurons stand out.
    fn units(
        &self,
        scan: &NeuronScan,
        spec: &MoeSpec,
        seed: u64,
        hidden: impl FnOnce() -> Result<Vec<Tensor>>,
        marks: impl FnOnce() -> Result<Vec<NeuronMarks>>,
    ) -> Result<Vec<Vec<u32>>> {
        let partition = match self {
            Self::Known(units) => return Ok(units.clone()),
            Self::Clustered(partition) => *partition,
        };
        let integral = partition::profile(partition).map(|score| Integral::new(scan, score));
        let hidden = (partition == Partition::Coactivation).then(hidden).transpose()?;
        let marks = partition::reads_marks(partition, spec).then(marks).transpose()?;
        let sources = PartitionSources {
            integral: integral.as_ref(),
            coactivation: hidden.as_deref(),
            marks: marks.as_deref(),
            ..PartitionSources::default()
        };
        partition::assign(partition, spec, (scan.sums.len(), scan.width()), sources, seed)
    }
}

impl Subject {
    fn open(config: &ImageConfig) -> Result<Self> {
        let device = config.device.open()?;
        let folder = ModelFolder::open(&config.model)?;
        let cfg = folder.arch()?;
        if is_tinyonn(folder.config()) {
            let folder = TinyOnnFolder::open(&config.model)?;
            if config.partition.is_some() {
                let problem = format!("{} brings its own", config.model.display());
                return Err(Error::setting("partition", problem, "leave it out, or image the dense model"));
            }
            refuse_replicas(&folder.variant().spec)?;
            let store = weights::load(folder.folder(), config.dtype, &device)?;
            let units = (0..cfg.num_hidden_layers).map(|layer| {
                let name = format!("model.layers.{layer}.mlp.neuron_expert");
                let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
                Ok(store.get(&name).ok_or_else(missing)?.to_vec1()?)
            });
            let owners = Owners::Known(units.collect::<Result<_>>()?);
            let strategy = folder.config().partition.as_ref().map_or(String::new(), |origin| origin.strategy.clone());
            return Ok(Self { cfg, store, spec: folder.variant().spec.clone(), strategy, owners, device });
        }
        folder.check_names(&expected_tensors(&cfg))?;
        let spec = variant(&config.variant)?.spec.clone();
        refuse_replicas(&spec)?;
        let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
        let partition = partition::choose(config.partition, &spec, Partition::Contiguous)?;
        let store = weights::load(&folder, config.dtype, &device)?;
        let owners = if partition::reads_text(partition, &spec) {
            Owners::Clustered(partition)
        } else {
            let gate_rows = |layer| gate_rows(&store, layer);
            let sources = PartitionSources { gate_rows: Some(&gate_rows), ..PartitionSources::default() };
            Owners::Known(partition::assign(partition, &spec, shape, sources, config.seed)?)
        };
        Ok(Self { store, cfg, spec, strategy: partition.to_string(), owners, device })
    }

    fn model(&self) -> Result<CausalLm<Mlp>> {
        CausalLm::dense(&self.cfg, &self.store.frozen())
    }
}

/// Replicas all have the same neurons: no image of them shows one apart from another.
fn refuse_replicas(spec: &MoeSpec) -> Result<()> {
    if spec.experts_are == ExpertsAre::Slice {
        return Ok(());
    }
    let problem = "its experts are replicas, which have no neurons of their own to image";
    Err(Error::variant(spec.name.clone(), problem, "image the model as slices, with another --variant"))
}

/// Writes every token's activation and surprise of every expert for the ids of `tokens_file` to `file`, as safetensors: by layer `i`
/// `layers.{i}.activation` and `layers.{i}.surprise`, both `[B·T, experts]` f32, and `loss_sum` `[1]` f32.
///
/// # Errors
/// Files and models that cannot be used; a partition that needs a scan first.
pub fn dump_tokens(config: &ImageConfig, tokens_file: &Path, file: &Path) -> Result<()> {
    let subject = Subject::open(config)?;
    let units = match &subject.owners {
        Owners::Known(units) => units,
        Owners::Clustered(partition) => {
            let problem = format!("`{partition}` is made from a scan of text, and --dump has only tokens");
            let remedy = "use contiguous, random or kmeans, or image a Tiny-ONN checkpoint";
            return Err(Error::setting("partition", problem, remedy));
        }
    };
    let ids = tokens::read(tokens_file, &subject.device)?;
    let image = dump(&subject.model()?, &ids, units, subject.spec.experts())?;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (layer, (activation, surprise)) in image.activation.iter().zip(&image.surprise).enumerate() {
        tensors.insert(format!("layers.{layer}.activation"), activation.contiguous()?);
        tensors.insert(format!("layers.{layer}.surprise"), surprise.contiguous()?);
    }
    tensors.insert("loss_sum".into(), Tensor::new(&[image.loss_sum as f32], &Device::Cpu)?);
    write_tensors(&tensors, file)
}

/// Images the model on text; writes `scan.safetensors` (the [`StoredScan`]), `integral.safetensors` (by layer `layers.{i}.sps`
/// `[tasks, experts]` f64, per token, and `layers.{i}.neuron_expert`) into `text.out`. The norms of experts are
/// scanned where the partition is known. Nothing in memory grows with the text that `text.data` names; what is scanned of it waits in
/// `text.out`, as a [`TokenFile`] that is removed at the end.
///
/// # Errors
/// Text and models that cannot be used; a scan without gradients; a form that needs the partition first, of one that needs the
/// scan first; a `scan_file` of another scan.
pub fn image(config: &ImageConfig, text: &TextConfig) -> Result<Image> {
    let imaging = Imaging::begin(config, text)?;
    let stored = imaging.scan(text.shard)?;
    imaging.image(stored)
}

/// [`image()`] in its stages, for ranks that scan a shard each: the first of them goes on with the sum.
///
/// ```
/// use tinyonn::Result;
/// use tinyonn::imaging::Shard;
/// use tinyonn::phases::{Image, ImageConfig, Imaging, TextConfig};
/// use tinyonn::ranks::Collective;
///
/// /// The image, at rank 0; nothing at the others.
/// fn among(ranks: &dyn Collective, config: &ImageConfig, text: &TextConfig) -> Result<Option<Image>> {
///     let imaging = Imaging::begin(config, text)?;
///     println!("ranks compare {} before they begin", imaging.alike()?);
///     let sum = imaging.scan(Shard::of_rank(ranks))?.over_ranks(ranks, imaging.device())?;
///     sum.map(|sum| imaging.image(sum)).transpose()
/// }
/// ```
pub struct Imaging<'a> {
    /// What is imaged.
    pub config: &'a ImageConfig,
    /// How.
    pub text: &'a TextConfig,
    subject: Subject,
    model: CausalLm<Mlp>,
    /// SHA-256 of the model.
    sha256: String,
    tokens: TokenFile,
    /// But for its shard.
    request: ScanRequest,
}

impl<'a> Imaging<'a> {
    /// Opens the model and reads the text, whose tokens wait in `text.out`.
    ///
    /// # Errors
    /// Text and models that cannot be used; a form that needs the partition first, of one that needs the scan first.
    pub fn begin(config: &'a ImageConfig, text: &'a TextConfig) -> Result<Self> {
        check_room_for_image(config, (text.batch * text.length) as u64)?;
        let subject = Subject::open(config)?;
        let folder = ModelFolder::open(&config.model)?;
        let tokenizer = tokenizer(&folder)?;
        let documents = documents(&text.data, config.seed)?;
        let counted = Counted::new(&*documents)?;
        let most = text.tokens.saturating_add(1);
        let tokens = TokenFile::write(&counted, &tokenizer, most, &text.out)?;
        let units = match &subject.owners {
            Owners::Known(units) => Some(Units { neuron_expert: units.clone(), count: subject.spec.experts() }),
            Owners::Clustered(partition) if text.form.expert == ExpertForm::Norm => {
                let problem =
                    format!("norms of experts need the partition first, and `{partition}` needs the scan first");
                return Err(Error::setting("expert", problem, "scan with the partition known, or use mean"));
            }
            Owners::Clustered(..) => None,
        };
        let request = ScanRequest {
            options: ScanOptions { length: text.length, batch: text.batch, tokens_per_task: text.tokens },
            shard: Shard::WHOLE,
            grad_site: text.grad_site,
            units,
            log1p: if text.form.norm == Norm::Log1p { Log1p::Measured } else { Log1p::Off },
        };
        let (model, sha256) = (subject.model()?, folder.sha256()?);
        Ok(Self { config, text, subject, model, sha256, tokens, request })
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.subject.device
    }

    /// What ranks must have alike, besides their settings: the SHA-256 of text and model, and the kind of device.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn alike(&self) -> Result<Value> {
        let device = name_of(self.device())?;
        Ok(json!({ "text": self.tokens.corpus_sha256(), "model": self.sha256, "device": device }))
    }

    /// Scans a shard of the text, kept in `text.scan_file` as it goes, or in `text.out`.
    ///
    /// # Errors
    /// A scan without gradients; a `scan_file` of another scan.
    pub fn scan(&self, shard: Shard) -> Result<StoredScan> {
        let result = self.text.out.join(SCAN);
        let path = self.text.scan_file.as_ref().unwrap_or(&result);
        let file = ScanFile { path, corpus: self.tokens.corpus_sha256(), model: &self.sha256, every: KEPT_EVERY };
        let request = ScanRequest { shard, ..self.request.clone() };
        scan_batches(&self.model, &self.tokens, &request, self.device(), Some(&file))?;
        StoredScan::load(path)
    }

    /// The image of what was scanned, which is written into `text.out` with it.
    ///
    /// # Errors
    /// What the device or the system reports.
    pub fn image(self, stored: StoredScan) -> Result<Image> {
        let Self { config, text, subject, model, tokens, request, .. } = self;
        // A scan of this process alone that was kept nowhere else lies there already.
        if text.scan_file.is_some() || stored.parts.len() > 1 {
            stored.save(text.out.join(SCAN))?;
        }
        let sampled = || tokens.spread(text.length, SAMPLED);
        let hidden = || coactivation(&model, &sampled()?, request.options, &subject.device);
        let marks = || neuron_marks(&model, &sampled()?, request.options, &subject.device);
        let units = subject.owners.units(&stored.scan, &subject.spec, config.seed, hidden, marks)?;
        Image::new(stored, (&subject.spec, subject.strategy), text.form, &units, &text.out)
    }
}

fn write_tensors(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    files::write_with(path, |staged| {
        let refused =
            |e| Error::file(path, format!("cannot be written: {e}"), "free some space, or name another place");
        candle_core::safetensors::save(tensors, staged).map_err(refused)
    })
}
