//! The main directions of a model's keys, fitted by a pass over text and kept beside its checkpoint (DESIGN §8).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::folder::ModelFolder;
use super::mmap::MappedSafetensors;
use crate::data::TokenSet;
use crate::decoder::{CausalLm, FeedForward, Pass};
use crate::files::{self, Digest};
use crate::ops::host;
use crate::{Error, Result};

/// By layer and key head, the eigenvectors of Σ k kᵀ over the keys of a text, after their rotation: those of the largest eigenvalue first, so that the first r are the
/// r-dimensional space that holds most of the keys (Singhania et al., 2024).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{KeyDirections, ModelFolder, ParamStore};
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::phases::RunConfig;
///
/// # let parent = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let dir = parent.path().join("model");
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// ModelFolder::save(&dir, &cfg.to_json(), &store, None)?;
/// let folder = ModelFolder::open(&dir)?;
///
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let text = [Tensor::new(&[[3u32, 1, 4, 1, 5]], &Device::Cpu)?];
/// let directions = KeyDirections::fit(&folder, &model, &text)?;
/// let tasks = vec![TaskTokens { name: "t".into(), tokens: vec![3, 1, 4, 1, 5], documents: vec![0; 5] }];
/// let set = TokenSet { tasks, documents: vec!["t/a".into()], eos: 0 };
/// assert_eq!(KeyDirections::fit_on(&folder, &model, &set, 5, 5)?.layers().len(), directions.layers().len());
/// assert_eq!(directions.layers()[0].dims(), [cfg.num_key_value_heads, cfg.head_dim, cfg.head_dim]);
/// directions.save(&dir)?;
/// assert_eq!(KeyDirections::read(&KeyDirections::place(&dir), &folder)?.layers().len(), cfg.num_hidden_layers);
/// assert!(KeyDirections::beside(&folder)?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyDirections {
    /// SHA-256 of the weights that make the keys.
    keys_sha256: String,
    /// `[K, D, D]` f32, a direction a row.
    layers: Vec<Tensor>,
}

/// The file in a folder; beside a GGUF file its own name with this ending.
const FILE: &str = "key_directions.safetensors";
/// Where its metadata has the record.
const KEY: &str = "tinyonn_key_directions";
const FORMAT: u64 = 1;
const REMEDY: &str = "fit the directions on this model with exp_directions";

impl KeyDirections {
    /// Of the model of a folder, by an all-active pass over each batch of token ids `[B, T]`.
    ///
    /// # Errors
    /// No text; keys that are no finite numbers; what the device reports.
    pub fn fit<'t, F: FeedForward>(
        folder: &ModelFolder,
        lm: &CausalLm<F>,
        texts: impl IntoIterator<Item = &'t Tensor>,
    ) -> Result<Self> {
        let (model, cfg) = (lm.model(), lm.config());
        let (heads, d) = (cfg.num_key_value_heads, cfg.head_dim);
        let mut moments = vec![vec![0f64; heads * d * d]; cfg.num_hidden_layers];
        let mut tokens = 0;
        for ids in texts {
            tokens += ids.elem_count();
            let mut x = model.embed(ids)?;
            for (layer, sum) in moments.iter_mut().enumerate() {
                let keys_ktd = model.keys(layer, &x)?.to_dtype(DType::F32)?.permute((2, 0, 1, 3))?.contiguous()?;
                let keys_ktd = keys_ktd.reshape((heads, (), d))?;
                let own = host::values(&keys_ktd.t()?.contiguous()?.matmul(&keys_ktd)?)?;
                sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += f64::from(own));
                let [middle, normed] = model.attend(layer, &x)?;
                x = (middle + model.layers()[layer].mlp().forward(&normed, &Pass::all())?.0)?;
            }
        }
        if tokens == 0 {
            return Err(Error::setting("text", "directions of keys were asked of no token", "give some text"));
        }
        let directions = |(layer, moments): (usize, &Vec<f64>)| {
            let mut rows = Vec::with_capacity(moments.len());
            for moment in moments.chunks_exact(d * d) {
                let eigen = tinyonn_linalg::symmetric_eigen(moment, d).ok_or_else(|| {
                    let problem =
                        format!("the keys of layer {layer} have no main directions: some are no finite numbers");
                    Error::setting("text", problem, "check the model with exp_verify")
                })?;
                rows.extend(eigen.vectors.iter().map(|x| *x as f32));
            }
            Ok(Tensor::from_vec(rows, (heads, d, d), lm.head().device())?)
        };
        let layers = moments.iter().enumerate().map(directions).collect::<Result<_>>()?;
        Ok(Self { keys_sha256: keys_sha256(folder)?, layers })
    }

    /// The same on text of each kind of `set`: the beginnings of documents spread over it, so many `tokens` at most, in rows of `length`. Keys are turned by their positions: rows as long as
    /// the texts that are to be read see them all.
    ///
    /// # Errors
    /// As above; a length of 0.
    pub fn fit_on<F: FeedForward>(
        folder: &ModelFolder,
        lm: &CausalLm<F>,
        set: &TokenSet,
        length: usize,
        tokens: usize,
    ) -> Result<Self> {
        let mut set = set.clone();
        set.spread_documents(length, tokens);
        set.beginnings(tokens);
        let mut rows = Vec::new();
        for task in 0..set.tasks.len() {
            for batch in set.batches_of_task(task, length, 1, lm.head().device())? {
                rows.push(batch?.inputs);
            }
        }
        Self::fit(folder, lm, &rows)
    }

    /// Those of each layer, `[K, D, D]` f32, a direction a row.
    #[must_use]
    pub fn layers(&self) -> &[Tensor] {
        &self.layers
    }

    /// Where those of a checkpoint lie: in its folder, or beside its GGUF file.
    #[must_use]
    pub fn place(checkpoint: &Path) -> PathBuf {
        if checkpoint.is_file() { checkpoint.with_extension(FILE) } else { checkpoint.join(FILE) }
    }

    /// Writes them into a folder of a checkpoint or beside a GGUF file, in place of others.
    ///
    /// # Errors
    /// What the system reports.
    pub fn save(&self, checkpoint: impl AsRef<Path>) -> Result<()> {
        let path = Self::place(checkpoint.as_ref());
        let defect = |e: &dyn std::fmt::Display| Error::file(&path, e.to_string(), "report this: it is a defect");
        let mut tensors = Vec::new();
        for (layer, own) in self.layers.iter().enumerate() {
            let bytes: Vec<u8> = host::values(own)?.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((format!("layers.{layer}"), own.dims().to_vec(), bytes));
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(|e| defect(&e))?;
        let record = json!({ "format": FORMAT, "keys_sha256": self.keys_sha256 }).to_string();
        let bytes = safetensors::serialize(views, Some([(KEY.to_owned(), record)].into()));
        files::write(&path, bytes.map_err(|e| defect(&e))?)
    }

    /// Those that lie beside a checkpoint whose attention reads them.
    ///
    /// # Errors
    /// None; those that [`beside`](Self::beside) refuses.
    pub(super) fn needed(folder: &ModelFolder) -> Result<Self> {
        let missing =
            || Error::file(Self::place(folder.dir()), "is missing: attention reads directions of keys", REMEDY);
        Self::beside(folder)?.ok_or_else(missing)
    }

    /// Those that lie beside a checkpoint, if any do.
    ///
    /// # Errors
    /// A file that is none of directions, or is of another model.
    pub fn beside(folder: &ModelFolder) -> Result<Option<Self>> {
        let path = Self::place(folder.dir());
        path.is_file().then(|| Self::read(&path, folder)).transpose()
    }

    /// Those of the model of a folder in a file that [`save`](Self::save) wrote, wherever it lies.
    ///
    /// # Errors
    /// As of [`beside`](Self::beside); no such file.
    pub fn read(path: &Path, folder: &ModelFolder) -> Result<Self> {
        let file = MappedSafetensors::open(path)?;
        let record: Option<Value> = file.metadata(KEY).and_then(|record| serde_json::from_str(record).ok());
        let Some(record) = record.filter(|record| record["format"] == FORMAT) else {
            return Err(Error::file(path, "holds no directions of keys that this version reads", REMEDY));
        };
        let keys_sha256 = keys_sha256(folder)?;
        if record["keys_sha256"] != keys_sha256 {
            return Err(Error::file(path, "holds directions of the keys of another model", REMEDY));
        }
        let cfg = folder.arch()?;
        let shape = [cfg.num_key_value_heads, cfg.head_dim, cfg.head_dim];
        let layer = |layer: usize| {
            let name = format!("layers.{layer}");
            let own = file.load(&name, &Device::Cpu)?;
            if own.dims() != shape || own.dtype() != DType::F32 {
                let problem = format!("`{name}` is {:?} of {:?}, not {shape:?} of F32", own.dims(), own.dtype());
                return Err(Error::file(path, problem, REMEDY));
            }
            Ok(own)
        };
        let layers = (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { keys_sha256, layers })
    }
}

/// SHA-256 of the weights that make keys of the stream, in f32: the norms before the attentions, the projections and the norms behind them.
fn keys_sha256(folder: &ModelFolder) -> Result<String> {
    let source = folder.source();
    let mut digest = Digest::new();
    for layer in 0..folder.arch()?.num_hidden_layers {
        for part in
            ["input_layernorm.weight", "self_attn.k_proj.weight", "self_attn.k_proj.bias", "self_attn.k_norm.weight"]
        {
            let name = format!("model.layers.{layer}.{part}");
            if source.info(&name).is_some() {
                let values = host::in_memory(&source.load(&name, &Device::Cpu, Some(DType::F32))?)?;
                digest.text(&name);
                digest.words(&values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
            }
        }
    }
    Ok(digest.hex())
}
