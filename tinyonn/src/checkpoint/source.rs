//! Where a model's weights are read from: the safetensors files of a folder, or a GGUF file.
//!
//! Either gives its tensors as a Hugging Face folder has them: by the names there, their rows in order, in a type of safetensors.
//! Whoever reads a [`ModelFolder`](super::ModelFolder) need not know which it is.
//!
//! ```
//! use tinyonn::checkpoint::{ModelFolder, WeightSource};
//!
//! # let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
//! // Of a GGUF file tokenizer and settings are among the weights, of a folder beside them.
//! let [gguf, folder] = ["gguf/llama_k.gguf", "decoders/llama3_tied_bf16"].map(|name| ModelFolder::open(format!("{fixtures}/{name}")));
//! let (gguf, folder) = (gguf?, folder?);
//! let of = |source: &dyn WeightSource| Ok::<_, tinyonn::Error>((source.tokenizer_json()?.is_some(), source.files_beside()?.is_some()));
//! assert_eq!((of(gguf.source())?, of(folder.source())?), ((true, true), (false, false)));
//! assert!(gguf.source().describe(None).is_some() && folder.source().describe(None).is_none()); // blocks are dequantised
//!
//! let source = folder.source();
//! let name = source.names().next().expect("it has weights").to_owned();
//! let whole = source.bytes(&name)?.into_owned();
//! let mut pieces = Vec::new();
//! source.pieces(&name, &mut |piece| {
//!     pieces.extend_from_slice(piece);
//!     Ok(())
//! })?;
//! source.release(&name, 0..whole.len());
//! assert_eq!(whole, pieces);
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use super::mmap::{MappedSafetensors, TensorInfo};
use crate::{Error, Result};

pub(super) const INCOMPLETE: &str = "the folder is incomplete or mixed: copy or download it again";

/// A model's weights, by their names in a Hugging Face folder.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{ModelFolder, WeightSource};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/qwen2_f16.gguf");
/// let folder = ModelFolder::open(path)?;
/// let source: &dyn WeightSource = folder.source();
/// let info = source.info("model.norm.weight").unwrap();
/// assert_eq!(source.load("model.norm.weight", &Device::Cpu, None)?.dims(), info.shape);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub trait WeightSource: Debug + Send + Sync {
    /// The tensors' names, sorted.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Type and shape of a tensor, if there is one of this name.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// A tensor's bytes in that type and shape; borrowed where the file stores them so.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>>;

    /// Gives a tensor's bytes piece by piece, in order, and holds none of them afterwards: of a file that is mapped, pages that were read
    /// count as this process's memory until they are let go of.
    ///
    /// # Errors
    /// What `take` reports, and the system.
    fn pieces(&self, name: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        take(&self.bytes(name)?)
    }

    /// Lets go of the pages of a tensor's bytes that were read.
    fn release(&self, _name: &str, _bytes: Range<usize>) {}

    /// A tensor on `device`; floats in `dtype`, or where `None` in the type that [`WeightSource::info`] says.
    fn load(&self, name: &str, device: &Device, dtype: Option<DType>) -> Result<Tensor>;

    /// One line for a user, where weights loaded in `dtype` are not what the file stores.
    fn describe(&self, _dtype: Option<DType>) -> Option<String> {
        None
    }

    /// The text of a `tokenizer.json`, where the tokenizer is among the weights and not beside them.
    fn tokenizer_json(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// The names and texts of the files that stand beside the weights of a folder, where they are among the weights; `None` of a folder.
    fn files_beside(&self) -> Result<Option<Vec<(&'static str, String)>>> {
        Ok(None)
    }
}

/// The safetensors files of a folder.
#[derive(Debug)]
pub(super) struct SafetensorsFiles {
    pub(super) dir: PathBuf,
    pub(super) files: Vec<MappedSafetensors>,
    /// Plain name of a tensor → position in `files`, and its name there.
    pub(super) places: BTreeMap<String, (usize, String)>,
}

impl SafetensorsFiles {
    /// The file that holds a tensor, and its name there.
    fn place(&self, name: &str) -> Result<(&MappedSafetensors, &str)> {
        let place = self.places.get(name).and_then(|(file, stored)| Some((self.files.get(*file)?, stored.as_str())));
        place.ok_or_else(|| Error::tensor(name, format!("is not in {}", self.dir.display()), INCOMPLETE))
    }
}

impl WeightSource for SafetensorsFiles {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.places.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        let (file, stored) = self.place(name).ok()?;
        file.info(stored)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let (file, stored) = self.place(name)?;
        file.bytes(stored).map(Cow::Borrowed)
    }

    fn pieces(&self, name: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (file, stored) = self.place(name)?;
        file.pieces(stored, take)
    }

    fn release(&self, name: &str, bytes: Range<usize>) {
        if let Ok((file, stored)) = self.place(name) {
            file.release(stored, bytes);
        }
    }

    fn load(&self, name: &str, device: &Device, dtype: Option<DType>) -> Result<Tensor> {
        let (file, stored) = self.place(name)?;
        let tensor = file.load(stored, device)?;
        match dtype {
            Some(dtype) if tensor.dtype().is_float() => Ok(tensor.to_dtype(dtype)?),
            _ => Ok(tensor),
        }
    }
}
