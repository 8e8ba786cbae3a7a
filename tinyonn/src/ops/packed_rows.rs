//! Rows that learn, packed one behind another: what ranks send of weights of which a few rows learn (Surprise Min-K over several GPUs).
//!
//! Legend: a weight `[rows, width]` lies in a bucket from `begin` on; a rank holds a range of the bucket. Packed, row number k of those that learn is row k, of `most` in
//! all; what is not held, or learns not, is zero there. Which rows learn lies on the device, and nobody reads it: all ranks know the same.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::LearningNeurons;

/// The rows of a weight that learn.
#[derive(Clone)]
pub(crate) struct LearningRows<'a> {
    /// What is held of the bucket, `[n]`.
    pub(crate) values: &'a Tensor,
    /// Which of the bucket's values these are.
    pub(crate) held: Range<usize>,
    /// Where in the bucket the weight begins.
    pub(crate) begin: usize,
    /// Rows, and values of one.
    pub(crate) shape: (usize, usize),
    /// 1 for each row that learns, `[rows]` u8.
    pub(crate) learn: &'a Tensor,
    /// At most so many do.
    pub(crate) most: usize,
}

impl LearningRows<'_> {
    fn packed(&self) -> usize {
        self.most * self.shape.1
    }

    /// The values that are held of the weight: where in it, and where in `values`.
    fn overlap(&self) -> Option<(Range<usize>, usize)> {
        let (rows, width) = self.shape;
        let (from, to) = (self.begin.max(self.held.start), (self.begin + rows * width).min(self.held.end));
        (from < to).then(|| (from - self.begin..to - self.begin, from - self.held.start))
    }

    /// The weight as it is held, zeros elsewhere, `[rows, width]`.
    fn whole(&self) -> Result<Tensor> {
        let all = Tensor::zeros(self.shape.0 * self.shape.1, self.values.dtype(), self.values.device())?;
        if let Some((own, at)) = self.overlap() {
            all.slice_set(&self.values.narrow(0, at, own.len())?.force_contiguous()?, 0, own.start)?;
        }
        all.reshape(self.shape)
    }
}

/// All of their rows that learn, `[Σ most · width]`.
///
/// # Errors
/// What the device reports.
pub(crate) fn pack(of: &[LearningRows<'_>]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_a_card::takes(of) {
        return on_a_card::pack(of);
    }
    let parts = of.iter().map(|of| {
        let index_m = LearningNeurons::on_device(of.learn, of.most)?;
        index_m.of_rows(&of.whole()?)?.flatten_all()
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// Puts packed rows back: those that learn, where they are held.
///
/// # Errors
/// What the device reports.
pub(crate) fn unpack(packed: &Tensor, of: &[LearningRows<'_>]) -> Result<()> {
    #[cfg(feature = "cuda")]
    if on_a_card::takes(of) {
        return on_a_card::unpack(packed, of);
    }
    let mut at = 0;
    for of in of {
        let rows_md = packed.narrow(0, at, of.packed())?.reshape((of.most, of.shape.1))?;
        at += of.packed();
        let Some((own, place)) = of.overlap() else { continue };
        let theirs = LearningNeurons::on_device(of.learn, of.most)?.rows(&rows_md)?;
        let learn = of.learn.ne(0u8)?.unsqueeze(1)?.broadcast_as(of.shape)?;
        let new = learn.where_cond(&theirs, &of.whole()?)?.flatten_all()?;
        of.values.slice_set(&new.narrow(0, own.start, own.len())?.force_contiguous()?, 0, place)?;
    }
    Ok(())
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg as _};
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Kernel, address, card};
    use super::LearningRows;

    static PACKED_ROWS: Kernel =
        Kernel::new("packed_rows", concat!(include_str!("numbers.cu"), include_str!("packed_rows.cu")));

    /// Threads of a row's block.
    const THREADS: u32 = 128;

    /// Whether the kernel reads and writes these.
    pub(super) fn takes(of: &[LearningRows<'_>]) -> bool {
        let is_moved = |of: &LearningRows<'_>| {
            let whole = of.values.is_contiguous() && of.learn.is_contiguous() && of.learn.dtype() == DType::U8;
            let known = matches!(of.values.dtype(), DType::F32 | DType::F64 | DType::BF16);
            of.values.device().is_cuda() && of.learn.device().is_cuda() && whole && known
        };
        !of.is_empty() && of.iter().all(is_moved)
    }

    pub(super) fn pack(of: &[LearningRows<'_>]) -> Result<Tensor> {
        let packed: usize = of.iter().map(LearningRows::packed).sum();
        let packed = Tensor::zeros(packed, of[0].values.dtype(), of[0].values.device())?;
        move_rows(of, &packed, true)?;
        Ok(packed)
    }

    pub(super) fn unpack(packed: &Tensor, of: &[LearningRows<'_>]) -> Result<()> {
        move_rows(of, &packed.contiguous()?, false)
    }

    /// Copies rows into `packed`, or out of it.
    #[allow(unsafe_code)]
    fn move_rows(of: &[LearningRows<'_>], packed: &Tensor, out: bool) -> Result<()> {
        let (dtype, sum) = (packed.dtype(), of.iter().map(LearningRows::packed).sum::<usize>());
        let fits = |of: &LearningRows<'_>| {
            let ((rows, _), held) = (of.shape, of.held.len());
            of.values.dims() == [held] && of.values.dtype() == dtype && of.learn.dims() == [rows] && of.most <= rows
        };
        if packed.dims() != [sum] || !of.iter().all(fits) {
            candle_core::bail!("rows that learn of other shapes or types than {packed:?} has room for");
        }
        let (mut words, mut first, mut place) = (Vec::with_capacity(11 * of.len()), 0, 0);
        let room = address(packed)?;
        for of in of {
            let (rows, width) = of.shape;
            let [width, begin, from, to] =
                [width, of.begin, of.held.start, of.held.end].map(|values| (values * dtype.size_in_bytes()) as u64);
            let values = address(of.values)?;
            let together = |bytes: &u64| [values, width, begin, from, to, place, room].iter().all(|at| at % bytes == 0);
            let step = [16, 4].into_iter().find(together);
            words.extend([values, address(of.learn)?, rows as u64, width, first, begin, from, to, place]);
            words.extend([of.most as u64, step.unwrap_or(2)]);
            first += rows as u64;
            place += of.most as u64 * width;
        }
        let device = card(packed)?;
        let Ok(grid) = u32::try_from(first) else { candle_core::bail!("{first} rows are more than a launch has") };
        let (function, stream) = (PACKED_ROWS.on(device)?, device.cuda_stream());
        let (words, count, out) = (device.clone_htod(&words)?, of.len() as u64, u64::from(out));
        let mut launch = stream.launch_builder(&function);
        launch.arg(&words).arg(&count).arg(&room).arg(&out);
        let shape = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the signature of packed_rows. Every address is of a contiguous tensor on this card that lives until the launch is queued; a weight is within its
        // bucket, of which the range is held that `values` has, and its packed rows are within `packed`, as was just seen. No two blocks write one value, and
        // everything on this card runs in one stream.
        unsafe { launch.launch(shape) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};
    use rstest::rstest;

    use super::{LearningRows, pack, unpack};

    /// Where there is a card, both.
    fn devices() -> Vec<Device> {
        [Ok(Device::Cpu), Device::new_cuda(0)].into_iter().flatten().collect()
    }

    /// Two weights of a bucket of which each of two ranks holds a part, cut within a row: what they pack adds up to the rows that learn, which one alone packs; put back, these are
    /// changed and no others.
    #[rstest]
    fn what_ranks_pack_adds_up_to_the_rows_that_learn(
        #[values(DType::F32, DType::BF16, DType::F64)] dtype: DType,
        // Rows copied sixteen, four and two bytes at once.
        #[values(16, 6, 3)] width: usize,
    ) -> Result<()> {
        for device in devices() {
            let rows = 5;
            let second = (rows * width).next_multiple_of(128);
            let all = 2 * second;
            let numbers: Vec<f32> = (0..all).map(|at| (at % 251 + 1) as f32).collect();
            let bucket = Tensor::new(numbers.as_slice(), &device)?.to_dtype(dtype)?;
            let marks = [[0u8, 1, 0, 1, 1], [1, 0, 0, 0, 0]].map(|marks| Tensor::new(&marks, &device));
            let [first_marks, second_marks] = marks;
            let learn = [first_marks?, second_marks?];
            // Of the second weight one more may learn than does.
            let of = |values: &Tensor, held: std::ops::Range<usize>| -> Result<Tensor> {
                pack(&rows_of(values, held, &learn, [0, second], (rows, width)))
            };
            let whole = of(&bucket, 0..all)?;
            let cut = width + width / 2;
            let ranges = [0..cut, cut..all];
            let parts =
                ranges.clone().map(|held| of(&bucket.narrow(0, held.start, held.len())?.force_contiguous()?, held));
            let [low, high] = parts;
            let bits = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            assert_eq!(bits(&(low? + high?)?)?, bits(&whole)?);
            let row = |weight: usize, row: usize| numbers[weight * second + row * width..][..width].to_vec();
            let expected = [row(0, 1), row(0, 3), row(0, 4), row(1, 0), vec![0.0; width]].concat();
            let narrow = |x: &f32| if dtype == DType::BF16 { half::bf16::from_f32(*x).to_f32() } else { *x };
            assert_eq!(bits(&whole)?, expected.iter().map(narrow).collect::<Vec<_>>());

            let doubled = (&whole * 2.0)?;
            for held in ranges {
                let own = bucket.narrow(0, held.start, held.len())?.force_contiguous()?;
                unpack(&doubled, &rows_of(&own, held.clone(), &learn, [0, second], (rows, width)))?;
                let learns = |at: usize| {
                    let (weight, at) = (at / second, at % second);
                    at < rows * width && [[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]][weight][at / width] == 1
                };
                let expected = held.map(|at| narrow(&numbers[at]) * if learns(at) { 2.0 } else { 1.0 });
                assert_eq!(bits(&own)?, expected.collect::<Vec<_>>());
            }
        }
        Ok(())
    }

    fn rows_of<'a>(
        values: &'a Tensor,
        held: std::ops::Range<usize>,
        learn: &'a [Tensor; 2],
        begin: [usize; 2],
        shape: (usize, usize),
    ) -> Vec<LearningRows<'a>> {
        let of = |(at, most): (usize, usize)| LearningRows {
            values,
            held: held.clone(),
            begin: begin[at],
            shape,
            learn: &learn[at],
            most,
        };
        [(0, 3), (1, 2)].into_iter().map(of).collect()
    }
}
