//! Whose weight gradients are formed: a choice of neurons that lies on the device.

use candle_core::{DType, Result, Tensor};

use super::columns::columns;
use super::sum_of_rows::NOTHING;
use super::{Grads, lanes};

/// Whose weight gradients are formed.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{Learners, LearningNeurons};
///
/// let marks = Tensor::new(&[0u8, 1, 0, 1], &Device::Cpu)?;
/// let second_and_fourth = LearningNeurons::on_device(&marks, 2)?; // in plain operations, as on a GPU
/// let x = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
/// assert_eq!(second_and_fourth.columns(&x)?.to_vec2::<f32>()?, [[2.0, 4.0]]);
/// assert!(matches!(Learners::Neurons(second_and_fourth), Learners::Neurons(_)));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub enum Learners {
    /// Every neuron's.
    All,
    /// Those of some neurons.
    Neurons(LearningNeurons),
}

/// Some of i neurons.
#[derive(Clone, Debug)]
pub struct LearningNeurons {
    /// The neurons, ascending, `[m]` u32; [`u32::MAX`] behind the last.
    index_m: Tensor,
    /// The place of each neuron in `index_m`, `[i]` u32; [`u32::MAX`] for those that do not learn.
    place_i: Tensor,
}

impl LearningNeurons {
    /// Those with a 1 in `learn_i` `[i]` u8, at most `most` of them. Nothing is read by the host: on a GPU `index_m` has places for `most` and up to 63
    /// more, however many learn, because products of a width that is no multiple of eight take twice the time there.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use tinyonn::ops::LearningNeurons;
    ///
    /// let some = LearningNeurons::new(&Tensor::new(&[0u8, 1, 0, 1], &Device::Cpu)?, 2)?;
    /// let x = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
    /// assert_eq!(some.columns(&x)?.to_vec2::<f32>()?, [[2.0, 4.0]]);
    /// assert_eq!(some.rows(&some.columns(&x)?.t()?)?.flatten_all()?.to_vec1::<f32>()?, [0.0, 2.0, 0.0, 4.0]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn new(learn_i: &Tensor, most: usize) -> Result<Self> {
        let (count, device) = (learn_i.dims1()?, learn_i.device());
        if device.is_cpu() {
            let (mut index, mut place) = (Vec::with_capacity(most), vec![NOTHING; count]);
            lanes::with_values(&learn_i.contiguous()?, |learn: &[u8]| {
                for (neuron, place) in place.iter_mut().enumerate().filter(|(neuron, _)| learn[*neuron] != 0) {
                    *place = index.len() as u32;
                    index.push(neuron as u32);
                }
            })?;
            let m = index.len();
            return Ok(Self {
                index_m: Tensor::from_vec(index, m, device)?,
                place_i: Tensor::from_vec(place, count, device)?,
            });
        }
        Self::on_device(learn_i, most.next_multiple_of(64))
    }

    /// [`new`](Self::new) in plain operations, for marks that do not lie in main memory.
    ///
    /// # Errors
    /// What the device reports.
    pub fn on_device(learn_i: &Tensor, most: usize) -> Result<Self> {
        let (count, device) = (learn_i.dims1()?, learn_i.device());
        let (most, side) = (most.min(count), count.isqrt() + 1);
        let learns = learn_i.ne(0u8)?;
        // How many learn up to each: in blocks of √i, then up to each block, by products with a triangle of ones; exact in f32 up to 2²⁴.
        let marks_ss = learns.to_dtype(DType::F32)?.pad_with_zeros(0, 0, side * side - count)?.reshape((side, side))?;
        let triangle_ss = Tensor::triu2(side, DType::F32, device)?;
        let within_ss = marks_ss.matmul(&triangle_ss)?;
        let totals_1s = within_ss.narrow(1, side - 1, 1)?.t()?.contiguous()?;
        let ends_1s = totals_1s.matmul(&triangle_ss)?;
        let before_s1 = (&ends_1s - &totals_1s)?.t()?.contiguous()?;
        let upto_i = within_ss.broadcast_add(&before_s1)?.flatten_all()?.narrow(0, 0, count)?;
        // The m-th learner lies in the block that ends behind m, where so many of the block's own sums are reached before it.
        let at_m1 = Tensor::arange(0f32, most as f32, device)?.unsqueeze(1)?;
        let reached = |sums: &Tensor, at_m1: &Tensor| sums.broadcast_le(at_m1)?.to_dtype(DType::F32)?.sum_keepdim(1);
        let block_m1 = reached(&ends_1s, &at_m1)?.minimum((side - 1) as f64)?;
        let block_m = block_m1.squeeze(1)?.to_dtype(DType::U32)?;
        let own_m1 = (&at_m1 - before_s1.index_select(&block_m, 0)?)?;
        let index_m1 = ((block_m1 * side as f64)? + reached(&within_ss.index_select(&block_m, 0)?, &own_m1)?)?;
        let filled_m = at_m1.broadcast_lt(&ends_1s.narrow(1, side - 1, 1)?)?.squeeze(1)?;
        let nothing = |like: &Tensor| Tensor::full(NOTHING, like.dims1()?, device);
        let index_m = filled_m.where_cond(&index_m1.squeeze(1)?.to_dtype(DType::U32)?, &nothing(&filled_m)?)?;
        let fits = (&learns * upto_i.le(most as f64)?)?;
        let place_i = fits.where_cond(&(upto_i - 1.0)?.relu()?.to_dtype(DType::U32)?, &nothing(&fits)?)?;
        Ok(Self { index_m, place_i })
    }

    /// The learners' columns of `[t, i]` values, `[t, m]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn columns(&self, values_ti: &Tensor) -> Result<Tensor> {
        columns(values_ti, &self.index_m)
    }

    /// The learners' rows of `[i, d]` values, `[m, d]`; zeros where nobody learns.
    pub(super) fn of_rows(&self, values_id: &Tensor) -> Result<Tensor> {
        values_id.contiguous()?.index_select(&self.index_m, 0)
    }

    /// Rows `[m, d]` at their neurons' places `[i, d]`; zero elsewhere.
    ///
    /// # Errors
    /// What the device reports.
    pub fn rows(&self, rows_md: &Tensor) -> Result<Tensor> {
        if self.index_m.elem_count() == 0 {
            return Tensor::zeros((self.place_i.dim(0)?, rows_md.dim(1)?), rows_md.dtype(), rows_md.device());
        }
        rows_md.contiguous()?.index_select(&self.place_i, 0)
    }

    /// Adds rows `[m, d]` at their neurons' places to the gradient of `weight`.
    pub(super) fn add_rows(&self, rows_md: &Tensor, weight: &Tensor, grads: &mut Grads) -> Result<()> {
        #[cfg(feature = "cuda")]
        if rows_md.device().is_cuda() && grads.takes_on_a_card(weight) && super::kernel::is_read(rows_md) {
            let Some(target) = grads.target(weight) else { return Ok(()) };
            let none = rows_md.narrow(0, 0, 0)?;
            return super::gather_kernel::rows_to_places([rows_md, &none], &self.place_i, (&target.0, target.1));
        }
        grads.add_with(weight, || self.rows(rows_md))
    }

    /// Whether each of `neurons` neurons learns; in main memory only.
    pub(super) fn flags(&self, neurons: usize) -> Result<Vec<bool>> {
        if self.place_i.dim(0)? != neurons {
            candle_core::bail!("{} neurons may learn, and there are {neurons}", self.place_i.dim(0)?);
        }
        lanes::with_ids(&self.place_i, |place| place.iter().map(|place| *place != NOTHING).collect())
    }
}
