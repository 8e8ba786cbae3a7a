//! Memory-mapped files: the bytes of any, and of a safetensors file its names, types and shapes, without reading what is not asked for.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::files::{IS_LFS_POINTER, LFS_POINTER, PULL};
use crate::{Error, Result};

/// Bytes of the length that opens a file.
const LENGTH_BYTES: usize = 8;
/// Bytes that are given at once by [`MappedSafetensors::pieces`].
const PIECE: usize = 8 << 20;
const DAMAGED: &str = "the file is truncated or damaged: copy or download it again";

/// What a file says of one tensor.
///
/// ```
/// use candle_core::DType;
/// use safetensors::Dtype;
/// use tinyonn::checkpoint::mmap::TensorInfo;
///
/// assert_eq!(TensorInfo { dtype: Dtype::BF16, shape: vec![4, 6] }.computed(), Some(DType::BF16));
/// assert_eq!(TensorInfo { dtype: Dtype::I8, shape: vec![] }.computed(), None); // nothing is computed in it
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of an element, as stored.
    pub dtype: Dtype,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The same type to compute in, of those that checkpoints hold: f32, bf16, f16 and u32.
    #[must_use]
    pub fn computed(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F16 => Some(DType::F16),
            Dtype::U32 => Some(DType::U32),
            _ => None,
        }
    }
}

/// A file's bytes, mapped for reading. The file must stay as it is while mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    path: PathBuf,
    map: Map,
}

#[derive(Debug)]
enum Map {
    File(Mmap),
    /// What came otherwise than by a file, and is in memory.
    Held(Vec<u8>),
}

impl Mapped {
    /// Maps `path`, which its reader expects to be a `kind` file (`.safetensors`).
    pub(super) fn open(path: &Path, kind: &str) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
            return Err(Error::file(path, "is not a file", format!("give a {kind} file")));
        }
        // SAFETY: the mapping is read-only, and lives as long as the slices lent from it. Nothing in this
        // library writes to a file of weights in place; a foreign process that shortens it while mapped breaks the
        // contract stated on the type, as with every reader that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        if map.starts_with(LFS_POINTER) {
            return Err(Error::file(path, IS_LFS_POINTER, PULL));
        }
        Ok(Self { path: path.to_path_buf(), map: Map::File(map) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.map {
            Map::File(map) => map,
            Map::Held(bytes) => bytes,
        }
    }

    /// Lets go of the pages of a range: they are read anew when they are asked for again. Where the system refuses, they stay.
    fn release(&self, range: Range<usize>) {
        let Map::File(map) = &self.map else { return };
        // SAFETY: the mapping is of a file and nothing writes to it, so that a page that is dropped comes back with the file's own
        // bytes, which slices lent from the mapping then read as before; the range lies within it, as slicing it has shown.
        let dropped = map
            .get(range.clone())
            .map(|part| unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, part.len()) });
        if let Some(Err(e)) = dropped {
            tracing::debug!("{}: pages that were read stay in memory: {e}", self.path.display());
        }
    }
}

/// A safetensors file, mapped for reading.
///
/// The file must stay as it is while mapped; [`ModelFolder::save`](super::ModelFolder::save) never writes into an
/// existing one.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::MappedSafetensors;
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16/model.safetensors");
/// let file = MappedSafetensors::open(path)?;
/// let name = file.names().find(|name| name.ends_with("norm.weight")).expect("it has norms").to_owned();
/// let info = file.info(&name).expect("it is there");
/// assert_eq!((info.computed(), file.bytes(&name)?.len()), (Some(DType::BF16), 2 * info.shape[0]));
/// let mut read = 0;
/// file.pieces(&name, &mut |piece| {
///     read += piece.len();
///     Ok(())
/// })?;
/// assert_eq!((read, file.load(&name, &Device::Cpu)?.dims()), (2 * info.shape[0], &info.shape[..]));
/// assert_eq!((file.path().file_name().and_then(|name| name.to_str()), file.metadata("no such key")), (Some("model.safetensors"), None));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct MappedSafetensors {
    map: Mapped,
    tensors: Places,
    metadata: BTreeMap<String, String>,
}

/// Type, shape and place of every tensor.
type Places = BTreeMap<String, (TensorInfo, Range<usize>)>;

impl MappedSafetensors {
    /// Maps `path` and reads its header.
    ///
    /// # Errors
    /// Names the file when it cannot be opened, is empty, truncated, or its header does not describe its bytes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::of(Mapped::open(path.as_ref(), ".safetensors")?)
    }

    /// The file that `bytes` would be at `path`.
    pub(crate) fn of_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::of(Mapped { path: path.to_path_buf(), map: Map::Held(bytes) })
    }

    fn of(map: Mapped) -> Result<Self> {
        let (tensors, metadata) =
            read_header(map.bytes()).map_err(|problem| Error::file(map.path(), problem, DAMAGED))?;
        Ok(Self { map, tensors, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// What the file says of itself under `key`, beside its tensors.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and shape of a tensor, if the file has it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    /// A tensor's bytes as stored: little-endian, outermost dimension slowest.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (_, range) = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        self.map.bytes().get(range.clone()).ok_or_else(|| self.missing(name))
    }

    /// Gives a tensor's bytes in order, piece by piece; each piece's pages are let go of behind it.
    ///
    /// # Errors
    /// No such tensor; what `take` reports.
    pub fn pieces(&self, name: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (_, range) = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        for start in range.clone().step_by(PIECE) {
            let piece = start..range.end.min(start + PIECE);
            take(self.map.bytes().get(piece.clone()).ok_or_else(|| self.missing(name))?)?;
            self.map.release(piece);
        }
        Ok(())
    }

    /// Lets go of the pages of a tensor's bytes.
    pub(super) fn release(&self, name: &str, bytes: Range<usize>) {
        if let Some((_, range)) = self.tensors.get(name) {
            self.map.release(range.start + bytes.start..range.end.min(range.start + bytes.end));
        }
    }

    /// A tensor on `device`, in its stored type: f32, bf16, f16 or u32.
    pub fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.info(name).ok_or_else(|| self.missing(name))?;
        let dtype = info.computed().ok_or_else(|| {
            let problem = format!("is of type {} in {}", info.dtype, self.path().display());
            Error::tensor(name, problem, "save the checkpoint in F32, BF16 or F16")
        })?;
        Ok(Tensor::from_raw_buffer(self.bytes(name)?, dtype, &info.shape, device)?)
    }

    fn missing(&self, name: &str) -> Error {
        Error::tensor(name, format!("is not in {}", self.path().display()), "check that the checkpoint is complete")
    }
}

/// Reads and checks the header: tensors, in order and without a gap, fill the file to its last byte.
///
/// The crate's own reader adds the offsets of a forged header unchecked, and panics where overflow is checked.
fn read_header(bytes: &[u8]) -> Result<(Places, BTreeMap<String, String>), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("holds {} bytes, too few for a safetensors file", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().and_then(|n| rest.get(..n));
    let header = header.ok_or_else(|| format!("its header claims {length} bytes, {} follow", rest.len()))?;
    let start = LENGTH_BYTES + header.len();
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| format!("its header cannot be read: {e}"))?;
    if metadata.data_len() != bytes.len() - start {
        return Err(format!(
            "its header describes {} bytes of tensors, {} follow",
            metadata.data_len(),
            bytes.len() - start
        ));
    }
    let place = |name: String| {
        let info = metadata.info(&name)?;
        let (begin, end) = info.data_offsets;
        let tensor = TensorInfo { dtype: info.dtype, shape: info.shape.clone() };
        Some((name, (tensor, start + begin..start + end)))
    };
    let of_itself = metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok((metadata.offset_keys().into_iter().filter_map(place).collect(), of_itself))
}
