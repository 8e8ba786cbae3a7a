//! Writing a model folder, whole or not at all.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::entry::{Entry, Failure};
use super::folder::{CONFIG, INDEX, ModelFolder, SINGLE};
use super::gguf::{GgufFile, is_gguf};
use super::layout::Order;
use super::not_finite::NotFinite;
use super::store::ParamStore;
use crate::files::{self, StagedFolder};
use crate::{Error, Result};

/// Bytes of tensors that one file holds at most, unless a single tensor is larger.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What is copied beside the weights: the tokenizer and the defaults of generation.
///
/// ```
/// use tinyonn::checkpoint::{MAX_SHARD_BYTES, TOKENIZER_FILES};
/// assert!(TOKENIZER_FILES.contains(&"tokenizer.json") && TOKENIZER_FILES.contains(&"generation_config.json"));
/// assert_eq!(MAX_SHARD_BYTES, 5_000_000_000);
/// ```
pub const TOKENIZER_FILES: [&str; 15] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// A folder of the same, whose files are copied.
const CHAT_TEMPLATES: &str = "additional_chat_templates";

impl ModelFolder {
    /// Writes `config` and every entry of `store` to the new folder `dir`, and copies [`TOKENIZER_FILES`] from the
    /// folder `tokenizer`, those that it has, or writes those that the GGUF file `tokenizer` comes to. Beyond [`MAX_SHARD_BYTES`] the weights are sharded, with an index.
    ///
    /// Everything is written to the sibling `.NAME.saving`, brought to disk, and renamed: a process killed at any
    /// moment leaves `dir` as it was. What such a process left behind, the next save to `dir` clears.
    ///
    /// # Errors
    /// `dir` exists and is not empty, another process is saving to it, or the system refuses a file.
    pub fn save(dir: impl AsRef<Path>, config: &Value, store: &ParamStore, tokenizer: Option<&Path>) -> Result<()> {
        Self::save_sharded(dir, config, store, tokenizer, MAX_SHARD_BYTES)
    }

    /// As [`ModelFolder::save`], with files of at most `max_shard_bytes` of tensors.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::{ModelFolder, ParamStore};
    ///
    /// # let parent = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
    /// # let dir = parent.path().join("model");
    /// let mut store = ParamStore::new(&Device::Cpu);
    /// for name in ["a.weight", "b.weight"] {
    ///     store.insert(name, Tensor::ones(4, DType::F32, &Device::Cpu)?)?;
    /// }
    /// ModelFolder::save_sharded(&dir, &serde_json::json!({ "model_type": "qwen3" }), &store, None, 16)?;
    /// assert!(dir.join("model-00002-of-00002.safetensors").is_file() && dir.join("model.safetensors.index.json").is_file());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save_sharded(
        dir: impl AsRef<Path>,
        config: &Value,
        store: &ParamStore,
        tokenizer: Option<&Path>,
        max_shard_bytes: u64,
    ) -> Result<()> {
        let staged = StagedFolder::new(dir)?;
        write_all(staged.path(), config, &entries(store)?, tokenizer, max_shard_bytes)?;
        staged.publish()
    }

    /// As [`ModelFolder::save`], into the folder `staged`, which its caller checks before it takes its name, or puts in the
    /// place of another.
    ///
    /// ```
    /// use candle_core::Device;
    /// use tinyonn::checkpoint::{ModelFolder, ParamStore};
    /// use tinyonn::files::StagedFolder;
    ///
    /// # let parent = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
    /// # let dir = parent.path().join("model");
    /// let staged = StagedFolder::new(&dir)?;
    /// ModelFolder::write_into(&staged, &serde_json::json!({ "model_type": "qwen3" }), &ParamStore::new(&Device::Cpu), None)?;
    /// assert!(staged.path().join("config.json").is_file() && !dir.exists()); // here its caller looks at it
    /// staged.publish()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The system refuses a file.
    pub fn write_into(
        staged: &StagedFolder,
        config: &Value,
        store: &ParamStore,
        tokenizer: Option<&Path>,
    ) -> Result<()> {
        write_all(staged.path(), config, &entries(store)?, tokenizer, MAX_SHARD_BYTES).map(drop)
    }
}

/// Writes `config`, `entries` and the tokenizer's files into `dir`; the tensors that were copied and hold values that are no finite numbers, and
/// how many.
pub(super) fn write_all(
    dir: &Path,
    config: &Value,
    entries: &[Entry<'_>],
    tokenizer: Option<&Path>,
    limit: u64,
) -> Result<NotFinite> {
    write_json(&dir.join(CONFIG), config)?;
    if let Some(source) = tokenizer {
        copy_tokenizer(source, dir)?;
    }
    let shards = split(entries, limit);
    if let [all] = shards.as_slice() {
        return write_entries(&dir.join(SINGLE), all, FRAMEWORK);
    }
    let (mut places, mut spoilt) = (Vec::with_capacity(entries.len()), Vec::new());
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        spoilt.extend(write_entries(&dir.join(&file), shard, FRAMEWORK)?);
        places.extend(shard.iter().map(|entry| (entry.name().to_owned(), Value::from(file.as_str()))));
    }
    let total: u64 = entries.iter().map(Entry::bytes).sum();
    let weight_map = Map::from_iter(places);
    write_json(&dir.join(INDEX), &json!({ "metadata": { "total_size": total }, "weight_map": weight_map }))?;
    Ok(spoilt)
}

/// The entries of a store, as files have them.
fn entries(store: &ParamStore) -> Result<Vec<Entry<'_>>> {
    store.iter().map(|(name, var)| Entry::of_tensor(name, var.as_tensor(), Order::Stored)).collect()
}

/// Runs of entries, each as long as `limit` allows; one run at least, one entry a run at least.
fn split<'a, 'b>(entries: &'b [Entry<'a>], limit: u64) -> Vec<&'b [Entry<'a>]> {
    let (mut shards, mut first, mut size) = (Vec::new(), 0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if size + entry.bytes() > limit && size > 0 {
            shards.push(&entries[first..at]);
            (first, size) = (at, 0);
        }
        size += entry.bytes();
    }
    shards.push(&entries[first..]);
    shards
}

/// transformers refuses a file that does not say for which framework it was written.
const FRAMEWORK: (&str, &str) = ("format", "pt");

/// One safetensors file, with a key and its value in its header (one, because the order of several is not determined). What
/// [`Entry::write`] finds, by name.
pub(crate) fn write_entries(path: &Path, entries: &[Entry<'_>], metadata: (&str, &str)) -> Result<NotFinite> {
    let entries = in_order(entries);
    let header = header(path, &entries, metadata)?;
    let file = File::create(path).map_err(|e| Error::io(path, e))?;
    let mut out = BufWriter::new(file);
    let io = |e| Error::io(path, e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    let mut spoilt = Vec::new();
    for entry in entries {
        match entry.write(&mut out) {
            Ok(0) => {}
            Ok(count) => spoilt.push((entry.name().to_owned(), count)),
            Err(Failure::Write(e)) => return Err(io(e)),
            Err(Failure::Read(e)) => return Err(e),
        }
    }
    out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
    Ok(spoilt)
}

/// Entries as they stand in a file.
fn in_order<'a, 'b>(entries: &'b [Entry<'a>]) -> Vec<&'b Entry<'a>> {
    let mut entries: Vec<&Entry<'_>> = entries.iter().collect();
    entries.sort_by(|a, b| a.place().cmp(&b.place()));
    entries
}

/// The same file with zeros for values, which several then write; returns how many bytes stand before the first value.
pub(crate) fn begin_entries(path: &Path, entries: &[Entry<'_>], metadata: (&str, &str)) -> Result<u64> {
    let header = header(path, &in_order(entries), metadata)?;
    let (before, values) = (8 + header.len() as u64, entries.iter().map(Entry::bytes).sum::<u64>());
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.set_len(before + values)
    };
    write().map_err(|e| Error::io(path, e))?;
    Ok(before)
}

/// Where the values of each entry begin behind the header, in bytes, by name.
pub(crate) fn places(entries: &[Entry<'_>]) -> HashMap<String, u64> {
    let mut start = 0;
    let place = |entry: &Entry<'_>| {
        start += entry.bytes();
        (entry.name().to_owned(), start - entry.bytes())
    };
    in_order(entries).into_iter().map(place).collect()
}

/// The JSON header, padded so that the tensors start on a multiple of 8 bytes.
fn header(path: &Path, entries: &[&Entry<'_>], (key, value): (&str, &str)) -> Result<Vec<u8>> {
    let mut tensors = Vec::with_capacity(entries.len());
    let mut start = 0;
    for entry in entries {
        if entry.name() == "__metadata__" {
            return Err(Error::tensor(entry.name(), "bears the name of the format's own entry", "rename it"));
        }
        let info = entry.info(start);
        start = info.data_offsets.1;
        tensors.push((entry.name().to_owned(), info));
    }
    let metadata = HashMap::from([(key.to_owned(), value.to_owned())]);
    let unfit = |problem: String| Error::file(path, problem, "report this as a defect");
    let metadata = Metadata::new(Some(metadata), tensors).map_err(|e| unfit(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| unfit(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// The tokenizer's files of a folder, or those that a GGUF file's metadata come to.
fn copy_tokenizer(source: &Path, dir: &Path) -> Result<()> {
    if is_gguf(source) {
        for (name, text) in GgufFile::open(source)?.tokenizer_files()? {
            files::write(dir.join(name), text)?;
        }
        return Ok(());
    }
    if !source.is_dir() {
        return Err(Error::file(source, "is not a folder", "give the folder that holds tokenizer.json"));
    }
    for name in TOKENIZER_FILES {
        let from = source.join(name);
        if from.is_file() {
            files::write(dir.join(name), fs::read(&from).map_err(|e| Error::io(&from, e))?)?;
        }
    }
    let templates = source.join(CHAT_TEMPLATES);
    if templates.is_dir() {
        let io = |e| Error::io(&templates, e);
        let to = dir.join(CHAT_TEMPLATES);
        fs::create_dir_all(&to).map_err(|e| Error::io(&to, e))?;
        for entry in fs::read_dir(&templates).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.path().is_file() {
                files::write(
                    to.join(entry.file_name()),
                    fs::read(entry.path()).map_err(|e| Error::io(entry.path(), e))?,
                )?;
            }
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    files::write(path, format!("{value:#}\n"))
}
