//! Token ids to compare models on: from a file, or at random.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use rand::Rng as _;
use safetensors::Dtype;

use super::mmap::MappedSafetensors;
use crate::{Error, Result, files, random};

const REMEDY: &str =
    "give a safetensors file with `input_ids` [B, T] in I64 or U32, or a .json file like [[1, 2], [3, 4]]";

/// Random ids drawn at once, at most: 1 GiB of them.
const MOST: usize = 1 << 28;

/// Ids `[B, T]` drawn evenly from a vocabulary of `vocabulary` tokens.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::tokens::random_tokens;
///
/// let ids = random_tokens(64, (2, 8), 0, &Device::Cpu)?;
/// assert_eq!(ids.dims(), [2, 8]);
/// assert!(ids.flatten_all()?.to_vec1::<u32>()?.iter().all(|id| *id < 64));
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// More ids than a comparison could ever read; what the device reports.
pub fn random_tokens(vocabulary: usize, (b, t): (usize, usize), seed: u64, device: &Device) -> Result<Tensor> {
    let Some(count) = b.checked_mul(t).filter(|count| *count <= MOST) else {
        let problem = format!("{b} sequences of {t} are more than {MOST} ids");
        return Err(Error::setting("tokens", problem, "compare fewer sequences, or shorter ones"));
    };
    let mut rng = random::stream(seed, "checkpoint/tokens");
    let ids: Vec<u32> = (0..count).map(|_| rng.random_range(0..vocabulary as u32)).collect();
    Ok(Tensor::from_vec(ids, (b, t), device)?)
}

/// Reads ids `[B, T]`: `input_ids` of a safetensors file, or a `.json` array of equally long arrays.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::tokens;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ids.json");
/// std::fs::write(&path, "[[1, 2, 3], [4, 5, 6]]")?;
/// assert_eq!(tokens::read(&path, &Device::Cpu)?.to_vec2::<u32>()?, [[1, 2, 3], [4, 5, 6]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A file that is neither, holds no ids, or ids that are negative or no whole numbers.
pub fn read(path: impl AsRef<Path>, device: &Device) -> Result<Tensor> {
    let path = path.as_ref();
    let (ids, b, t) = if path.extension().is_some_and(|extension| extension == "json") {
        read_json(path)?
    } else {
        read_safetensors(path)?
    };
    if b == 0 || t == 0 {
        return Err(Error::file(path, format!("holds no tokens (ids [{b}, {t}])"), REMEDY));
    }
    Ok(Tensor::from_vec(ids, (b, t), device)?)
}

/// Refuses rows of more than `most` ids, and ids beyond a vocabulary of `vocabulary` tokens.
pub(crate) fn check(ids: &Tensor, vocabulary: usize, most: usize) -> Result<()> {
    let (_, t) = ids.dims2()?;
    if t > most {
        let problem = format!("sequences of {t} tokens are longer than the {most} that the model was made for");
        return Err(Error::setting("tokens", problem, format!("give --length {most} or less, or shorter rows")));
    }
    let highest = ids.flatten_all()?.to_vec1::<u32>()?.into_iter().max().unwrap_or(0);
    if (highest as usize) < vocabulary {
        return Ok(());
    }
    let problem = format!("id {highest} is beyond the vocabulary of {vocabulary}");
    Err(Error::setting("tokens", problem, "give ids of this model's tokenizer"))
}

fn read_json(path: &Path) -> Result<(Vec<u32>, usize, usize)> {
    let text = fs::read(path).map_err(|e| Error::io(path, e))?;
    let rows: Vec<Vec<u32>> = serde_json::from_slice(files::without_mark(&text))
        .map_err(|e| Error::file(path, format!("is no table of ids: {e}"), REMEDY))?;
    let t = rows.first().map_or(0, Vec::len);
    if let Some((i, row)) = rows.iter().enumerate().find(|(_, row)| row.len() != t) {
        let problem = format!("row {i} has {} ids, row 0 has {t}", row.len());
        return Err(Error::file(path, problem, "make all rows equally long"));
    }
    Ok((rows.concat(), rows.len(), t))
}

fn read_safetensors(path: &Path) -> Result<(Vec<u32>, usize, usize)> {
    let file = MappedSafetensors::open(path)?;
    let Some(info) = file.info("input_ids") else {
        return Err(Error::file(path, "holds no tensor `input_ids`", REMEDY));
    };
    let unfit = |problem: String| Error::file(path, format!("`input_ids` {problem}"), REMEDY);
    let [b, t] = info.shape[..] else {
        return Err(unfit(format!("has shape {:?}", info.shape)));
    };
    let (words, _) = file.bytes("input_ids")?.as_chunks::<4>();
    let words = words.iter().map(|word| u32::from_le_bytes(*word));
    let ids: Vec<u32> = match info.dtype {
        Dtype::U32 => words.collect(),
        // Little-endian: the low word comes first; an id's high word is 0.
        Dtype::I64 => {
            let words: Vec<u32> = words.collect();
            let (pairs, _) = words.as_chunks::<2>();
            if let Some([low, high]) = pairs.iter().find(|[_, high]| *high != 0) {
                let id = (u64::from(*high) << 32 | u64::from(*low)).cast_signed();
                return Err(unfit(format!("holds {id}, which is no token")));
            }
            pairs.iter().map(|[low, _]| *low).collect()
        }
        other => return Err(unfit(format!("is of type {other}"))),
    };
    Ok((ids, b, t))
}
