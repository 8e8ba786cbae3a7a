//! Imaging alone: ∫SPS of a model's experts on some text, and its pictures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::text::{corpus, tokenizer};
use super::{DeviceName, page};
use crate::checkpoint::{ModelFolder, ParamStore, TinyOnnFolder, expected_tensors, is_tinyonn, tokens};
use crate::data::TokenSet;
use crate::imaging::{Integral, NeuronScan, Partition, ScanOptions, Score, dump, scan};
use crate::moe::{ExpertsAre, MoeSpec, variant};
use crate::qwen3::{Qwen3Config, Qwen3ForCausalLm};
use crate::report::Page;
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
    /// The folder of the results, which exists.
    pub out: PathBuf,
}

/// A model ready to be imaged: its dense reading, and which expert each neuron would belong to.
struct Subject {
    cfg: Qwen3Config,
    store: ParamStore,
    spec: MoeSpec,
    /// The partition's strategy, as the checkpoint or the configuration has it.
    strategy: String,
    units: Units,
    device: Device,
}

/// The expert of each neuron by layer.
enum Units {
    Known(Vec<Vec<u32>>),
    /// Waits for a scan's integral of the score.
    Clustered(Partition, Score),
}

impl Subject {
    fn open(config: &ImageConfig) -> Result<Self> {
        let device = config.device.open()?;
        let folder = ModelFolder::open(&config.model)?;
        let cfg = folder.qwen3_config()?;
        if is_tinyonn(folder.config()) {
            let folder = TinyOnnFolder::open(&config.model)?;
            if config.partition.is_some() {
                let problem = format!("{} brings its own", config.model.display());
                return Err(Error::setting("partition", problem, "leave it out, or image the dense model"));
            }
            refuse_replicas(&folder.variant().spec)?;
            let store = folder.folder().load(&device, Some(DType::F32))?;
            let units = (0..cfg.num_hidden_layers).map(|layer| {
                let name = format!("model.layers.{layer}.mlp.neuron_expert");
                let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
                Ok(store.get(&name).ok_or_else(missing)?.to_vec1()?)
            });
            let units = Units::Known(units.collect::<Result<_>>()?);
            let strategy = folder.config().partition.as_ref().map_or(String::new(), |origin| origin.strategy.clone());
            return Ok(Self { cfg, store, spec: folder.variant().spec.clone(), strategy, units, device });
        }
        folder.check_names(&expected_tensors(&cfg))?;
        let spec = variant(&config.variant)?.spec.clone();
        refuse_replicas(&spec)?;
        let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
        let partition = Partition::choose(config.partition, &spec, Partition::Contiguous)?;
        let units = match partition.profile() {
            None => Units::Known(partition.assign(&spec, shape, None, config.seed)?),
            Some(score) => Units::Clustered(partition, score),
        };
        let store = folder.load(&device, Some(DType::F32))?;
        Ok(Self { store, cfg, spec, strategy: partition.to_string(), units, device })
    }

    fn model(&self) -> Result<Qwen3ForCausalLm<crate::qwen3::Mlp>> {
        Qwen3ForCausalLm::dense(&self.cfg, &self.store.builder(DType::F32, |_| false))
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
    let units = match &subject.units {
        Units::Known(units) => units,
        Units::Clustered(partition, _) => {
            let problem = format!("`{partition}` is made from a scan of text, and --dump has only tokens");
            let remedy = "use contiguous or random, or image a Tiny-ONN checkpoint";
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

/// Images the model on text; writes `integral.safetensors` (by layer `layers.{i}.sps` `[tasks, experts]` f64, per token, and
/// `layers.{i}.neuron_expert`) and `report.html` with its `figures/` into `text.out`.
///
/// # Errors
/// Text and models that cannot be used; a scan without gradients.
pub fn image(config: &ImageConfig, text: &TextConfig) -> Result<NeuronScan> {
    let subject = Subject::open(config)?;
    let tokenizer = tokenizer(&ModelFolder::open(&config.model)?)?;
    let corpus = corpus(&text.data, config.seed)?;
    let set = TokenSet::encode(&corpus, &tokenizer)?;
    let options = ScanOptions { length: text.length, batch: text.batch, tokens_per_task: text.tokens };
    let scan = scan(&subject.model()?, &set, options, &subject.device, None)?;
    let units = match &subject.units {
        Units::Known(units) => units.clone(),
        Units::Clustered(partition, score) => {
            let shape = (subject.cfg.num_hidden_layers, subject.cfg.intermediate_size);
            partition.assign(&subject.spec, shape, Some(&Integral::new(&scan, *score)), config.seed)?
        }
    };
    let experts = Integral::new(&scan, Score::Sps).by_unit(&units, subject.spec.experts());
    write_integral(&experts, &units, &text.out.join("integral.safetensors"))?;
    let tokens: u64 = scan.tokens.iter().sum();
    let page = Page {
        title: format!("∫SPS of {}", config.model.display()),
        lead: vec![format!(
            "{} tokens of {} tasks through {} layers of {} experts, all active. {:.2} % of all (layer, token, neuron) surprises are above zero.",
            tokens,
            scan.tasks.len(),
            subject.cfg.num_hidden_layers,
            subject.spec.experts(),
            100.0 * scan.gradient_nonzero_share(),
        )],
        facts: vec![
            ("corpus SHA-256".into(), corpus.sha256()),
            ("variant".into(), subject.spec.name.to_string()),
            ("partition".into(), subject.strategy.clone()),
            ("nats a token".into(), format!("{:.4}", scan.loss.iter().sum::<f64>() / tokens as f64)),
        ],
        sections: vec![page::brain(&subject.spec, &scan.tasks, &experts)?],
    };
    page.write(&text.out)?;
    Ok(scan)
}

fn write_integral(experts: &[Vec<Vec<f64>>], units: &[Vec<u32>], path: &Path) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (layer, units) in units.iter().enumerate() {
        let sps: Vec<Vec<f64>> = experts.iter().map(|task| task[layer].clone()).collect();
        tensors.insert(format!("layers.{layer}.sps"), Tensor::new(sps, &Device::Cpu)?);
        tensors.insert(format!("layers.{layer}.neuron_expert"), Tensor::new(units.as_slice(), &Device::Cpu)?);
    }
    write_tensors(&tensors, path)
}

fn write_tensors(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    files::write_with(path, |staged| {
        let refused =
            |e| Error::file(path, format!("cannot be written: {e}"), "free some space, or name another place");
        candle_core::safetensors::save(tensors, staged).map_err(refused)
    })
}
