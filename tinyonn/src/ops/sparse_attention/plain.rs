//! Any type on any device: the choice is made in main memory, the rest is a composition, a tile of queries at a time.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};

use super::super::attention::Attention;
use super::choice::Threshold;
use super::fused::Outcome;
use super::{Prepared, Saved, TILE, with_chooser};

pub(super) fn forward(op: &Attention, by: &Prepared) -> Result<Outcome> {
    let v = by_key_head(&op.v_bskd)?;
    let mut tiles = Vec::new();
    let thresholds = for_each_mask(op, by, None, |rows, mask| {
        let p = probabilities(op, &rows, &mask)?.to_dtype(v.dtype())?;
        let y = p.matmul(&v.narrow(2, 0, mask.dim(D::Minus1)?)?.contiguous()?)?;
        tiles.push(by_position(op, &y, rows.len())?);
        Ok(())
    })?;
    Ok((Tensor::cat(&tiles, 1)?, thresholds, None))
}

pub(super) fn backward(saved: &Saved, dy_bthd: &Tensor) -> Result<[Tensor; 3]> {
    let (op, s) = (&saved.op, saved.op.shape);
    let [k, v] = [by_key_head(&op.k_bskd)?, by_key_head(&op.v_bskd)?];
    let (mut dq, mut dk, mut dv) = (Vec::new(), k.zeros_like()?, v.zeros_like()?);
    for_each_mask(op, &saved.by, Some(&saved.thresholds), |rows, mask| {
        let columns = mask.dim(D::Minus1)?;
        let [k, v] = [k.narrow(2, 0, columns)?.contiguous()?, v.narrow(2, 0, columns)?.contiguous()?];
        let [q, dy] = [by_group(op, &op.q_bthd, &rows)?, by_group(op, dy_bthd, &rows)?];
        let p = probabilities(op, &rows, &mask)?;
        let dp = dy.matmul(&v.t()?.contiguous()?)?.to_dtype(p.dtype())?;
        let ds = (&p * dp.broadcast_sub(&(&dp * &p)?.sum_keepdim(D::Minus1)?)?)? * s.scale();
        let (p, ds) = (p.to_dtype(v.dtype())?, ds?.to_dtype(v.dtype())?);
        dq.push(by_position(op, &ds.matmul(&k)?, rows.len())?);
        let add = |sum: &Tensor, weights: &Tensor, x: &Tensor| {
            sum + weights.t()?.contiguous()?.matmul(x)?.pad_with_zeros(2, 0, s.keys - columns)?
        };
        (dk, dv) = (add(&dk, &ds, &q)?, add(&dv, &p, &dy)?);
        Ok(())
    })?;
    Ok([Tensor::cat(&dq, 1)?, dk.transpose(1, 2)?.contiguous()?, dv.transpose(1, 2)?.contiguous()?])
}

/// `f` of each tile of queries, with its mask `[B, K, G·rows, columns]` u8, 1 for what is kept; by given thresholds, the same choices once more. Returns the thresholds.
fn for_each_mask(
    op: &Attention,
    by: &Prepared,
    held: Option<&[Vec<Threshold>]>,
    mut f: impl FnMut(Range<usize>, Tensor) -> Result<()>,
) -> Result<Vec<Vec<Threshold>>> {
    let (s, units) = (op.shape, op.shape.batch * op.shape.kv_heads);
    let runs = s.queries.div_ceil(TILE);
    let mut thresholds = vec![Vec::new(); units * runs];
    with_chooser(op, by, |chooser| {
        for run in 0..runs {
            let rows = run * TILE..((run + 1) * TILE).min(s.queries);
            let columns = s.keys - s.queries + rows.end;
            let mut mask = Vec::with_capacity(units * s.group() * rows.len() * columns);
            for unit in 0..units {
                let tile = unit * runs + run;
                let choice = chooser.choose(unit, rows.clone(), held.map(|held| held[tile].as_slice()));
                for (member, i) in (0..s.group()).flat_map(|member| (0..rows.len()).map(move |i| (member, i))) {
                    mask.extend(choice.of(member, i).iter().map(|kept| u8::from(*kept)));
                }
                thresholds[tile] = choice.thresholds;
            }
            let shape = (s.batch, s.kv_heads, s.group() * rows.len(), columns);
            f(rows, Tensor::from_vec(mask, shape, op.q_bthd.device())?)?;
        }
        Ok::<_, candle_core::Error>(())
    })??;
    Ok(thresholds)
}

/// P of a tile `[B, K, G·rows, columns]`, in at least f32; 0 where the mask is.
fn probabilities(op: &Attention, rows: &Range<usize>, mask: &Tensor) -> Result<Tensor> {
    let k = by_key_head(&op.k_bskd)?.narrow(2, 0, mask.dim(D::Minus1)?)?;
    let scores = (by_group(op, &op.q_bthd, rows)?.matmul(&k.t()?.contiguous()?)? * op.shape.scale())?;
    let wide = if scores.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let scores = scores.to_dtype(wide)?;
    let nothing = (scores.zeros_like()? + f64::NEG_INFINITY)?;
    candle_nn::ops::softmax(&mask.where_cond(&scores, &nothing)?, D::Minus1)
}

/// `[B, S, K, D]` as `[B, K, S, D]`.
fn by_key_head(x_bskd: &Tensor) -> Result<Tensor> {
    x_bskd.transpose(1, 2)?.contiguous()
}

/// Some queries `[B, T, H, D]` as `[B, K, G·rows, D]`.
fn by_group(op: &Attention, x_bthd: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    let s = op.shape;
    let own = x_bthd.narrow(1, rows.start, rows.len())?.transpose(1, 2)?.contiguous()?;
    own.reshape((s.batch, s.kv_heads, s.group() * rows.len(), s.head_dim))
}

/// `[B, K, G·rows, D]` as `[B, rows, H, D]`.
fn by_position(op: &Attention, x: &Tensor, rows: usize) -> Result<Tensor> {
    let s = op.shape;
    x.reshape((s.batch, s.heads, rows, s.head_dim))?.transpose(1, 2)?.contiguous()
}
