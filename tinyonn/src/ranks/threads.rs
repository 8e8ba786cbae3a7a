//! Ranks that are threads of one process: what a training among several ranks does is so tried without a GPU.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor};

use super::{Collective, Underway};
use crate::{Error, Result};

/// One of several ranks in this process.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ranks::{Collective, Threads};
///
/// let sums = std::thread::scope(|scope| {
///     let ranks: Vec<_> = Threads::new(2).into_iter().map(|rank| {
///         scope.spawn(move || -> tinyonn::Result<Vec<f32>> {
///             let own = Tensor::new(&[1f32, rank.rank() as f32], &Device::Cpu)?;
///             Ok(rank.all_reduce(&own)?.to_vec1()?)
///         })
///     }).collect();
///     ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<tinyonn::Result<Vec<_>>>()
/// })?;
/// assert_eq!(sums, [[2.0, 1.0], [2.0, 1.0]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    table: Arc<Table>,
}

/// Where all lay down what they bring.
#[derive(Debug)]
struct Table {
    laid: Mutex<Laid>,
    changed: Condvar,
}

#[derive(Debug)]
struct Laid {
    /// By rank, what was laid down for this exchange.
    brought: Vec<Option<Tensor>>,
    /// How many have taken what was laid down.
    taken: usize,
    /// A rank that is gone.
    gone: Option<usize>,
}

impl Threads {
    /// All ranks of a world of `ranks`.
    #[must_use]
    pub fn new(ranks: usize) -> Vec<Self> {
        let laid = Mutex::new(Laid { brought: vec![None; ranks], taken: 0, gone: None });
        let table = Arc::new(Table { laid, changed: Condvar::new() });
        (0..ranks).map(|rank| Self { rank, table: table.clone() }).collect()
    }

    /// What every rank brings, by rank.
    fn exchange(&self, own: &Tensor) -> Result<Vec<Tensor>> {
        // A copy: what is brought may change where it lies as soon as its owner goes on.
        let own = own.detach().force_contiguous()?;
        let mut laid = self.table.lock();
        // The exchange before may not be over.
        laid = self.table.wait(laid, |laid| laid.brought[self.rank].is_some())?;
        laid.brought[self.rank] = Some(own);
        self.table.changed.notify_all();
        laid = self.table.wait(laid, |laid| laid.brought.iter().any(Option::is_none))?;
        let all: Vec<Tensor> = laid.brought.iter().flatten().cloned().collect();
        laid.taken += 1;
        if laid.taken == laid.brought.len() {
            laid.taken = 0;
            laid.brought.iter_mut().for_each(|brought| *brought = None);
            self.table.changed.notify_all();
        } else {
            // Nobody begins the next one before all have taken this one.
            drop(self.table.wait(laid, |laid| laid.brought[self.rank].is_some())?);
        }
        if let Some(other) = all.iter().position(|other| other.dims() != all[0].dims()) {
            let problem = format!("brings {:?} to a collective, and rank 0 {:?}", all[other].dims(), all[0].dims());
            return Err(Error::rank(other, problem, "report this"));
        }
        Ok(all)
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        let wide = if values.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut sum: Option<Tensor> = None;
        for part in self.exchange(values)? {
            let part = part.to_dtype(wide)?;
            sum = Some(sum.map_or(Ok(part.clone()), |sum| sum + part)?);
        }
        let sum = sum.unwrap_or_else(|| values.clone());
        Ok(sum.to_dtype(values.dtype())?)
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Laid> {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `keeps` and nobody is gone.
    fn wait<'a>(
        &self,
        laid: MutexGuard<'a, Laid>,
        mut keeps: impl FnMut(&Laid) -> bool,
    ) -> Result<MutexGuard<'a, Laid>> {
        let waits = |laid: &mut Laid| laid.gone.is_none() && keeps(laid);
        let laid = self.changed.wait_while(laid, waits).unwrap_or_else(PoisonError::into_inner);
        match laid.gone.filter(|_| keeps(&laid)) {
            Some(rank) => Err(Error::rank(rank, "is gone", "see what it said")),
            None => Ok(laid),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut laid = self.table.lock();
        laid.gone.get_or_insert(self.rank);
        self.table.changed.notify_all();
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.table.lock().brought.len()
    }

    fn reduce_scatter(&self, bucket: &Tensor) -> Result<Tensor> {
        let (sum, ranks) = (self.sum(bucket)?, self.ranks());
        let n = sum.dims1()?;
        if !n.is_multiple_of(ranks) {
            let problem = format!("a bucket of {n} values is not cut into {ranks} equal ranges");
            return Err(Error::rank(self.rank, problem, "report this"));
        }
        Ok(sum.narrow(0, self.rank * (n / ranks), n / ranks)?)
    }

    fn begin_gather(&self, shard: &Tensor) -> Result<Underway> {
        Ok(Underway::done(Tensor::cat(&self.exchange(shard)?, 0)?))
    }

    fn begin_sum(&self, values: &Tensor) -> Result<Underway> {
        Ok(Underway::done(self.sum(values)?))
    }
}
