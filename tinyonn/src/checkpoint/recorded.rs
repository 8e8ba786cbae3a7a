//! Tensors in a safetensors file with a record of what they were made from: one entry of the metadata, JSON, with the record and a SHA-256 over record and
//! tensors.

use std::path::Path;

use candle_core::Device;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};
use serde_json::{Value, json};

use super::MappedSafetensors;
use crate::files::Digest;
use crate::ranks::{Collective, gather};
use crate::{Error, Result};

/// A tensor as it is stored.
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl StoredTensor {
    /// One row of f64, as a vector.
    pub(crate) fn values(name: String, values: &[f64]) -> Self {
        Self { shape: vec![values.len()], ..Self::rows(name, &[values]) }
    }

    /// Rows of f64 of equal length.
    pub(crate) fn rows(name: String, rows: &[&[f64]]) -> Self {
        let shape = vec![rows.len(), rows.first().map_or(0, |row| row.len())];
        let bytes = rows.iter().flat_map(|row| row.iter()).flat_map(|x| x.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F64, shape, bytes }
    }

    /// Whole numbers.
    pub(crate) fn words(name: String, words: &[u32]) -> Self {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { name, dtype: Dtype::U32, shape: vec![words.len()], bytes }
    }

    /// Rows of `width` numbers of 32 bits, each as its bytes.
    pub(crate) fn table(name: String, dtype: Dtype, width: usize, bytes: Vec<u8>) -> Self {
        let count = bytes.len() / (4 * width).max(1);
        Self { name, dtype, shape: vec![count, width], bytes }
    }

    fn view(&self) -> Result<TensorView<'_>, SafeTensorError> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes)
    }
}

/// The file that `path` will be: `tensors`, in the order of their names, with `record` under `key`.
///
/// # Errors
/// Tensors that contradict themselves.
pub(crate) fn bytes(path: &Path, key: &str, record: &Value, mut tensors: Vec<StoredTensor>) -> Result<Vec<u8>> {
    let defect = |problem: &dyn ToString| Error::file(path, problem.to_string(), "report this as a defect");
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let contents = tensors.iter().map(|stored| (stored.name.as_str(), stored.bytes.as_slice()));
    let metadata = json!({ "sha256": digest(record, contents), "record": record });
    let views = tensors.iter().map(|stored| Ok((stored.name.as_str(), stored.view()?)));
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_, SafeTensorError>>().map_err(|e| defect(&e))?;
    let bytes = safetensors::serialize(views, Some([(key.to_owned(), metadata.to_string())].into()));
    bytes.map_err(|e| defect(&e))
}

/// The files that all ranks would write, by rank, at rank 0; nothing at the others. `own` are the bytes of this one's.
///
/// # Errors
/// As of [`gather`]; bytes that are no safetensors file.
pub(crate) fn of_ranks(
    ranks: &dyn Collective,
    own: Vec<u8>,
    device: &Device,
) -> Result<Option<Vec<MappedSafetensors>>> {
    let all = gather(ranks, &own, device)?;
    drop(own);
    let read = |(rank, bytes)| MappedSafetensors::of_bytes(Path::new(&format!("rank {rank}")), bytes);
    all.map(|all| all.into_iter().enumerate().map(read).collect()).transpose()
}

/// A file of tensors with a record, mapped.
pub(crate) struct Recorded {
    file: MappedSafetensors,
    sha256: Value,
    /// What the tensors were made from; a claim until [`check`](Self::check) was called.
    pub(crate) record: Value,
}

impl Recorded {
    /// Opens `path`. The second error says why the file holds no such record, `None` where it says nothing under `key`.
    ///
    /// # Errors
    /// A file that is no safetensors file.
    pub(crate) fn open(path: &Path, key: &str) -> Result<Result<Self, Option<String>>> {
        Ok(Self::of(MappedSafetensors::open(path)?, key))
    }

    /// The same of a file that is open.
    pub(crate) fn of(file: MappedSafetensors, key: &str) -> Result<Self, Option<String>> {
        let Some(metadata) = file.metadata(key) else { return Err(None) };
        let mut metadata: Value = match serde_json::from_str(metadata) {
            Ok(metadata) => metadata,
            Err(e) => return Err(Some(e.to_string())),
        };
        let [sha256, record] = ["sha256", "record"].map(|name| metadata.get_mut(name).map_or(Value::Null, Value::take));
        Ok(Self { file, sha256, record })
    }

    /// Whether record and tensors are those that were written.
    ///
    /// # Errors
    /// What the system reports.
    pub(crate) fn check(&self) -> Result<bool> {
        let contents = self.file.names().map(|name| Ok((name, self.file.bytes(name)?))).collect::<Result<Vec<_>>>()?;
        Ok(self.sha256 == digest(&self.record, contents.into_iter()))
    }

    /// SHA-256 over record and tensors, as the file says it.
    pub(crate) fn sha256(&self) -> &str {
        self.sha256.as_str().unwrap_or_default()
    }

    /// The tensors.
    pub(crate) fn file(&self) -> &MappedSafetensors {
        &self.file
    }
}

/// SHA-256 of the record and of tensors in the order of their names.
fn digest<'a>(record: &Value, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut digest = Digest::new();
    digest.text(&record.to_string());
    for (name, bytes) in tensors {
        digest.text(name);
        digest.bytes(bytes);
    }
    digest.hex()
}
