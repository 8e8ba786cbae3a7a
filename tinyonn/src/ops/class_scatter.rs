//! What a learned projection keeps of its inputs: of each class the number of its rows and their mean, and of all of them one matrix, how
//! they scatter. Its size follows from the width of the rows, not from their number.
//!
//! Rows come class by class. Σ x xᵀ of a class, of x without the mean of the first rows, is summed up in f32 on the device where the
//! rows lie, as products of blocks, and added to f64 in main memory every 32,768 rows and at the end of the class.
//!
//! Legend: n rows, d width. An observation, not a function to differentiate.

use candle_core::{DType, Result, Tensor};

use super::host;
use super::product::accumulate;

/// How much a class counts in the scatter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weigh {
    /// Classes equally: the mean over classes of the covariance *within* each.
    Classes,
    /// Rows equally, whatever their class: Σ (x − x̄)(x − x̄)ᵀ over all of them.
    Rows,
}

/// Rows that are summed up in f32 at most.
const BLOCK: usize = 32_768;

/// The sums. Rows of a class that was closed by another's are refused: classes come one after the other.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::ops::{ClassScatter, Weigh};
///
/// let mut scatter = ClassScatter::new(Weigh::Classes);
/// scatter.push(&Tensor::new(&[[0f32, 0.0], [2.0, 0.0]], &Device::Cpu)?, 0)?;
/// scatter.push(&Tensor::new(&[[0f32, 5.0], [0.0, 9.0]], &Device::Cpu)?, 1)?;
/// scatter.close()?;
/// assert_eq!(scatter.mean(1), Some(vec![0.0, 7.0]));
/// // Variance 1 along the first axis within class 0, 4 along the second within class 1.
/// assert_eq!(scatter.matrix(), [0.5, 0.0, 0.0, 2.0]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClassScatter {
    weigh: Weigh,
    /// The mean of the first rows, which all are counted from: `[d]`, f32, where the rows lie, and in main memory.
    origin: Option<(Tensor, Vec<f64>)>,
    /// Rows by class.
    count: Vec<f64>,
    /// Σ (x − origin) by class.
    sum: Vec<Vec<f64>>,
    /// Σ_c w_c Σ (x − origin)(x − origin)ᵀ of closed classes, w_c = 1 or one over the class's rows: the lower triangle, row by row.
    products: Vec<f64>,
    open: Option<Open>,
}

/// The class that rows come of now.
#[derive(Clone, Debug)]
struct Open {
    class: usize,
    rows: usize,
    /// Of those rows: Σ (x − origin)(x − origin)ᵀ `[d, d]`, f32, and Σ (x − origin) `[d]`, f64.
    block: Option<(Tensor, Tensor)>,
    /// Products of blocks before this one, as [`ClassScatter::products`] without weights; empty where there was none.
    before: Vec<f64>,
}

impl ClassScatter {
    /// Nothing seen.
    #[must_use]
    pub fn new(weigh: Weigh) -> Self {
        Self { weigh, origin: None, count: Vec::new(), sum: Vec::new(), products: Vec::new(), open: None }
    }

    /// Bytes in main memory behind any number of rows of `width`, and on the device of those that come in now; where that is main memory both
    /// lie there.
    #[must_use]
    pub fn bytes(width: usize) -> [u64; 2] {
        [8 * lower(width) as u64, 4 * (width * width) as u64]
    }

    /// More rows `[n, d]`, f32, of `class`.
    ///
    /// # Errors
    /// Rows of another width, or of a class that is closed.
    pub fn push(&mut self, x_nd: &Tensor, class: usize) -> Result<()> {
        let (n, d) = x_nd.dims2()?;
        if n == 0 {
            return Ok(());
        }
        if let Some((origin, _)) = self.origin.as_ref().filter(|(origin, _)| origin.dims() != [d]) {
            candle_core::bail!("class_scatter: rows of {d} numbers behind rows of {:?}", origin.dims());
        }
        if self.open.as_ref().is_none_or(|open| open.class != class) {
            if self.count.get(class).is_some_and(|count| *count > 0.0) {
                candle_core::bail!("class_scatter: rows of class {class}, which is closed");
            }
            self.close()?;
        }
        if self.count.len() <= class {
            self.count.resize(class + 1, 0.0);
            self.sum.resize(class + 1, Vec::new());
        }
        if self.origin.is_none() {
            let mean = (x_nd.to_dtype(DType::F64)?.sum(0)? / n as f64)?.to_dtype(DType::F32)?;
            let values = host::read(&[&mean])?.concat();
            self.origin = Some((mean, values));
            self.products = vec![0.0; lower(d)];
        }
        let Some((origin, _)) = &self.origin else { return Ok(()) };
        let x_nd = x_nd.broadcast_sub(origin)?;
        let sum = x_nd.to_dtype(DType::F64)?.sum(0)?;
        let open = self.open.get_or_insert_with(|| Open { class, rows: 0, block: None, before: Vec::new() });
        open.rows += n;
        open.block = Some(match open.block.take() {
            None => {
                let products = Tensor::zeros((d, d), DType::F32, x_nd.device())?;
                accumulate(&products, &x_nd.t()?, &x_nd, false)?;
                (products, sum)
            }
            Some((products, sums)) => {
                accumulate(&products, &x_nd.t()?, &x_nd, true)?;
                (products, (sums + sum)?)
            }
        });
        if open.rows >= BLOCK { self.fold() } else { Ok(()) }
    }

    /// Brings the open block to main memory.
    fn fold(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let Some((products, sums)) = open.block.take() else { return Ok(()) };
        let d = sums.elem_count();
        let (products, sums) = (host::values(&products)?, host::read(&[&sums])?.concat());
        if open.before.is_empty() {
            open.before = vec![0.0; lower(d)];
        }
        let rows = products.chunks_exact(d.max(1)).enumerate().flat_map(|(row, values)| &values[..=row]);
        open.before.iter_mut().zip(rows).for_each(|(sum, x)| *sum += f64::from(*x));
        self.count[open.class] += std::mem::take(&mut open.rows) as f64;
        let own = &mut self.sum[open.class];
        own.resize(d, 0.0);
        own.iter_mut().zip(sums).for_each(|(sum, x)| *sum += x);
        Ok(())
    }

    /// No more rows of the class at hand. Needed behind the last one.
    ///
    /// # Errors
    /// What the device reports.
    pub fn close(&mut self) -> Result<()> {
        self.fold()?;
        if let Some(Open { class, before, .. }) = self.open.take() {
            let weight = self.weight(class);
            self.products.iter_mut().zip(before).for_each(|(sum, x)| *sum += weight * x);
        }
        Ok(())
    }

    fn weight(&self, class: usize) -> f64 {
        match self.weigh {
            Weigh::Classes => 1.0 / self.count[class],
            Weigh::Rows => 1.0,
        }
    }

    /// d; 0 where nothing was seen.
    #[must_use]
    pub fn width(&self) -> usize {
        self.origin.as_ref().map_or(0, |(_, origin)| origin.len())
    }

    /// How its classes count.
    #[must_use]
    pub fn weigh(&self) -> Weigh {
        self.weigh
    }

    /// Rows of all closed classes.
    #[must_use]
    pub fn rows(&self) -> f64 {
        self.count.iter().sum()
    }

    /// The number of classes, those without a row before the last one among them.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.count.len()
    }

    /// The mean of a class's rows `[d]`; `None` of one without rows.
    #[must_use]
    pub fn mean(&self, class: usize) -> Option<Vec<f64>> {
        let (_, origin) = self.origin.as_ref().filter(|_| self.count.get(class).is_some_and(|count| *count > 0.0))?;
        let mean = origin.iter().zip(&self.sum[class]).map(|(origin, sum)| origin + sum / self.count[class]);
        Some(mean.collect())
    }

    /// The scatter of the rows of closed classes, as [`Weigh`] has it: `[d, d]`, row-major, symmetric.
    #[must_use]
    pub fn matrix(&self) -> Vec<f64> {
        let (d, classes) = (self.width(), (0..self.count.len()).filter(|class| self.count[*class] > 0.0));
        let classes: Vec<usize> = classes.collect();
        // Subtracted: Σ over classes of m mᵀ, m their means from the origin; or that of all rows, as often as there are rows.
        let means: Vec<(f64, Vec<f64>)> = match self.weigh {
            Weigh::Classes => {
                let mean = |class: &usize| self.sum[*class].iter().map(|sum| sum / self.count[*class]).collect();
                classes.iter().map(|class| (1.0, mean(class))).collect()
            }
            Weigh::Rows => {
                let mean = |j: usize| classes.iter().map(|class| self.sum[*class][j]).sum::<f64>() / self.rows();
                vec![(self.rows(), (0..d).map(mean).collect())]
            }
        };
        let scale = if self.weigh == Weigh::Classes { 1.0 / classes.len().max(1) as f64 } else { 1.0 };
        let mut matrix = vec![0.0; d * d];
        let mut products = self.products.iter();
        for row in 0..d {
            for (column, product) in (0..=row).zip(&mut products) {
                let apart = means.iter().map(|(weight, mean)| weight * mean[row] * mean[column]).sum::<f64>();
                let value = scale * (product - apart);
                matrix[row * d + column] = value;
                matrix[column * d + row] = value;
            }
        }
        matrix
    }
}

/// Numbers in the lower triangle of a matrix of so many rows.
fn lower(width: usize) -> usize {
    width * (width + 1) / 2
}
