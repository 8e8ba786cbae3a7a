//! The neurons of each expert of a layer: a partition, turned round.

use candle_core::{Device, Result, Tensor};

/// Which neurons belong to each expert, ascending.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::ExpertNeurons;
/// use tinyonn::ops::expert_neurons::NeuronLists;
///
/// let experts = ExpertNeurons::new(&[1, 0, 1], 2)?;
/// assert_eq!((experts.count(), experts.width()), (2, 3));
/// let norms = experts.norms(&Tensor::new(&[[3f32, 7.0, 4.0]], &Device::Cpu)?)?;
/// assert_eq!(norms.to_vec2::<f32>()?, [[7.0, 5.0]]); // √49, √(9 + 16)
/// let lists: NeuronLists = experts.on_device(&Device::Cpu)?;
/// assert_eq!((lists.order_i.to_vec1::<u32>()?, lists.starts.to_vec1::<u32>()?, lists.widest), (vec![1, 0, 2], vec![0, 1, 3], 2));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertNeurons {
    /// Expert n's neurons are `order[starts[n]..starts[n + 1]]`.
    order: Vec<u32>,
    starts: Vec<usize>,
}

impl ExpertNeurons {
    /// From the expert of each neuron, of `count` experts.
    ///
    /// ```
    /// let experts = tinyonn::ops::ExpertNeurons::new(&[1, 0, 1], 2)?;
    /// assert_eq!([experts.neurons(0), experts.neurons(1)], [&[1][..], &[0, 2]]);
    /// assert!(tinyonn::ops::ExpertNeurons::new(&[2], 2).is_err());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// A neuron of an expert beyond `count`.
    pub fn new(neuron_expert: &[u32], count: usize) -> Result<Self> {
        let mut starts = vec![0; count + 1];
        for expert in neuron_expert {
            match starts.get_mut(*expert as usize + 1) {
                Some(width) => *width += 1,
                None => candle_core::bail!("a neuron belongs to expert {expert}, and there are {count}"),
            }
        }
        (0..count).for_each(|n| starts[n + 1] += starts[n]);
        let mut order: Vec<u32> = (0..neuron_expert.len() as u32).collect();
        order.sort_by_key(|i| neuron_expert[*i as usize]);
        Ok(Self { order, starts })
    }

    /// The same, as kernels read it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn on_device(&self, device: &Device) -> Result<NeuronLists> {
        let [order_i, starts] = self.order_and_starts(device)?;
        let mut place = vec![0u32; self.width()];
        for n in 0..self.count() {
            self.neurons(n).iter().enumerate().for_each(|(at, neuron)| place[*neuron as usize] = at as u32);
        }
        Ok(NeuronLists {
            order_i,
            place_i: Tensor::new(place.as_slice(), device)?,
            starts,
            widest: self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0),
        })
    }

    /// The neurons by expert `[i]`, and where each begins `[n + 1]`, u32.
    pub(super) fn order_and_starts(&self, device: &Device) -> Result<[Tensor; 2]> {
        let starts: Vec<u32> = self.starts.iter().map(|start| *start as u32).collect();
        Ok([Tensor::new(self.order.as_slice(), device)?, Tensor::new(starts.as_slice(), device)?])
    }

    /// Experts.
    #[must_use]
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Neurons of all experts.
    #[must_use]
    pub fn width(&self) -> usize {
        self.order.len()
    }

    /// The neurons of expert n, ascending.
    #[must_use]
    pub fn neurons(&self, n: usize) -> &[u32] {
        &self.order[self.starts[n]..self.starts[n + 1]]
    }

    /// √ of the expert's width, which makes norms of experts of uneven width comparable; 1 of an expert without neurons.
    #[must_use]
    pub(crate) fn root_width(&self, n: usize) -> f64 {
        (self.neurons(n).len().max(1) as f64).sqrt()
    }

    /// Σ over each expert's neurons of `[t, i]` values: `[t, n]`.
    pub(super) fn sums(&self, values_ti: &Tensor) -> Result<Tensor> {
        let (width, count) = (self.width(), self.count());
        let mut member = vec![0f64; width * count];
        for n in 0..count {
            self.neurons(n).iter().for_each(|i| member[*i as usize * count + n] = 1.0);
        }
        let member_in = Tensor::from_vec(member, (width, count), values_ti.device())?.to_dtype(values_ti.dtype())?;
        values_ti.matmul(&member_in)
    }

    /// The mean over each expert's neurons of `[t, i]` values: `[t, n]`; 0 of an expert without neurons.
    pub(super) fn means(&self, values_ti: &Tensor) -> Result<Tensor> {
        let widths: Vec<f64> = (0..self.count()).map(|n| self.neurons(n).len().max(1) as f64).collect();
        let width_1n = Tensor::from_vec(widths, (1, self.count()), values_ti.device())?.to_dtype(values_ti.dtype())?;
        self.sums(values_ti)?.broadcast_div(&width_1n)
    }

    /// √ of the sum over each expert's neurons of `[t, i]` values squared: `[t, n]`.
    ///
    /// # Errors
    /// Values of another width.
    pub fn norms(&self, values_ti: &Tensor) -> Result<Tensor> {
        self.sums(&values_ti.sqr()?)?.sqrt()
    }
}

/// The neurons of each expert of a layer, on a device.
#[derive(Clone, Debug)]
pub struct NeuronLists {
    /// The neurons of one expert behind those of another, ascending within each, `[i]` u32.
    pub order_i: Tensor,
    /// The place of each neuron among its expert's, `[i]` u32.
    pub place_i: Tensor,
    /// Where each expert begins in that order, and where the last ends, `[n + 1]` u32.
    pub starts: Tensor,
    /// Neurons of the widest.
    pub widest: usize,
}

#[cfg(feature = "cuda")]
impl NeuronLists {
    /// Sums over each expert's neurons of `[i]` f64 values on the same card, `[n]`; the order of every sum is fixed.
    ///
    /// ```no_run
    /// use candle_core::Tensor;
    /// use tinyonn::ops::{ExpertNeurons, card};
    ///
    /// let device = card::open(0)?;
    /// let lists = ExpertNeurons::new(&[1, 0, 1], 2)?.on_device(&device)?;
    /// let sums = lists.sums(&Tensor::new(&[1f64, 2.0, 3.0], &device)?)?;
    /// assert_eq!(sums.to_vec1::<f64>()?, [2.0, 4.0]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Values of another size or type; what the driver reports.
    pub fn sums(&self, values_i: &Tensor) -> Result<Tensor> {
        super::image_kernel::expert_sums(values_i, self)
    }
}
