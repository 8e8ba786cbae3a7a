//! What moves tensors between ranks.

use std::fmt::Debug;

use candle_core::Tensor;

use crate::Result;

/// Sums and copies over all ranks. Every rank calls the same ones in the same order, with tensors of the same sizes; each waits for the others.
///
/// Sums are in one order on all ranks, whoever comes first: the same bits again.
///
/// ```
/// use std::sync::Arc;
/// use candle_core::{Device, Tensor};
/// use tinyonn::ranks::{Collective, Threads};
///
/// /// The mean over ranks, by the range that is each rank's own.
/// fn mean(ranks: &dyn Collective, bucket: &Tensor) -> tinyonn::Result<Tensor> {
///     let own = (ranks.reduce_scatter(bucket)? / ranks.ranks() as f64)?;
///     ranks.all_gather(&own)
/// }
/// let one: Arc<dyn Collective> = Arc::new(Threads::new(1).remove(0));
/// let bucket = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
/// assert_eq!((mean(&*one, &bucket)?.to_vec1::<f32>()?, one.rank()), (vec![1.0, 2.0], 0));
/// # Ok::<(), tinyonn::Error>(())
/// ```
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
