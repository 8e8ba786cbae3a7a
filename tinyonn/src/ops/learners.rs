//! Whose weight gradients are formed: a choice of neurons that lies on the device.

use candle_core::{DType, Result, Tensor};

use super::columns::columns;
use super::lanes;
use super::sum_of_rows::NOTHING;

/// Whose weight gradients are formed.
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
    /// Those with a 1 in `learn_i` `[i]` u8, at most `most` of them. Nothing is read by the host: on a GPU `index_m` has `most` places,
    /// however many learn.
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
        Self::on_device(learn_i, most)
    }

    /// [`new`](Self::new) in plain operations, for marks that do not lie in main memory.
    ///
    /// # Errors
    /// What the device reports.
    pub fn on_device(learn_i: &Tensor, most: usize) -> Result<Self> {
        let (count, device) = (learn_i.dims1()?, learn_i.device());
        let most = most.min(count);
        let learns = learn_i.ne(0u8)?;
        // How many learn up to each; f32 counts exactly up to 2²⁴.
        let upto_i = running_sum(&learns.to_dtype(DType::F32)?)?;
        let nothing = |like: &Tensor| Tensor::full(NOTHING, like.shape(), device);
        // Whoever does not learn is put behind the last place, which is then cut off.
        let behind = Tensor::full(most as u32, count, device)?;
        let place_i = learns.where_cond(&(&upto_i - 1.0)?.relu()?.to_dtype(DType::U32)?, &behind)?.minimum(&behind)?;
        let own = Tensor::arange(0, count as u32, device)?;
        let index = Tensor::zeros(most + 1, DType::U32, device)?.index_add(&place_i, &own, 0)?.narrow(0, 0, most)?;
        let filled = Tensor::arange(0f32, most as f32, device)?.broadcast_lt(&upto_i.narrow(0, count - 1, 1)?)?;
        let index_m = filled.where_cond(&index.contiguous()?, &nothing(&index)?)?;
        let place_i = place_i.lt(most as u32)?.where_cond(&place_i, &nothing(&place_i)?)?;
        Ok(Self { index_m, place_i })
    }

    /// The learners' columns of `[t, i]` values, `[t, m]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn columns(&self, values_ti: &Tensor) -> Result<Tensor> {
        columns(values_ti, &self.index_m)
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

    /// Whether each of `neurons` neurons learns; in main memory only.
    pub(super) fn flags(&self, neurons: usize) -> Result<Vec<bool>> {
        if self.place_i.dim(0)? != neurons {
            candle_core::bail!("{} neurons may learn, and there are {neurons}", self.place_i.dim(0)?);
        }
        lanes::with_ids(&self.place_i, |place| place.iter().map(|place| *place != NOTHING).collect())
    }
}

/// Σ of all values up to each of `[i]`, by blocks of √i: products with triangles of ones.
fn running_sum(values_i: &Tensor) -> Result<Tensor> {
    let (count, device) = (values_i.dims1()?, values_i.device());
    let side = count.isqrt() + 1;
    let values_ss = values_i.pad_with_zeros(0, 0, side * side - count)?.reshape((side, side))?;
    let within_ss = values_ss.matmul(&Tensor::triu2(side, DType::F32, device)?)?;
    let totals_1s = within_ss.narrow(1, side - 1, 1)?.t()?.contiguous()?;
    let before_1s = (totals_1s.matmul(&Tensor::triu2(side, DType::F32, device)?)? - &totals_1s)?;
    within_ss.broadcast_add(&before_1s.t()?)?.flatten_all()?.narrow(0, 0, count)
}
