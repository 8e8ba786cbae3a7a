//! f32 on the CPU, few queries: only the rows of keys and values that are kept are read, past what the index reads.

use candle_core::Result;
use rayon::prelude::*;
use tinyonn_spec::PairsBy;

use super::super::attention::Attention;
use super::super::few_queries::{self, Readers};
use super::super::lanes;
use super::choice::Kept;
use super::fused::Outcome;
use super::{Prepared, tiles, with_chooser};

pub(super) fn forward(op: &Attention, by: &Prepared) -> Result<Outcome> {
    let s = op.shape;
    // So few queries are one tile.
    let units: Vec<_> = tiles(s).collect();
    let made: Vec<Kept> = with_chooser(op, by, |chooser| {
        units.par_iter().map(|(unit, rows)| lanes::vectorised(|| chooser.kept(*unit, rows.clone()))).collect()
    })?;
    let (mut readers, mut thresholds) = (Vec::new(), Vec::with_capacity(units.len()));
    for ((unit, rows), kept) in units.into_iter().zip(made) {
        for (at, positions) in kept.positions.into_iter().enumerate() {
            let (choice, t) = (at / rows.len(), rows.start + at % rows.len());
            let members = if by.pairs.by == PairsBy::KvHead { 0..s.group() } else { choice..choice + 1 };
            readers.push(Readers {
                unit,
                rows: members.map(|member| (member, t)).collect(),
                positions: Some(positions),
            });
        }
        thresholds.push(kept.thresholds);
    }
    let (y, log_sums) = few_queries::forward(op, &readers)?;
    Ok((y, thresholds, Some(log_sums)))
}
