//! A Hugging Face model folder: `config.json` and one or more safetensors files. A GGUF file is read as the folder that it was made of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::Value;

use super::gguf::{GgufFile, is_gguf};
use super::instead::refuse_others;
use super::mmap::{MappedSafetensors, TensorInfo};
use super::names::plain;
use super::params::{EMBEDDING, HEAD};
use super::read_var::read_var;
use super::source::{INCOMPLETE, SafetensorsFiles, WeightSource};
use super::store::ParamStore;
use crate::decoder::Arch;
use crate::files::{Digest, IS_LFS_POINTER, LFS_POINTER, PULL, without_mark};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "config.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A model folder, opened: its configuration read, its tensors listed, their bytes mapped.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ModelFolder, expected_tensors};
///
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let folder = ModelFolder::open(dir)?;
/// let arch = folder.arch()?;
/// assert_eq!((folder.config()["model_type"].as_str(), folder.dir().join("config.json")), (Some("llama"), folder.config_path()));
/// folder.check_names(&expected_tensors(&arch))?; // nothing missing, nothing unexpected
///
/// let (name, info) = folder.tensors().next().expect("it has weights");
/// assert_eq!(folder.bytes(name)?.len(), 2 * info.shape.iter().product::<usize>()); // bf16
/// assert_eq!(folder.source().info(name), Some(info));
/// assert!(folder.same_bytes(name, (&folder, name))?);
/// assert_eq!(folder.beside("generation_config.json")?, None);
/// assert_eq!((folder.sha256()?.len(), folder.not_finite()?), (64, vec![]));
/// folder.refuse_not_finite("take another model")?;
///
/// folder.announce(Some(DType::F32)); // of a GGUF file it would say that blocks are dequantised
/// let mut store = folder.load(&Device::Cpu, Some(DType::F32))?;
/// assert_eq!(store.parameters(), arch.parameters());
/// folder.restore_head(&mut store)?; // a stored copy of the embedding; this folder has none
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct ModelFolder {
    dir: PathBuf,
    config: Value,
    source: Box<dyn WeightSource>,
}

impl ModelFolder {
    /// Opens a folder with `config.json` and either `model.safetensors` (preferred, as in transformers) or the shards
    /// of `model.safetensors.index.json`; or a GGUF file, whatever its name; any part of a split one names all.
    ///
    /// # Errors
    /// Names the file that is missing, damaged, or disagrees with the index: an entry that is not in the shard it
    /// names, a tensor in two shards or in none of the index's entries. Of a folder that is no model it says which one to give.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        // A file called .gguf is meant to be one: the error then says what is wrong with it as such.
        if is_gguf(dir) || (dir.is_file() && dir.extension().is_some_and(|extension| extension == "gguf")) {
            let file = GgufFile::open(dir)?;
            let (dir, config) = (file.path().to_path_buf(), file.config().clone());
            return Ok(Self { dir, config, source: Box::new(file) });
        }
        refuse_others(dir)?;
        let config = read_json(&dir.join(CONFIG))?;
        if dir.join(SINGLE).exists() && dir.join(INDEX).exists() {
            tracing::warn!("{}: holds {SINGLE} and {INDEX}; the first is read, as transformers does", dir.display());
        }
        let (files, places) = if dir.join(SINGLE).exists() {
            let file = MappedSafetensors::open(dir.join(SINGLE))?;
            let places = file.names().map(|name| (name.to_owned(), 0)).collect();
            (vec![file], places)
        } else if dir.join(INDEX).exists() {
            open_shards(dir, is_tied(&config))?
        } else {
            let problem = format!("holds neither {SINGLE} nor {INDEX}");
            return Err(Error::file(dir, problem, "give a checkpoint saved as safetensors"));
        };
        let source = Box::new(SafetensorsFiles { dir: dir.to_path_buf(), files, places: plain(places) });
        Ok(Self { dir: dir.to_path_buf(), config, source })
    }

    /// The folder, or the GGUF file.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that the configuration comes from.
    pub fn config_path(&self) -> PathBuf {
        if self.dir.is_dir() { self.dir.join(CONFIG) } else { self.dir.clone() }
    }

    /// Where the weights are read from.
    pub fn source(&self) -> &dyn WeightSource {
        self.source.as_ref()
    }

    /// The text of a file beside the weights (`tokenizer_config.json`, `generation_config.json`, ..), or of the one that a GGUF file comes to; `None` where there is
    /// none.
    ///
    /// # Errors
    /// A file that cannot be read, or is no text.
    pub fn beside(&self, name: &str) -> Result<Option<String>> {
        if let Some(files) = self.source.files_beside()? {
            return Ok(files.into_iter().find(|(file, _)| *file == name).map(|(_, text)| text));
        }
        let path = self.dir.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let text = String::from_utf8(without_mark(&bytes).to_vec());
        text.map(Some).map_err(|_| Error::file(&path, "is no UTF-8", "download it again"))
    }

    /// One line on how the weights are stored, if loading them in `dtype` changes them: blocks are dequantised.
    pub fn announce(&self, dtype: Option<DType>) {
        if let Some(line) = self.source.describe(dtype) {
            tracing::info!("{line}");
        }
    }

    /// `config.json` as it stands, keys in its order; of a GGUF file the one that is made from its settings.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The dense model's configuration.
    pub fn arch(&self) -> Result<Arch> {
        Arch::from_json(&self.config, self.config_path())
    }

    /// Name, stored type and shape of every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.source.names().filter_map(|name| Some((name, self.source.info(name)?)))
    }

    /// A tensor's bytes as stored; blocks of a GGUF file are dequantised.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        self.source.bytes(name)
    }

    /// SHA-256 of `config.json` and of every tensor's name, type, shape and bytes. Reads all weights.
    ///
    /// # Errors
    /// What the system reports.
    pub fn sha256(&self) -> Result<String> {
        let mut digest = Digest::new();
        digest.text(&self.config.to_string());
        for (name, info) in self.tensors() {
            digest.text(name);
            digest.text(&info.dtype.to_string());
            digest.number(info.shape.len() as u64);
            info.shape.iter().for_each(|size| digest.number(*size as u64));
            digest.bytes(&self.bytes(name)?);
        }
        Ok(digest.hex())
    }

    /// Loads the parameters, converted to `dtype`, or each in its stored type where `None`. Integer tensors are never
    /// converted.
    ///
    /// Buffers of the rotary embedding, and a language-model head stored byte for byte beside the embedding it is tied
    /// to, are no parameters: they stay out of the store, so that nothing trains or saves a stale copy.
    ///
    /// # Errors
    /// Names a tensor whose type is not f32, bf16, f16 or u32.
    pub fn load(&self, device: &Device, dtype: Option<DType>) -> Result<ParamStore> {
        if let Some(
            dtype @ (DType::F64 | DType::F8E4M3 | DType::U8 | DType::U32 | DType::I16 | DType::I32 | DType::I64),
        ) = dtype
        {
            return Err(Error::setting("dtype", format!("is {dtype:?}"), "load in F32, BF16 or F16"));
        }
        let tied = is_tied(&self.config);
        let mut store = ParamStore::new(device);
        for name in self.source.names() {
            if is_buffer(name) || (tied && name == HEAD && self.head_repeats_embedding()) {
                continue;
            }
            let var = read_var(self.source.as_ref(), name, device, dtype)?;
            store.keep_stored(name, var)?;
        }
        Ok(store)
    }

    /// Compares the folder's tensors with `expected` (name → shape): all that is missing, unexpected or misshapen, in
    /// one error. Only what [`ModelFolder::load`] leaves out may be there unexpected.
    pub fn check_names(&self, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        self.refuse_quantised()?;
        let missing: Vec<_> =
            expected.keys().filter(|name| self.source.info(name).is_none()).map(|name| format!("`{name}`")).collect();
        let (mut unexpected, mut misshapen) = (Vec::new(), Vec::new());
        for (name, info) in self.tensors() {
            match expected.get(name) {
                Some(shape) if *shape != info.shape => {
                    misshapen.push(format!("`{name}` {:?}, expected {shape:?}", info.shape));
                }
                None if is_buffer(name) || (name == HEAD && self.head_repeats_embedding()) => {}
                None if name == HEAD && expected.contains_key(EMBEDDING) => {
                    unexpected.push(format!("`{name}` (differs from the embedding that config.json ties it to)"));
                }
                None => unexpected.push(format!("`{name}`")),
                Some(_) => {}
            }
        }
        let kinds = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)];
        let problems: Vec<_> = kinds.iter().filter(|(_, names)| !names.is_empty()).map(|(k, n)| list(k, n)).collect();
        if problems.is_empty() {
            return Ok(());
        }
        let remedy = "give weights and a config.json that belong to the same model";
        Err(Error::file(&self.dir, format!("tensors {}", problems.join("; ")), remedy))
    }

    /// Refuses a configuration of more layers than there are tensors, before names are made of each.
    pub(super) fn check_depth(&self, arch: &Arch) -> Result<()> {
        let (layers, tensors) = (arch.num_hidden_layers, self.source.names().count());
        if layers <= tensors {
            return Ok(());
        }
        let problem = format!("`num_hidden_layers` is {layers}, and all weights together are {tensors} tensors");
        Err(Error::file(self.config_path(), problem, "give weights and a config.json that belong to the same model"))
    }

    /// Adds the head that [`ModelFolder::load`] left out of `store` because it repeats the embedding: for writing the same weights again,
    /// untrained.
    ///
    /// # Errors
    /// `store` has a head.
    pub fn restore_head(&self, store: &mut ParamStore) -> Result<()> {
        let embedding = store.get(EMBEDDING).map(candle_core::Var::as_detached_tensor);
        match embedding {
            Some(embedding) if is_tied(&self.config) && self.head_repeats_embedding() => store.insert(HEAD, embedding),
            _ => Ok(()),
        }
    }

    /// Whether the head is stored and is the embedding, byte for byte.
    fn head_repeats_embedding(&self) -> bool {
        match (self.source.info(HEAD), self.source.info(EMBEDDING)) {
            (Some(a), Some(b)) if a == b => self.same_bytes(HEAD, (self, EMBEDDING)).unwrap_or(false),
            _ => false,
        }
    }

    /// Whether a tensor has the bytes of a tensor of `other`; neither is held in memory.
    ///
    /// # Errors
    /// A tensor that is not there.
    pub fn same_bytes(&self, name: &str, (other, their_name): (&Self, &str)) -> Result<bool> {
        let theirs = other.bytes(their_name)?;
        let (mut at, mut same) = (0, true);
        self.source.pieces(name, &mut |piece| {
            same &= theirs.get(at..at + piece.len()) == Some(piece);
            at += piece.len();
            other.source.release(their_name, at - piece.len()..at);
            Ok(())
        })?;
        Ok(same && at == theirs.len())
    }
}

/// Whether the configuration ties the head to the embedding, by itself or as its family does. One that cannot be read is refused elsewhere.
fn is_tied(config: &Value) -> bool {
    let stated = config.get("tie_word_embeddings").and_then(Value::as_bool);
    stated.unwrap_or_else(|| Arch::from_json(config, CONFIG).is_ok_and(|arch| arch.tie_word_embeddings))
}

/// Constants that old versions of transformers stored among the weights; they follow from the configuration.
pub(super) fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

/// At most so many names of one kind in an error; the count tells the rest.
const LISTED: usize = 24;

fn list(kind: &str, names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(LISTED).map(String::as_str).collect();
    let more = if names.len() > LISTED { format!(" and {} more", names.len() - LISTED) } else { String::new() };
    format!("{kind} ({}): {}{more}", names.len(), shown.join(", "))
}

/// The shape that a model has on paper: what the `config.json` at `path`, or in the folder `path`, says. No weights need be there.
///
/// ```
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
/// let arch = tinyonn::checkpoint::read_arch(dir)?;
/// assert!(arch.to_string().starts_with("llama, 2 layers"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A configuration that is missing, or that asks for what is not computed.
pub fn read_arch(path: impl AsRef<Path>) -> Result<Arch> {
    let path = path.as_ref();
    if is_gguf(path) {
        return ModelFolder::open(path)?.arch();
    }
    let path = if path.is_dir() { path.join(CONFIG) } else { path.to_path_buf() };
    Arch::from_json(&read_json(&path)?, path)
}

/// Whether `path` is a configuration alone: a `config.json`, or a folder that holds one and no weights.
///
/// ```
/// use tinyonn::checkpoint::is_on_paper;
///
/// # let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("config.json"), "{}")?;
/// assert!(is_on_paper(dir.path()));
/// std::fs::write(dir.path().join("model.safetensors"), "")?;
/// assert!(!is_on_paper(dir.path()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn is_on_paper(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    let is_json = path.is_file() && path.extension().is_some_and(|extension| extension == "json");
    is_json || (path.join(CONFIG).is_file() && [SINGLE, INDEX].iter().all(|name| !path.join(name).exists()))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(|e| Error::io(path, e))?;
    if text.starts_with(LFS_POINTER) {
        return Err(Error::file(path, IS_LFS_POINTER, PULL));
    }
    serde_json::from_slice(without_mark(&text)).map_err(|e| Error::file(path, format!("is not JSON: {e}"), INCOMPLETE))
}

/// Opens the shards of an index and checks that each tensor lies where the index says.
fn open_shards(dir: &Path, tied: bool) -> Result<(Vec<MappedSafetensors>, BTreeMap<String, usize>)> {
    let path = dir.join(INDEX);
    let index = read_index(&path)?;
    let mut shards: Vec<&str> = index.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut files = Vec::with_capacity(shards.len());
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for shard in &shards {
        if !dir.join(shard).exists() {
            return Err(Error::file(&path, format!("names the shard {shard}, which is missing"), INCOMPLETE));
        }
        let file = MappedSafetensors::open(dir.join(shard))?;
        for name in file.names() {
            if let Some(other) = places.insert(name.to_owned(), files.len()) {
                let other = shards.get(other).unwrap_or(shard);
                return Err(Error::file(&path, format!("tensor `{name}` is in both {other} and {shard}"), INCOMPLETE));
            }
        }
        files.push(file);
    }
    for (name, shard) in &index {
        // Some list the head that is tied, and do not store it.
        if tied && name == HEAD && !places.contains_key(name) {
            continue;
        }
        if places.get(name).and_then(|&file| shards.get(file)) != Some(&shard.as_str()) {
            return Err(Error::file(
                &path,
                format!("places tensor `{name}` in {shard}, which does not hold it"),
                INCOMPLETE,
            ));
        }
    }
    if let Some(name) = places.keys().find(|name| !index.contains_key(*name)) {
        return Err(Error::file(&path, format!("does not list tensor `{name}`, which a shard holds"), INCOMPLETE));
    }
    Ok((files, places))
}

/// Tensor name → shard, each a plain file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let index = read_json(path)?;
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::file(path, "has no object `weight_map`", INCOMPLETE))?;
    let entry = |(name, shard): (&String, &Value)| match shard.as_str() {
        Some(shard) if is_plain(shard) => Ok((name.clone(), shard.to_owned())),
        _ => Err(Error::file(path, format!("places tensor `{name}` in {shard}, not a file of the folder"), INCOMPLETE)),
    };
    map.iter().map(entry).collect()
}

/// No folder, no `..`: an index must not lead out of its folder.
fn is_plain(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}
