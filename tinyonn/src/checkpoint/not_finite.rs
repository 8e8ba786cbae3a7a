//! Weights that are no finite numbers: what is computed from them says nothing of a model.

use std::path::Path;

use rayon::prelude::*;
use safetensors::Dtype;

use super::folder::ModelFolder;
use crate::{Error, Result};

/// At most so many names in an error; the count tells the rest.
const LISTED: usize = 4;
/// Bytes that are looked at together.
const PIECE: usize = 1 << 20;

/// Tensors that hold values that are no finite numbers, and how many each.
pub type NotFinite = Vec<(String, usize)>;

impl ModelFolder {
    /// The tensors that hold NaN or infinite values, and how many. Reads all weights.
    ///
    /// ```
    /// use tinyonn::checkpoint::ModelFolder;
    ///
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/decoders/llama3_tied_bf16");
    /// let folder = ModelFolder::open(dir)?;
    /// assert!(folder.not_finite()?.is_empty());
    /// folder.refuse_not_finite("take another model")?;
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the system reports.
    pub fn not_finite(&self) -> Result<NotFinite> {
        let mut found = Vec::new();
        for (name, info) in self.tensors() {
            let mut spoilt = 0;
            self.source().pieces(name, &mut |piece| {
                spoilt += count(piece, info.dtype);
                Ok(())
            })?;
            if spoilt > 0 {
                found.push((name.to_owned(), spoilt));
            }
        }
        Ok(found)
    }

    /// Refuses weights that are no finite numbers, and names them.
    ///
    /// # Errors
    /// There are some.
    pub fn refuse_not_finite(&self, remedy: &str) -> Result<()> {
        refuse_not_finite(self.dir(), &self.not_finite()?, remedy)
    }
}

/// Refuses `found`, tensors of the model at `dir` with the number of their values that are no finite numbers, if there are any.
///
/// ```
/// use std::path::Path;
/// use tinyonn::checkpoint::{NotFinite, refuse_not_finite};
///
/// let found: NotFinite = vec![("model.norm.weight".into(), 3)];
/// let said = refuse_not_finite(Path::new("broken"), &found, "train it again").unwrap_err().to_string();
/// assert!(said.contains("model.norm.weight") && said.ends_with("train it again"));
/// ```
///
/// # Errors
/// There are some.
pub fn refuse_not_finite(dir: &Path, found: &[(String, usize)], remedy: &str) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = found.iter().take(LISTED).map(|(name, count)| format!("`{name}` ({count})")).collect();
    let more = if found.len() > LISTED { format!(" and {} more", found.len() - LISTED) } else { String::new() };
    let problem = format!("values that are NaN or infinite in {} tensors: {}{more}", found.len(), shown.join(", "));
    Err(Error::file(dir, problem, remedy))
}

/// Values whose exponent is all ones.
pub(super) fn count(bytes: &[u8], dtype: Dtype) -> usize {
    let of_16 = |exponent: u16| {
        let infinite = move |value: &[u8; 2]| u16::from_le_bytes(*value) & exponent == exponent;
        let of_piece = move |piece: &[u8]| piece.as_chunks::<2>().0.iter().filter(|value| infinite(value)).count();
        bytes.par_chunks(PIECE).map(of_piece).sum()
    };
    match dtype {
        Dtype::F32 => {
            let of_piece = |piece: &[u8]| {
                piece.as_chunks::<4>().0.iter().filter(|value| !f32::from_le_bytes(**value).is_finite()).count()
            };
            bytes.par_chunks(PIECE).map(of_piece).sum()
        }
        Dtype::BF16 => of_16(0x7f80),
        Dtype::F16 => of_16(0x7c00),
        _ => 0,
    }
}
