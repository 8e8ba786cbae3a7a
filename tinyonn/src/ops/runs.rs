//! Runs of rows that share one decision: segments, sequences, or single tokens.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Neighbouring rows and the decision that they share.
///
/// ```
/// use tinyonn::ops::RowRun;
///
/// // Two tokens before any decision, and three of the first.
/// let runs = [RowRun { rows: 0..2, decision: None }, RowRun { rows: 2..5, decision: Some(0) }];
/// assert_eq!(runs.iter().map(|run| run.rows.len()).sum::<usize>(), 5);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRun {
    /// The rows.
    pub rows: Range<usize>,
    /// Which row of the gates `[decisions, n]`; `None`: no decision, all experts take part alike.
    pub decision: Option<usize>,
}

/// Groups that are computed at one time.
const SIDE_BY_SIDE: usize = 8;

/// All rows, grouped by decision.
#[derive(Debug)]
pub(super) struct Runs {
    groups: Vec<Group>,
    /// For each run, in the rows' order: its group, and its place among the group's rows.
    places: Vec<(usize, Range<usize>)>,
}

/// The rows of one decision.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) decision: Option<usize>,
    runs: Vec<Range<usize>>,
    length: usize,
}

impl Runs {
    /// Groups, in the order in which decisions appear.
    ///
    /// # Errors
    /// Runs that are not all of `rows` rows one after the other; a decision of another number than `decisions`.
    pub(super) fn new(op: &str, runs: &[RowRun], rows: usize, decisions: usize) -> Result<Self> {
        let (mut groups, mut places, mut next) = (Vec::<Group>::new(), Vec::new(), 0);
        // By decision, the last place for none.
        let mut group_of = vec![None; decisions + 1];
        for run in runs {
            let Range { start, end } = run.rows;
            if start != next || end < start {
                candle_core::bail!("{op}: the run of rows {start}..{end} does not begin at row {next}");
            }
            next = end;
            let Some(group) = group_of.get_mut(run.decision.unwrap_or(decisions)) else {
                candle_core::bail!("{op}: rows {start}..{end} follow decision {:?} of {decisions}", run.decision);
            };
            if start == end {
                continue;
            }
            let at = *group.get_or_insert_with(|| {
                groups.push(Group { decision: run.decision, runs: vec![], length: 0 });
                groups.len() - 1
            });
            let group = &mut groups[at];
            places.push((at, group.length..group.length + run.rows.len()));
            group.length += run.rows.len();
            group.runs.push(run.rows.clone());
        }
        if next != rows {
            candle_core::bail!("{op}: the runs end at row {next} of {rows}");
        }
        Ok(Self { groups, places })
    }

    /// The groups.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// `f` of each group by its number, in their order: on the processor some side by side, since the products of one decision alone
    /// leave threads idle, but no more than [`SIDE_BY_SIDE`], each of which may hold matrices of its own; one after the other on a
    /// GPU, whose stream belongs to this thread.
    pub(super) fn each<T: Send>(
        &self,
        device: &Device,
        f: impl Fn(usize, &Group) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        if device.is_cpu() {
            let mut results = Vec::with_capacity(self.groups.len());
            for (chunk, groups) in self.groups.chunks(SIDE_BY_SIDE).enumerate() {
                let of_chunk = groups.par_iter().enumerate().map(|(at, group)| f(chunk * SIDE_BY_SIDE + at, group));
                results.extend(of_chunk.collect::<Result<Vec<_>>>()?);
            }
            Ok(results)
        } else {
            self.groups.iter().enumerate().map(|(at, group)| f(at, group)).collect()
        }
    }

    /// One part a group, of as many rows as it has, put in the rows' order.
    pub(super) fn in_order(&self, parts: &[Tensor]) -> Result<Tensor> {
        if let ([part], [_]) = (parts, self.places.as_slice()) {
            return Ok(part.clone());
        }
        let piece = |(at, rows): &(usize, Range<usize>)| parts[*at].narrow(0, rows.start, rows.len());
        Tensor::cat(&self.places.iter().map(piece).collect::<Result<Vec<_>>>()?, 0)
    }
}

impl Group {
    /// The number of rows.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// This group's rows of a matrix, contiguous.
    pub(super) fn rows(&self, x_td: &Tensor) -> Result<Tensor> {
        let piece = |rows: &Range<usize>| x_td.narrow(0, rows.start, rows.len());
        match self.runs.as_slice() {
            [rows] => piece(rows),
            runs => Tensor::cat(&runs.iter().map(piece).collect::<Result<Vec<_>>>()?, 0),
        }
    }
}
