//! Which keys queries keep, given their scores: those that are kept anyway, and the best of the others, as the library's operation keeps them.

use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;
use tinyonn::moe::PairsSpec;

/// Halvings of the range of a row's scores, behind which what is left of it is below their roundings.
const HALVINGS: usize = 40;

/// Whether a pair is kept, `[C, rows, columns]` u8, of scores `[C, rows, columns]` f32 of queries from position `first_row` on; ties go to the lower position in main memory, and all are
/// kept elsewhere.
pub(super) fn kept(scores: &Tensor, first_row: usize, pairs: &PairsSpec) -> Result<Tensor> {
    if scores.device().is_cpu() { sorted(scores, first_row, pairs) } else { halved(scores, first_row, pairs) }
}

/// The positions of the keys that are not kept whatever their score, of those that are seen.
fn open_keys(pairs: &PairsSpec, seen: usize) -> Range<usize> {
    let from = pairs.first.min(seen);
    from..seen.saturating_sub(pairs.near).max(from)
}

/// How many of them are kept.
fn wanted(pairs: &PairsSpec, seen: usize) -> usize {
    (pairs.keys(seen) + open_keys(pairs, seen).len()).saturating_sub(seen)
}

fn sorted(scores: &Tensor, first_row: usize, pairs: &PairsSpec) -> Result<Tensor> {
    let (_, rows, columns) = scores.dims3()?;
    let values: Vec<f32> = scores.flatten_all()?.to_vec1()?;
    let mut kept = vec![0u8; values.len()];
    kept.par_chunks_mut(columns).zip(values.par_chunks(columns)).enumerate().for_each(|(at, (kept, scores))| {
        let seen = first_row + at % rows + 1;
        let (open, wanted) = (open_keys(pairs, seen), wanted(pairs, seen));
        kept[..seen].fill(1);
        if wanted >= open.len() {
            return;
        }
        kept[open.clone()].fill(0);
        if wanted > 0 {
            let mut best: Vec<(f32, usize)> = open.map(|j| (scores[j], j)).collect();
            best.select_nth_unstable_by(wanted - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            best[..wanted].iter().for_each(|(_, j)| kept[*j] = 1);
        }
    });
    Tensor::from_vec(kept, scores.shape(), &Device::Cpu)
}

/// By the least score that as many reach as are wanted, found by halving the range of each row.
fn halved(scores: &Tensor, first_row: usize, pairs: &PairsSpec) -> Result<Tensor> {
    let (_, rows, columns) = scores.dims3()?;
    let device = scores.device();
    let of_rows = |f: &dyn Fn(usize) -> usize| {
        let values: Vec<f32> = (0..rows).map(|row| f(first_row + row + 1) as f32).collect();
        Tensor::from_vec(values, (1, rows, 1), device)
    };
    let [seen, from, to, wanted] = [
        of_rows(&|seen| seen)?,
        of_rows(&|seen| open_keys(pairs, seen).start)?,
        of_rows(&|seen| open_keys(pairs, seen).end)?,
        of_rows(&|seen| wanted(pairs, seen))?,
    ];
    let columns = Tensor::arange(0, columns as u32, device)?.to_dtype(DType::F32)?.reshape((1, 1, columns))?;
    let open = (columns.broadcast_ge(&from)? * columns.broadcast_lt(&to)?)?;
    let is_open = open.broadcast_as(scores.shape())?;
    let nothing = Tensor::full(-1e30f32, scores.shape(), device)?;
    let scores = is_open.where_cond(&scores.clamp(-1e30f32, 1e30f32)?, &nothing)?;
    let high = scores.max_keepdim(D::Minus1)?;
    let most = is_open.where_cond(&scores, &high.broadcast_as(scores.shape())?)?;
    let (mut low, mut high) = (most.min_keepdim(D::Minus1)?, (high + 1e-6)?);
    let wanted = wanted.broadcast_as(low.shape())?.contiguous()?;
    for _ in 0..HALVINGS {
        let middle = ((&low + &high)? * 0.5)?;
        let reach = scores.broadcast_ge(&middle)?.to_dtype(DType::F32)?.sum_keepdim(D::Minus1)?.ge(&wanted)?;
        low = reach.where_cond(&middle, &low)?;
        high = reach.where_cond(&high, &middle)?;
    }
    let some = wanted.gt(0f32)?;
    let best = (scores.broadcast_ge(&low)?.broadcast_mul(&some)? * is_open)?;
    let anyway = (columns.broadcast_lt(&seen)? - open)?;
    best.broadcast_add(&anyway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use tinyonn::moe::{KeptPairs, PairIndex};

    /// Both ways keep the same of scores of which no two are alike.
    #[rstest]
    #[case(0.25, 3, 2, 0)]
    #[case(0.1, 0, 0, 0)]
    #[case(0.05, 8, 4, 30)]
    fn halving_finds_what_sorting_finds(
        #[case] share: f64,
        #[case] near: usize,
        #[case] first: usize,
        #[case] first_row: usize,
    ) -> Result<()> {
        let pairs = PairsSpec { near, first, ..PairsSpec::new(KeptPairs::Share(share), PairIndex::Exact) };
        let (rows, columns) = (50, first_row + 50);
        let scores: Vec<f32> = (0..2 * rows * columns).map(|at| ((at * 7919) % 100_003) as f32 * 1e-3 - 50.0).collect();
        let scores = Tensor::from_vec(scores, (2, rows, columns), &Device::Cpu)?;
        let bits = |x: Tensor| x.flatten_all()?.to_vec1::<u8>();
        let found = bits(sorted(&scores, first_row, &pairs)?)?;
        assert_eq!(found, bits(halved(&scores, first_row, &pairs)?)?);
        let last = &found[(rows - 1) * columns..rows * columns];
        assert_eq!(last.iter().map(|kept| usize::from(*kept)).sum::<usize>(), pairs.keys(columns));
        Ok(())
    }
}
