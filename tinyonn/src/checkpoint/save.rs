//! Writing a model folder, whole or not at all.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo, View};
use serde_json::{Map, Value, json};

use super::folder::{CONFIG, INDEX, ModelFolder, SINGLE};
use super::gguf::{GgufFile, is_gguf};
use super::layout::Order;
use super::store::ParamStore;
use crate::files::{self, StagedFolder};
use crate::{Error, Result};

/// Bytes of tensors that one file holds at most, unless a single tensor is larger.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What is copied beside the weights: the tokenizer and the defaults of generation.
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
    pub fn save_sharded(
        dir: impl AsRef<Path>,
        config: &Value,
        store: &ParamStore,
        tokenizer: Option<&Path>,
        max_shard_bytes: u64,
    ) -> Result<()> {
        let staged = StagedFolder::new(dir)?;
        write_all(staged.path(), config, store, tokenizer, max_shard_bytes)?;
        staged.publish()
    }

    /// As [`ModelFolder::save`], into the folder `staged`, which its caller checks before it takes its name, or puts in the
    /// place of another.
    ///
    /// # Errors
    /// The system refuses a file.
    pub fn write_into(
        staged: &StagedFolder,
        config: &Value,
        store: &ParamStore,
        tokenizer: Option<&Path>,
    ) -> Result<()> {
        write_all(staged.path(), config, store, tokenizer, MAX_SHARD_BYTES)
    }
}

fn write_all(dir: &Path, config: &Value, store: &ParamStore, tokenizer: Option<&Path>, limit: u64) -> Result<()> {
    write_json(&dir.join(CONFIG), config)?;
    if let Some(source) = tokenizer {
        copy_tokenizer(source, dir)?;
    }
    let shards = split(store, limit);
    if let [all] = shards.as_slice() {
        return write_tensors(&dir.join(SINGLE), all, Order::Stored, FRAMEWORK);
    }
    let mut places = Vec::with_capacity(store.len());
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_tensors(&dir.join(&file), shard, Order::Stored, FRAMEWORK)?;
        places.extend(shard.iter().map(|(name, _)| ((*name).to_owned(), Value::from(file.as_str()))));
    }
    let total: u64 = store.iter().map(|(_, var)| bytes_of(var)).sum();
    let weight_map = Map::from_iter(places);
    write_json(&dir.join(INDEX), &json!({ "metadata": { "total_size": total }, "weight_map": weight_map }))
}

pub(crate) type Entry<'a> = (&'a str, &'a Tensor);

fn bytes_of(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// Runs of names, each as long as `limit` allows; one run at least, one name a run at least.
fn split(store: &ParamStore, limit: u64) -> Vec<Vec<Entry<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut size = 0;
    for (name, var) in store.iter() {
        let more = bytes_of(var);
        if size + more > limit && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, var.as_tensor()));
        }
    }
    shards
}

/// transformers refuses a file that does not say for which framework it was written.
const FRAMEWORK: (&str, &str) = ("format", "pt");

/// One safetensors file, with a key and its value in its header (one, because the order of several is not determined): wider types first, as its readers need for alignment, then by name.
pub(crate) fn write_tensors(path: &Path, entries: &[Entry<'_>], order: Order, metadata: (&str, &str)) -> Result<()> {
    let mut entries = entries.to_vec();
    entries.sort_by_key(|(name, tensor)| (std::cmp::Reverse(Tensor::dtype(tensor).size_in_bytes()), *name));
    let header = header(path, &entries, order, metadata)?;
    let file = File::create(path).map_err(|e| Error::io(path, e))?;
    let mut out = BufWriter::new(file);
    let io = |e| Error::io(path, e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    for (name, tensor) in entries {
        // Checked here, because the crate's own conversion unwraps.
        let tensor = on_cpu(name, &order.written(name, tensor)?)?;
        out.write_all(&View::data(&tensor)).map_err(io)?;
    }
    out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)
}

/// The JSON header, padded so that the tensors start on a multiple of 8 bytes.
fn header(path: &Path, entries: &[Entry<'_>], order: Order, (key, value): (&str, &str)) -> Result<Vec<u8>> {
    let mut tensors = Vec::with_capacity(entries.len());
    let mut start = 0;
    for (name, tensor) in entries {
        if *name == "__metadata__" {
            return Err(Error::tensor(*name, "bears the name of the format's own entry", "rename it"));
        }
        let end = start + bytes_of(tensor) as usize;
        let (dtype, shape) = (Tensor::dtype(tensor).into(), order.written_shape(name, tensor.dims().to_vec()));
        let info = TensorInfo { dtype, shape, data_offsets: (start, end) };
        tensors.push(((*name).to_owned(), info));
        start = end;
    }
    let metadata = HashMap::from([(key.to_owned(), value.to_owned())]);
    let unfit = |problem: String| Error::file(path, problem, "report this as a defect");
    let metadata = Metadata::new(Some(metadata), tensors).map_err(|e| unfit(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| unfit(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// The bytes of a tensor as a file holds them.
pub(crate) fn raw_bytes(name: &str, tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(View::data(&on_cpu(name, tensor)?).into_owned())
}

fn on_cpu(name: &str, tensor: &Tensor) -> Result<Tensor> {
    if !matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16 | DType::U32) {
        let problem = format!("is of type {:?}", tensor.dtype());
        return Err(Error::tensor(name, problem, "checkpoints hold F32, BF16, F16 and U32: convert it"));
    }
    Ok(tensor.detach().to_device(&Device::Cpu)?)
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
