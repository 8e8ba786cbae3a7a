//! What moves tensors between ranks.

use std::fmt::Debug;

use candle_core::Tensor;

use crate::Result;

/// Sums and copies over all ranks. Every rank calls the same ones in the same order, with tensors of the same sizes; each waits for the others.
///
/// Sums are in one order on all ranks, whoever comes first: the same bits again.
pub trait Collective: Debug + Send + Sync {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Of the sum over ranks of `bucket` `[n]` the range of this rank, `[n / ranks]`. It may lie in `bucket`, whose other values are then nobody's.
    ///
    /// # Errors
    /// An n that is no multiple of the ranks; a rank that is lost; what the device reports.
    fn reduce_scatter(&self, bucket: &Tensor) -> Result<Tensor>;

    /// The `shard`s `[n]` of all ranks in their order, `[ranks · n]`.
    ///
    /// # Errors
    /// A rank that is lost; what the device reports.
    fn all_gather(&self, shard: &Tensor) -> Result<Tensor>;

    /// The sum over ranks of `values`, in its shape.
    ///
    /// # Errors
    /// A rank that is lost; what the device reports.
    fn all_reduce(&self, values: &Tensor) -> Result<Tensor>;
}
