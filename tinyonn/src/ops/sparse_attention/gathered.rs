//! f32 on the CPU, few queries: only the rows of keys and values that are kept are read, past what the index reads.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::attention::Attention;
use super::super::lanes::{self, dot, exp};
use super::choice::{Choice, keys, queries};
use super::fused::Outcome;
use super::{Prepared, tiles, with_chooser};

pub(super) fn forward(op: &Attention, by: &Prepared) -> Result<Outcome> {
    let (s, d) = (op.shape, op.shape.head_dim);
    let units: Vec<_> = tiles(s).collect();
    let made: Vec<(Choice, Vec<f32>, Vec<f32>)> = with_chooser(op, by, |chooser| {
        lanes::with_slices([&op.q_bthd, &op.k_bskd, &op.v_bskd], |[q, k, v]| {
            let of_unit = |(unit, rows): &(usize, std::ops::Range<usize>)| {
                lanes::vectorised(|| {
                    let choice = chooser.choose(*unit, rows.clone(), None);
                    let [k, v] = [k, v].map(|x| keys(s, x, *unit, s.keys - s.queries + rows.end));
                    let (mut y, mut log_sums) = (vec![0f32; s.group() * rows.len() * d], Vec::new());
                    for (at, y) in y.chunks_exact_mut(d).enumerate() {
                        let (member, i) = (at / rows.len(), at % rows.len());
                        let q = queries(s, q, (*unit, member), rows).row(i);
                        let kept = choice.of(member, i).iter().enumerate().filter(|(_, kept)| **kept);
                        let kept: Vec<usize> = kept.map(|(j, _)| j).collect();
                        let mut p: Vec<f32> = kept.iter().map(|j| dot(q, k.row(*j)) * s.scale() as f32).collect();
                        let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        p.iter_mut().for_each(|p| *p = exp(*p - max));
                        let total: f32 = p.iter().sum();
                        for (p, j) in p.iter().zip(kept) {
                            let p = p / total;
                            y.iter_mut().zip(v.row(j)).for_each(|(y, v)| *y += p * v);
                        }
                        log_sums.push(max + total.ln());
                    }
                    (choice, y, log_sums)
                })
            };
            units.par_iter().map(of_unit).collect()
        })
    })??;
    let mut y = vec![0f32; s.batch * s.heads * s.queries * d];
    let (mut thresholds, mut log_sums) = (Vec::with_capacity(units.len()), Vec::new());
    for ((unit, rows), (choice, values, sums)) in units.into_iter().zip(made) {
        for (at, row) in values.chunks_exact(d).enumerate() {
            let (head, t) = (unit % s.kv_heads * s.group() + at / rows.len(), rows.start + at % rows.len());
            let place = (unit / s.kv_heads * s.queries + t) * s.heads + head;
            y[place * d..][..d].copy_from_slice(row);
        }
        thresholds.push(choice.thresholds);
        log_sums.extend(sums);
    }
    Ok((Tensor::from_vec(y, op.q_bthd.shape(), op.q_bthd.device())?, thresholds, Some(log_sums)))
}
