//! What each rank has made, at rank 0: bytes of any length, through the same collectives as tensors, as the bits of f32 that nothing computes with.

use candle_core::{Device, Tensor};

use super::Collective;
use crate::{Error, Result};

/// Words of a rank that are under way at a time, 16 MB: a pass of gigabytes takes no more than that of a card, once for each rank.
const PIECE: usize = 1 << 22;

/// The bytes of all ranks, by rank, at rank 0; nothing at the others. Every rank calls it with its `own`, and with its device.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::ranks::{Collective, Threads, gather};
///
/// let brought = ["one", "", "another"];
/// let found = std::thread::scope(|scope| {
///     let ranks: Vec<_> = Threads::new(3).into_iter().map(|rank| {
///         scope.spawn(move || gather(&rank, brought[rank.rank()].as_bytes(), &Device::Cpu))
///     }).collect();
///     ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<tinyonn::Result<Vec<_>>>()
/// })?;
/// assert_eq!(found, [Some(brought.map(|text| text.as_bytes().to_vec()).to_vec()), None, None]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A rank that is lost; what the device reports.
pub fn gather(ranks: &dyn Collective, own: &[u8], device: &Device) -> Result<Option<Vec<Vec<u8>>>> {
    let lengths = ranks.all_gather(&Tensor::new(&[own.len() as f64], device)?)?.to_vec1::<f64>()?;
    let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
    let longest = lengths.iter().max().map_or(0, |length| length.div_ceil(WORD));
    let first = ranks.rank() == 0;
    let mut all: Vec<Vec<u8>> =
        lengths.iter().map(|length| Vec::with_capacity(if first { *length } else { 0 })).collect();
    for start in (0..longest).step_by(PIECE) {
        let count = PIECE.min(longest - start);
        let piece = ranks.all_gather(&Tensor::from_vec(words(own, start, count), count, device)?)?;
        if first {
            // In one copy: of a part of a tensor on a GPU the whole would be fetched each time.
            let piece = piece.to_vec1::<f32>()?;
            for (words, (bytes, length)) in piece.chunks(count).zip(all.iter_mut().zip(&lengths)) {
                bytes.extend(words.iter().flat_map(|word| word.to_bits().to_le_bytes()));
                // What stands behind the end is padding.
                bytes.truncate(*length);
            }
        }
    }
    // Who leaves takes along what it has not sent yet, so nobody does before rank 0 has all and comes here.
    let come = ranks.all_reduce(&Tensor::new(&[1f32], device)?)?.to_vec1::<f32>()?;
    if come != [ranks.ranks() as f32] {
        return Err(Error::rank(ranks.rank(), format!("{come:?} ranks are at the end of a gathering"), "report this"));
    }
    Ok(first.then_some(all))
}

/// Bytes of a word.
const WORD: usize = 4;

/// `count` words of `bytes` behind the first `start`, with zeros where they end.
fn words(bytes: &[u8], start: usize, count: usize) -> Vec<f32> {
    let own = bytes.get(start * WORD..).unwrap_or_default();
    let mut words: Vec<f32> = own
        .chunks(WORD)
        .take(count)
        .map(|some| {
            let mut word = [0; WORD];
            word[..some.len()].copy_from_slice(some);
            f32::from_bits(u32::from_le_bytes(word))
        })
        .collect();
    words.resize(count, 0.0);
    words
}
