//! The dense model a run starts from: a given checkpoint, or a small Qwen3 pretrained on the text and cached.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Var};
use sha2::{Digest as _, Sha256};

use super::config::hidden_act;
use super::text::{Tokens, tokenizer};
use super::{DeviceName, RunConfig, Text, weights};
use crate::checkpoint::{
    ModelFolder, ParamStore, TinyOnnFolder, base_name, expected_tensors, is_tinyonn, mixture_prefix,
};
use crate::data::{Sampler, TextTokenizer};
use crate::decoder::Arch;
use crate::metrics::{self, MetricsLog, Record};
use crate::moe::{ExpertsAre, variant};
use crate::ops::activation::{activation, fingerprint};
use crate::train::pretrain::ARITHMETIC;
use crate::train::{Checkpoints, Precision, pretrain};
use crate::{Error, Result, SOURCES_SHA256, files};

/// A dense model, ready to be decomposed.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::phases::{Dense, DenseShape, RunConfig, Text};
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
/// assert!(!Dense::is_cached(&config, &text)?);
/// let dense = Dense::obtain(&config, &text, &Device::Cpu, None)?; // pretrained here, and cached
/// assert!(Dense::is_cached(&config, &text)? && dense.cfg.hidden_size == 32);
/// assert!(!dense.losses()?.is_empty()); // what its pretraining logged
/// dense.round(&dense.store)?; // to the types it is stored in; here they are f32
/// assert_eq!(dense.as_stored(&dense.store)?.parameters(), dense.cfg.parameters());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Dense {
    /// Its folder.
    pub dir: PathBuf,
    /// Its configuration.
    pub cfg: Arch,
    /// Its parameters: f32, or for passes in bf16 as they are stored.
    pub store: ParamStore,
    /// The type each is stored in.
    pub stored: BTreeMap<String, DType>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
}

/// The routed checkpoint in the folder of a run.
pub(super) const CHECKPOINT: &str = "tiny-onn";
/// In the folder of a pretraining, the model that is finished, and the file that is locked.
const WHOLE: &str = "model";
const LOCK: &str = "lock";
/// The file in a cached model's folder that holds the losses of its pretraining.
const PRETRAIN_LOG: &str = "pretrain.jsonl";

/// What was read of a model without a look at its weights.
type Opened<'a> = (&'a ModelFolder, Arch, TextTokenizer);

impl Dense {
    /// Loads `config.model`, or the cached model of this configuration, or pretrains it and caches it.
    ///
    /// With `checkpoints` a pretraining that was cut off goes on behind its last state, which lies beside the model to be.
    ///
    /// # Errors
    /// A folder that is no dense decoder, nor a checkpoint of slices of the run's variant, or has no tokenizer; whatever pretraining reports.
    pub fn obtain(config: &RunConfig, text: &Text, device: &Device, checkpoints: Option<&Checkpoints>) -> Result<Self> {
        if let Some(dir) = &config.model {
            let (folder, cfg, tokenizer) = Self::open_model(dir, config)?;
            return Self::load(dir, (&folder, cfg, tokenizer), (device, config.dtype));
        }
        let dir = Self::place(config, text)?;
        // A folder of states beside a model is left by a process that ended before it removed them.
        if !dir.join("config.json").exists() || under_way(&dir).exists() {
            Self::cache((config, text), &dir, device, checkpoints)?;
        }
        let cached = || {
            let (folder, cfg, tokenizer) = Self::open(&dir)?;
            Self::load(&dir, (&folder, cfg, tokenizer), (device, config.dtype))
        };
        cached().map_err(|e| match e {
            Error::File { path, problem, .. } => {
                let remedy = format!("remove the folder {}: its model is pretrained anew", dir.display());
                Error::file(path, problem, remedy)
            }
            other => other,
        })
    }

    /// The routed checkpoint of the run in the folder `from`, in the place of the dense model that it was made of: its shape, tokenizer and types, with experts and routers in the
    /// store.
    ///
    /// ```no_run
    /// use candle_core::Device;
    /// use tinyonn::phases::Dense;
    /// use tinyonn::train::Precision;
    ///
    /// fn main() -> tinyonn::Result<()> {
    ///     let model = Dense::routed("runs/phase1".as_ref(), &Device::Cpu, Precision::F32)?;
    ///     assert!(model.store.names().any(|name| name.contains("_router")));
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// A folder that is no Tiny-ONN checkpoint or has no tokenizer.
    pub fn routed(from: &Path, device: &Device, dtype: Precision) -> Result<Self> {
        let (folder, cfg, tokenizer) = Self::open_routed(from)?;
        let folder = folder.folder();
        let store = weights::load(folder, dtype, device)?;
        Ok(Self { dir: from.join(CHECKPOINT), cfg, store, stored: stored(folder), tokenizer })
    }

    /// The checkpoint of the folder `from` of a run, its configuration and its tokenizer, without a look at its weights.
    pub(super) fn open_routed(from: &Path) -> Result<(TinyOnnFolder, Arch, TextTokenizer)> {
        let folder = TinyOnnFolder::open(from.join(CHECKPOINT))?;
        let (cfg, tokenizer) = (folder.arch().clone(), tokenizer(folder.folder())?);
        Ok((folder, cfg, tokenizer))
    }

    /// Whether the model that `config` would pretrain on `text` is there already.
    ///
    /// # Errors
    /// A variant that is not known.
    pub fn is_cached(config: &RunConfig, text: &Text) -> Result<bool> {
        Ok(Self::place(config, text)?.join("config.json").exists())
    }

    /// Where it is kept.
    fn place(config: &RunConfig, text: &Text) -> Result<PathBuf> {
        Ok(config.cache.join(format!("dense-{}", &cache_key(config, text)?[..16])))
    }

    /// The losses of its pretraining, where it was pretrained here.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub fn losses(&self) -> Result<Vec<Record>> {
        let log = self.dir.join(PRETRAIN_LOG);
        if log.exists() { metrics::read(log) } else { Ok(Vec::new()) }
    }

    /// Rounds the weights of `store`, of which some were stepped in f32, to what their stored types hold: the model that is measured then is the
    /// one that [`Dense::as_stored`] writes.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn round(&self, store: &ParamStore) -> Result<()> {
        for (name, dtype) in self.narrow(store) {
            if let Some(var) = store.get(&name) {
                let rounded = var.as_detached_tensor().to_dtype(dtype)?.to_dtype(var.dtype())?;
                store.set(&name, &rounded)?;
            }
        }
        Ok(())
    }

    /// `store`, of which it shares the storage, with each dense weight in the type it is stored in, and deltas like their bases.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn as_stored(&self, store: &ParamStore) -> Result<ParamStore> {
        let mut cast = store.share();
        for (name, dtype) in self.narrow(store) {
            if let Some(var) = cast.remove(&name) {
                cast.insert(name, var.as_detached_tensor().to_dtype(dtype)?)?;
            }
        }
        Ok(cast)
    }

    /// The weights of `store` that are held in f32 and stored in less: a delta as the weight it is added to.
    fn narrow(&self, store: &ParamStore) -> Vec<(String, DType)> {
        let stored = |(name, var): (&str, &Var)| {
            let dtype = *self.stored.get(&base_name(name))?;
            (dtype != var.dtype()).then(|| (name.to_owned(), dtype))
        };
        store.iter().filter_map(stored).collect()
    }

    /// A folder, its configuration and its tokenizer, checked without a look at its weights.
    pub(super) fn open(dir: &Path) -> Result<(ModelFolder, Arch, TextTokenizer)> {
        let folder = ModelFolder::open(dir)?;
        let cfg = folder.arch()?;
        if is_tinyonn(folder.config()) {
            let remedy = "give the dense model, or take the experts away with exp_export --format dense first";
            return Err(Error::file(dir, "is a Tiny-ONN checkpoint already", remedy));
        }
        folder.check_names(&expected_tensors(&cfg))?;
        let tokenizer = tokenizer(&folder)?;
        Ok((folder, cfg, tokenizer))
    }

    /// As [`open`](Self::open), of what a run of phase 1 may begin with: a dense model, or slices of the run's variant, such as grown ones. All active these
    /// are a dense model of the same names, whose partition is taken as it is and whose routers are fitted anew.
    pub(super) fn open_model(dir: &Path, config: &RunConfig) -> Result<(ModelFolder, Arch, TextTokenizer)> {
        let folder = ModelFolder::open(dir)?;
        if !is_tinyonn(folder.config()) {
            return Self::open(dir);
        }
        let opened = TinyOnnFolder::open(dir)?;
        let spec = &opened.variant().spec;
        if spec.name != config.variant || spec.experts_are != ExpertsAre::Slice {
            let problem = format!("is a Tiny-ONN checkpoint already, of `{}`", spec.name);
            let remedy = "name its variant, if it has slices; or give the dense model, which exp_export --format dense makes of it";
            return Err(Error::file(dir, problem, remedy));
        }
        if config.partition.is_some() {
            let problem = format!("{} brings its own", dir.display());
            return Err(Error::setting("partition", problem, "leave it out, or give the dense model"));
        }
        let (cfg, tokenizer) = (folder.arch()?, tokenizer(&folder)?);
        Ok((folder, cfg, tokenizer))
    }

    /// The expert of each neuron by layer, where its experts are known already.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(super) fn units(&self) -> Result<Option<Vec<Vec<u32>>>> {
        let of_layer = |layer: usize| {
            let owners = self.store.get(&format!("{}.neuron_expert", mixture_prefix(layer)))?;
            Some(owners.to_vec1::<u32>())
        };
        let units: Option<candle_core::Result<Vec<_>>> = (0..self.cfg.num_hidden_layers).map(of_layer).collect();
        Ok(units.transpose()?)
    }

    fn load(dir: &Path, (folder, cfg, tokenizer): Opened<'_>, (device, dtype): (&Device, Precision)) -> Result<Self> {
        let store = weights::load(folder, dtype, device)?;
        Ok(Self { dir: dir.to_path_buf(), cfg, store, stored: stored(folder), tokenizer })
    }

    /// Pretrains in a folder beside `dir`, which appears under its name when it is whole. A second run that wants the same model
    /// waits for the first and takes what that one made; a run that was killed frees its place, and the next goes on from its states.
    fn cache(
        (config, text): (&RunConfig, &Text),
        dir: &Path,
        device: &Device,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<()> {
        let staged = under_way(dir);
        let _place = take_place(&staged, dir)?;
        if dir.join("config.json").exists() {
            // Another process may have removed it.
            let _ = std::fs::remove_dir_all(&staged);
            return Ok(());
        }
        std::fs::create_dir_all(&staged).map_err(|e| Error::io(&staged, e))?;
        let states = checkpoints.map(|checkpoints| Checkpoints { dir: staged.join("states"), ..checkpoints.clone() });
        let made = Self::pretrain((config, text), (dir, &staged), device, states.as_ref());
        // Nor is a model removed that is whole and could not be given its name.
        if made.is_err() && (states.is_some_and(|states| states.dir.exists()) || staged.join(WHOLE).exists()) {
            return made;
        }
        let cleared = std::fs::remove_dir_all(&staged).map_err(|e| Error::io(&staged, e));
        // The error to report is the first one.
        made.and(cleared)
    }

    fn pretrain(
        (config, text): (&RunConfig, &Text),
        (dir, staged): (&Path, &Path),
        device: &Device,
        states: Option<&Checkpoints>,
    ) -> Result<()> {
        let tokenizer = TextTokenizer::train(&text.splits.train, config.dense.vocab_size)?;
        let cfg = config.dense.arch(tokenizer.vocab_size(), hidden_act(variant(&config.variant)?));
        let Tokens { train, validation, .. } = text.encode(&tokenizer)?;
        let how = config.pretrain_in_dtype();
        let sampler = Sampler::new(&train, config.length, how.batch, config.seed, device)?;
        tokenizer.save(staged.join("tokenizer.json"))?;
        let log_path = staged.join(PRETRAIN_LOG);
        let mut log = if states.is_some() { MetricsLog::open(&log_path) } else { MetricsLog::create(&log_path) }?;
        let text = (&sampler, Some(&validation));
        let store = pretrain(&cfg, &how, text, config.seed, &mut log, states)?;
        let whole = staged.join(WHOLE);
        if whole.exists() {
            std::fs::remove_dir_all(&whole).map_err(|e| Error::io(&whole, e))?;
        }
        ModelFolder::save(&whole, &cfg.to_json(), &store, Some(staged))?;
        // Copied: if this process ends here, the log is needed again.
        files::write(whole.join(PRETRAIN_LOG), std::fs::read(&log_path).map_err(|e| Error::io(&log_path, e))?)?;
        if dir.join("config.json").exists() {
            // A run of other sources, which pretrained beside this one, was first.
            return Ok(());
        }
        match std::fs::rename(&whole, dir) {
            Err(_) if dir.join("config.json").exists() => Ok(()),
            renamed => renamed,
        }
        .map_err(|e| {
            let remedy = format!("nothing is lost: it lies in {}; move it there yourself", whole.display());
            Error::file(dir, format!("could not be given to the pretrained model: {e}"), remedy)
        })
    }
}

/// Makes the folder `staged` and locks it, behind whoever else pretrains the model `dir` in it, on this machine or on another that sees the folder. Who is
/// waited for may have removed it, and its lock then keeps nobody out: the one that lies there now is what must be held.
fn take_place(staged: &Path, dir: &Path) -> Result<File> {
    // A file, opened to be written: file systems of a network lock nothing else.
    let lock = staged.join(LOCK);
    let io = |e| Error::io(&lock, e);
    loop {
        std::fs::create_dir_all(staged).map_err(|e| Error::io(staged, e))?;
        let place = match File::options().create(true).truncate(false).write(true).open(&lock) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.map_err(io)?,
        };
        match place.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::warn!("another run is pretraining {}; waiting for it", dir.display());
                place.lock().map_err(io)?;
            }
            Err(TryLockError::Error(e)) => {
                tracing::warn!(
                    "{}: no lock can be had ({e}): let no other run pretrain this model now",
                    lock.display()
                );
            }
        }
        let identity = |of: &Metadata| (of.dev(), of.ino());
        let held = place.metadata().map_err(io)?;
        if std::fs::metadata(&lock).is_ok_and(|there| identity(&there) == identity(&held)) {
            return Ok(place);
        }
    }
}

/// The folder in which these sources pretrain the model that `dir` is to hold: a state of other sources cannot be continued, so each has a folder
/// of its own.
fn under_way(dir: &Path) -> PathBuf {
    dir.with_extension(format!("{}.pretraining", &SOURCES_SHA256[..8]))
}

/// The type that each weight is stored in; integers are no weights.
fn stored(folder: &ModelFolder) -> BTreeMap<String, DType> {
    let types = folder.tensors().map(|(name, info)| (name.to_owned(), info.computed().unwrap_or(DType::F32)));
    types.filter(|(_, dtype)| dtype.is_float()).collect()
}

/// SHA-256 of all that decides the pretrained weights: settings of model, tokenizer (its size) and training, seed, kind of device, type, text, the activation, and the
/// version of the arithmetic.
fn cache_key(config: &RunConfig, text: &Text) -> Result<String> {
    let hidden_act = hidden_act(variant(&config.variant)?);
    let deciding = serde_json::json!({
        "arithmetic": ARITHMETIC,
        "corpus": text.sha256,
        "dtype": config.dtype,
        "dense": config.dense,
        "hidden_act": hidden_act,
        // One that is not known is refused, with those that are, where the model is made.
        "activation": activation(hidden_act).map(fingerprint).transpose()?,
        "pretrain": config.pretrain_in_dtype(),
        "length": config.length,
        "seed": config.seed,
        "device": if config.device == DeviceName::Cpu { "cpu" } else { "cuda" },
    });
    let bytes = serde_json::to_vec(&deciding).map_err(|e| Error::setting("config", e.to_string(), "report this"))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rstest::rstest;

    use super::*;
    use crate::data::{Corpus, Splits};

    fn key(change: impl Fn(&mut RunConfig), text: &str) -> Result<String> {
        let mut config = RunConfig::quick();
        change(&mut config);
        let none = || Corpus { tasks: Vec::new() };
        let splits = Splits { train: none(), validation: none(), test: none() };
        cache_key(&config, &Text { sha256: text.into(), tasks: Vec::new(), splits })
    }

    /// What decides the weights makes another model.
    #[rstest]
    #[case::seed(|config: &mut RunConfig| config.seed = 1, "text")]
    #[case::steps(|config: &mut RunConfig| config.pretrain.steps += 1, "text")]
    #[case::rate(|config: &mut RunConfig| config.pretrain.optimizer.rate *= 2.0, "text")]
    #[case::shape(|config: &mut RunConfig| config.dense.hidden_size += 32, "text")]
    #[case::tokenizer(|config: &mut RunConfig| config.dense.vocab_size += 1, "text")]
    #[case::length(|config: &mut RunConfig| config.length += 1, "text")]
    #[case::dtype(|config: &mut RunConfig| config.dtype = Precision::Bf16, "text")]
    #[case::device(|config: &mut RunConfig| config.device = DeviceName::Cuda(0), "text")]
    #[case::text(|_: &mut RunConfig| {}, "another text")]
    fn what_decides_the_weights_is_in_the_key(#[case] change: fn(&mut RunConfig), #[case] text: &str) -> Result<()> {
        assert_ne!(key(change, text)?, key(|_| {}, "text")?);
        Ok(())
    }

    /// What does not decide them finds the same model, the sources of this crate among it.
    #[rstest]
    #[case::nothing(|_: &mut RunConfig| {})]
    #[case::folders(|config: &mut RunConfig| (config.out, config.cache) = (PathBuf::from("a"), PathBuf::from("b")))]
    #[case::scan(|config: &mut RunConfig| config.scan_tokens += 1)]
    #[case::routers(|config: &mut RunConfig| config.router.steps += 1)]
    #[case::smk(|config: &mut RunConfig| config.smk.steps += 1)]
    fn what_comes_later_is_not(#[case] change: fn(&mut RunConfig)) -> Result<()> {
        assert_eq!(key(change, "text")?, key(|_| {}, "text")?);
        let gpu = |at: usize| key(|config| config.device = DeviceName::Cuda(at), "text");
        assert_eq!(gpu(0)?, gpu(1)?);
        Ok(())
    }
}
