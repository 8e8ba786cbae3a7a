//! Sums of rows that lists name: what a scatter would add in place, as a gather.

use candle_core::{Result, Tensor};

use super::lanes;

/// The index that candle's gathers answer with zero.
pub(super) const NOTHING: u32 = u32::MAX;

/// Row t of the outcome `[t, d]` is Σ over `lists[t]` of the rows of `rows_pd`, in that order; an empty list gives zeros.
pub(super) fn sum_of_rows(rows_pd: &Tensor, lists: &[Vec<u32>]) -> Result<Tensor> {
    let d = rows_pd.dim(1)?;
    if lanes::fused(&[rows_pd]) {
        let mut out = vec![0f32; lists.len() * d];
        lanes::with_slices([&rows_pd.contiguous()?], |[rows]| {
            lanes::by_rows(&mut out, d, |first, out| {
                for (out, list) in out.chunks_exact_mut(d).zip(&lists[first..]) {
                    for row in list {
                        out.iter_mut().zip(&rows[*row as usize * d..][..d]).for_each(|(sum, x)| *sum += x);
                    }
                }
            });
        })?;
        return Tensor::from_vec(out, (lists.len(), d), rows_pd.device());
    }
    let most = lists.iter().map(Vec::len).max().unwrap_or(0);
    if most == 0 {
        return Tensor::zeros((lists.len(), d), rows_pd.dtype(), rows_pd.device());
    }
    let mut slots = vec![NOTHING; lists.len() * most];
    slots.chunks_exact_mut(most).zip(lists).for_each(|(slots, list)| slots[..list.len()].copy_from_slice(list));
    let gathered = rows_pd.index_select(&Tensor::new(slots, rows_pd.device())?, 0)?;
    gathered.reshape((lists.len(), most, d))?.sum(1)
}
