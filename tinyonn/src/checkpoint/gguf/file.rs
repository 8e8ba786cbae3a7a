//! A GGUF model: one file, or all parts of a split one, mapped and checked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::architecture::Architecture;
use super::config::{Settings, settings};
use super::fault::{Fault, damaged};
use super::ggml::GgmlType;
use super::header::{Header, MAGIC, Place};
use super::metadata::Metadata;
use super::names::{ROPE_FREQUENCIES, hugging_face, permuted_heads, restore_rows};
use super::split;
use crate::checkpoint::entry::raw_bytes;
use crate::checkpoint::mmap::{Mapped, TensorInfo};
use crate::checkpoint::source::WeightSource;
use crate::{Error, Result};

/// Bytes of blocks that are dequantised at once.
const PIECE: usize = 1 << 20;

/// What a GGUF model says of one tensor.
///
/// ```
/// use tinyonn::checkpoint::gguf::{GgmlType, GgufFile, GgufTensor, is_gguf};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/llama_blocks.gguf");
/// assert!(is_gguf(path));
/// let file = GgufFile::open(path)?;
/// let of = |wanted: &str| file.tensors().find(|(name, _)| *name == wanted).map(|(_, tensor)| tensor);
/// let norm: &GgufTensor = of("model.norm.weight").expect("it has one");
/// assert_eq!((norm.kind, norm.info.shape.as_slice()), (GgmlType::F32, &[96][..]));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// How it is stored.
    pub kind: GgmlType,
    /// The type that it is read as, f32 where it is stored in blocks, and its sizes as in a Hugging Face folder.
    pub info: TensorInfo,
    /// Which part holds it, and where.
    part: usize,
    bytes: Range<usize>,
    /// The heads whose rows the writer put into another order.
    permuted: Option<usize>,
}

impl GgufTensor {
    fn elements(&self) -> usize {
        self.info.shape.iter().product()
    }
}

/// A GGUF model, opened: its header checked, its tensors listed by their Hugging Face names, their bytes mapped.
///
/// The files must stay as they are while mapped.
#[derive(Debug)]
pub struct GgufFile {
    /// The file, or the first of its parts, which has the settings and the tokenizer.
    first: Part,
    others: Vec<Part>,
    config: Value,
    tensors: BTreeMap<String, GgufTensor>,
}

/// One mapped file and its header.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) map: Mapped,
    pub(super) header: Header,
}

impl Part {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path, ".gguf")?;
        let header = Header::read(map.bytes()).map_err(|fault| fault.of(path))?;
        Ok(Self { map, header })
    }
}

/// Whether `path` is a file that begins as GGUF files do, whatever its name.
#[must_use]
pub fn is_gguf(path: impl AsRef<Path>) -> bool {
    let mut magic = [0; MAGIC.len()];
    path.as_ref().is_file()
        && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && &magic == MAGIC
}

impl GgufFile {
    /// Opens the GGUF model `path`, of which any part may be given where it is split.
    ///
    /// # Errors
    /// Names the file when its header does not describe its bytes, when it holds no dense language model of the architectures that
    /// are read, or when a part is missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (first, others) = split::open(path.as_ref())?;
        let (config, tensors) = read_model(&first, &others).map_err(|fault| fault.of(first.map.path()))?;
        Ok(Self { first, others, config, tensors })
    }

    /// The file, or the first of its parts.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.first.map.path()
    }

    /// The `config.json` of a Hugging Face folder of the same model.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Every tensor by its Hugging Face name, sorted.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// A tensor's bytes as the file has them, blocks and the writer's order of rows included.
    fn stored(&self, name: &str) -> Result<&[u8]> {
        let tensor = self.tensor(name)?;
        let part = parts_of(&self.first, &self.others).nth(tensor.part);
        part.and_then(|part| part.map.bytes().get(tensor.bytes.clone())).ok_or_else(|| self.missing(name))
    }

    /// The tensor of this Hugging Face name on `device`: blocks dequantised, rows in order, in `dtype`, or where `None` in f32 (f16 and
    /// bf16 stay as they are). No other tensor's values are held meanwhile.
    ///
    /// # Errors
    /// The model has no tensor of this name; what the device reports.
    pub fn load(&self, name: &str, device: &Device, dtype: Option<DType>) -> Result<Tensor> {
        let tensor = self.tensor(name)?;
        let mut values = tensor.kind.values(self.stored(name)?, &tensor.info.shape)?;
        if let Some(heads) = tensor.permuted {
            values = restore_rows(&values, heads)?;
        }
        Ok(values.to_dtype(dtype.unwrap_or(values.dtype()))?.to_device(device)?)
    }

    /// One line for a user: how the weights are stored, and what they become in `dtype`.
    #[must_use]
    pub fn describe(&self, dtype: DType) -> String {
        let name = self.path().file_name().unwrap_or(self.path().as_os_str()).to_string_lossy();
        let mut sizes: BTreeMap<GgmlType, usize> = BTreeMap::new();
        for tensor in self.tensors.values() {
            *sizes.entry(tensor.kind).or_default() += tensor.bytes.len();
        }
        let stored: usize = parts_of(&self.first, &self.others).map(|part| part.map.bytes().len()).sum();
        let most =
            sizes.iter().max_by_key(|(_, size)| **size).map_or("nothing".to_owned(), |(kind, _)| kind.to_string());
        let elements: usize = self.tensors.values().map(GgufTensor::elements).sum();
        let computed = megabytes(elements.saturating_mul(dtype.size_in_bytes()));
        let become_of = if sizes.keys().all(|kind| kind.is_plain()) { "read as" } else { "dequantised to" };
        let parts = if self.others.is_empty() { String::new() } else { format!(" in {} parts", self.others.len() + 1) };
        format!("{name}: {most}, {}{parts}, {become_of} {} ({computed})", megabytes(stored), dtype.as_str())
    }

    /// The keys, and the bytes of the part that holds them.
    pub(super) fn metadata(&self) -> (&Metadata, &[u8]) {
        (&self.first.header.metadata, self.first.map.bytes())
    }

    fn tensor(&self, name: &str) -> Result<&GgufTensor> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        Error::tensor(name, format!("is not in {}", self.path().display()), "give the whole model, as it was converted")
    }
}

impl WeightSource for GgufFile {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let tensor = self.tensor(name)?;
        if tensor.kind.is_plain() && tensor.permuted.is_none() {
            return self.stored(name).map(Cow::Borrowed);
        }
        raw_bytes(name, &GgufFile::load(self, name, &Device::Cpu, None)?).map(Cow::Owned)
    }

    fn pieces(&self, name: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let GgufTensor { kind, permuted, .. } = self.tensor(name)?;
        if permuted.is_some() {
            return take(&WeightSource::bytes(self, name)?);
        }
        let (block, elements) = kind.block();
        for part in self.stored(name)?.chunks((PIECE / block).max(1) * block) {
            if kind.is_plain() {
                take(part)?;
            } else {
                take(&raw_bytes(name, &kind.values(part, &[part.len() / block * elements])?)?)?;
            }
        }
        Ok(())
    }

    fn load(&self, name: &str, device: &Device, dtype: Option<DType>) -> Result<Tensor> {
        GgufFile::load(self, name, device, dtype)
    }

    fn describe(&self, dtype: Option<DType>) -> Option<String> {
        let changes =
            |tensor: &GgufTensor| !tensor.kind.is_plain() || dtype.is_some_and(|d| d != tensor.kind.computed());
        self.tensors.values().any(changes).then(|| GgufFile::describe(self, dtype.unwrap_or(DType::F32)))
    }

    fn tokenizer_json(&self) -> Result<Option<String>> {
        GgufFile::tokenizer_json(self).map(Some)
    }

    fn files_beside(&self) -> Result<Option<Vec<(&'static str, String)>>> {
        self.tokenizer_files().map(Some)
    }
}

fn megabytes(bytes: usize) -> String {
    if bytes < 1_000_000 {
        format!("{:.1} MB", bytes as f64 / 1e6)
    } else {
        format!("{} MB", (bytes + 500_000) / 1_000_000)
    }
}

fn parts_of<'a>(first: &'a Part, others: &'a [Part]) -> impl Iterator<Item = &'a Part> {
    std::iter::once(first).chain(others)
}

/// The configuration, and the tensors under their Hugging Face names.
fn read_model(first: &Part, others: &[Part]) -> Result<(Value, BTreeMap<String, GgufTensor>), Fault> {
    let metadata = &first.header.metadata;
    let mut places: BTreeMap<String, &Place> = BTreeMap::new();
    let mut homes = Vec::new();
    for (number, part) in parts_of(first, others).enumerate() {
        for (name, place) in &part.header.tensors {
            if places.insert(name.clone(), place).is_some() {
                return Err(damaged(format!("the tensor `{name}` is in two of its parts")));
            }
            homes.push((name, place, number));
        }
    }
    let architecture = Architecture::of(metadata, &places)?;
    let frequencies = rope_frequencies(parts_of(first, others))?;
    let read = settings(architecture, metadata, &places, first.map.bytes(), frequencies.as_deref())?;
    let Settings { heads, key_value_heads, config } = read;
    let mut tensors = BTreeMap::new();
    for (stored, place, part) in homes {
        if stored == ROPE_FREQUENCIES {
            continue;
        }
        let Some(name) = hugging_face(stored) else {
            let problem = format!("has the tensor `{stored}`, which a {} model does not have", architecture.name());
            return Err(Fault::new(problem, "give a model in the form that llama.cpp's converter writes"));
        };
        let permuted = permuted_heads(architecture, &name, heads, key_value_heads);
        let rows = place.shape.first().copied().unwrap_or_default();
        if let Some(heads) = permuted.filter(|heads| rows % (2 * heads) != 0) {
            return Err(damaged(format!("tensor `{stored}` has {rows} rows for {heads} heads")));
        }
        let Place { kind, shape, bytes } = place.clone();
        let info = TensorInfo { dtype: kind.read_as(), shape };
        tensors.insert(name, GgufTensor { kind, info, part, bytes, permuted });
    }
    Ok((config, tensors))
}

/// The values of the tensor that scales a rotary embedding.
fn rope_frequencies<'a>(mut parts: impl Iterator<Item = &'a Part>) -> Result<Option<Vec<f32>>, Fault> {
    let found = parts.find_map(|part| Some((part, part.header.tensors.get(ROPE_FREQUENCIES)?)));
    let Some((part, place)) = found else { return Ok(None) };
    if place.kind != GgmlType::F32 || place.shape.len() != 1 {
        return Err(damaged(format!("tensor `{ROPE_FREQUENCIES}` is {} {:?}, no row of F32", place.kind, place.shape)));
    }
    let bytes = part.map.bytes().get(place.bytes.clone()).unwrap_or_default();
    let (values, _) = bytes.as_chunks::<4>();
    Ok(Some(values.iter().map(|value| f32::from_le_bytes(*value)).collect()))
}
