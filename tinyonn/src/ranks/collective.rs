//! What moves tensors between ranks.

use std::fmt::{self, Debug};

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

    /// The `shard`s `[n]` of all ranks in their order, `[ranks · n]`. `shard` must stay as it is until they are there.
    ///
    /// # Errors
    /// A rank that is lost; what the device reports.
    fn begin_gather(&self, shard: &Tensor) -> Result<Underway>;

    /// The sum over ranks of `values`, in its shape. `values` must stay as it is until it is there.
    ///
    /// # Errors
    /// A rank that is lost; what the device reports.
    fn begin_sum(&self, values: &Tensor) -> Result<Underway>;

    /// [`begin_gather`](Self::begin_gather), and what is queued next waits for it.
    ///
    /// # Errors
    /// A rank that is lost; what the device reports.
    fn all_gather(&self, shard: &Tensor) -> Result<Tensor> {
        self.begin_gather(shard)?.values()
    }

    /// [`begin_sum`](Self::begin_sum), and what is queued next waits for it.
    ///
    /// # Errors
    /// A rank that is lost; what the device reports.
    fn all_reduce(&self, values: &Tensor) -> Result<Tensor> {
        self.begin_sum(values)?.values()
    }
}

/// Orders what a device is given next behind something that it was given before.
type Order = Box<dyn FnOnce() -> Result<()> + Send>;

/// What comes of a collective that was begun. On a GPU it goes on beside whatever is queued until somebody asks for its values.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ranks::{Collective as _, Threads, Underway};
///
/// let alone = Threads::new(1).remove(0);
/// let own = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
/// let sum: Underway = alone.begin_sum(&own)?;
/// let meanwhile = own.sqr()?;
/// assert_eq!((sum.values()? + meanwhile)?.to_vec1::<f32>()?, [2.0, 6.0]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[must_use = "a collective that nobody waits for is waited for at once"]
pub struct Underway {
    values: Tensor,
    /// What is read until it is done.
    _read: Option<Tensor>,
    /// Nothing, once what is queued next waits for it.
    order: Option<Order>,
}

impl Underway {
    /// One that is done.
    pub(crate) const fn done(values: Tensor) -> Self {
        Self { values, _read: None, order: None }
    }

    /// One that reads `read` and writes `values` until what `order` waits for has come.
    #[cfg(feature = "cuda")]
    pub(crate) fn until(read: Tensor, values: Tensor, order: Order) -> Self {
        Self { values, _read: Some(read), order: Some(order) }
    }

    /// What it gives: what is queued next waits for it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn values(mut self) -> Result<Tensor> {
        self.wait()?;
        Ok(self.values.clone())
    }

    fn wait(&mut self) -> Result<()> {
        self.order.take().map_or(Ok(()), |order| order())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // Its tensors are given back to the device in the order of what is queued next.
        let _ = self.wait();
    }
}

impl Debug for Underway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Underway({:?}, {})", self.values.shape(), if self.order.is_some() { "begun" } else { "done" })
    }
}
