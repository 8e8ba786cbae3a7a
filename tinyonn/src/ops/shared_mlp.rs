//! Decisions that runs of rows share.

use std::ops::Range;

/// Neighbouring rows and the decision that they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The rows.
    pub rows: Range<usize>,
    /// The row of the gates; `None` is all active.
    pub decision: Option<usize>,
}
