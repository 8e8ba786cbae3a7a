//! What a learned projection keeps of its inputs: of each class the number of its rows and their mean, and of all of them one matrix, how
//! they scatter. Its size follows from the width of the rows, not from their number.
//!
//! Rows come class by class. Σ x xᵀ of a class, of x without the mean of the class's first rows, is summed up in f32 on the device where the
//! rows lie, as products of blocks, and added to f64 in main memory every 32,768 rows and at the end of the class.
//!
//! Where several machines read a shard of the rows each, a shard knows how many rows of a class others have, so that what it sums up
//! weighs what it weighs in the whole, and shards add up.
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
/// More rows than there are.
const MOST: f64 = (1u64 << 53) as f64;

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
    /// d; 0 before the first rows.
    width: usize,
    /// Rows by class.
    count: Vec<f64>,
    /// Rows of each class that are summed up elsewhere.
    elsewhere: Vec<f64>,
    /// The mean by class; of the class at hand that of its blocks.
    mean: Vec<Vec<f64>>,
    /// Σ_c w_c Σ (x − mean_c)(x − mean_c)ᵀ of closed classes, w_c = 1 or one over the class's rows, those elsewhere among them: the lower triangle, row by
    /// row.
    products: Vec<f64>,
    open: Option<Open>,
}

/// The class that rows come of now.
#[derive(Clone, Debug)]
struct Open {
    class: usize,
    /// The mean of its first rows, which all are counted from: `[d]`, f32, where the rows lie, and in main memory.
    origin: (Tensor, Vec<f64>),
    rows: usize,
    /// Of those rows: Σ (x − origin)(x − origin)ᵀ `[d, d]`, f32, and Σ (x − origin) `[d]`, f64.
    block: Option<(Tensor, Tensor)>,
    /// Rows, Σ (x − origin) and Σ (x − origin)(x − origin)ᵀ, its lower triangle (empty before there is one), of the blocks before this one.
    before: (f64, Vec<f64>, Vec<f64>),
}

impl ClassScatter {
    /// Nothing seen.
    #[must_use]
    pub fn new(weigh: Weigh) -> Self {
        let (count, elsewhere, mean, products) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { weigh, width: 0, count, elsewhere, mean, products, open: None }
    }

    /// Bytes that any number of rows of `width` take: in main memory the products in f64, and on the device (which may be main memory, too) those of
    /// the class at hand in f32.
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
        if self.width > 0 && self.width != d {
            candle_core::bail!("class_scatter: rows of {d} numbers behind rows of {}", self.width);
        }
        if self.open.as_ref().is_none_or(|open| open.class != class) {
            if self.count.get(class).is_some_and(|count| *count > 0.0) {
                candle_core::bail!("class_scatter: rows of class {class}, which is closed");
            }
            self.close()?;
            self.begin(x_nd, class)?;
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let x_nd = x_nd.broadcast_sub(&open.origin.0)?;
        let sum = x_nd.to_dtype(DType::F64)?.sum(0)?;
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

    /// Rows of `class` that another shard sums up: until the class is closed.
    pub(crate) fn skip(&mut self, rows: usize, class: usize) {
        self.know(class);
        self.elsewhere[class] += rows as f64;
    }

    fn know(&mut self, class: usize) {
        if self.count.len() <= class {
            self.count.resize(class + 1, 0.0);
            self.elsewhere.resize(class + 1, 0.0);
            self.mean.resize(class + 1, Vec::new());
        }
    }

    /// A class whose first rows are `x_nd`.
    fn begin(&mut self, x_nd: &Tensor, class: usize) -> Result<()> {
        let (n, d) = x_nd.dims2()?;
        if self.width == 0 {
            (self.width, self.products) = (d, vec![0.0; lower(d)]);
        }
        self.know(class);
        let mean = (x_nd.to_dtype(DType::F64)?.sum(0)? / n as f64)?.to_dtype(DType::F32)?;
        let values = host::read(&[&mean])?.concat();
        let before = (0.0, vec![0.0; d], Vec::new());
        self.open = Some(Open { class, origin: (mean, values), rows: 0, block: None, before });
        Ok(())
    }

    /// Brings the open block to main memory.
    fn fold(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let Some((products, sums)) = open.block.take() else { return Ok(()) };
        let (products, sums) = (host::values(&products)?, host::read(&[&sums])?.concat());
        let (count, sum, triangle) = &mut open.before;
        // Only now: until a block is full it holds nothing, of as many layers as there are.
        triangle.resize(lower(self.width), 0.0);
        *count += std::mem::take(&mut open.rows) as f64;
        sum.iter_mut().zip(sums).for_each(|(sum, x)| *sum += x);
        let rows = products.chunks_exact(self.width.max(1)).enumerate().flat_map(|(row, values)| &values[..=row]);
        triangle.iter_mut().zip(rows).for_each(|(sum, x)| *sum += f64::from(*x));
        Ok(())
    }

    /// No more rows of the class at hand. Needed behind the last one.
    ///
    /// # Errors
    /// What the device reports.
    pub fn close(&mut self) -> Result<()> {
        self.fold()?;
        let Some(Open { class, origin: (_, origin), before: (count, sum, triangle), .. }) = self.open.take() else {
            return Ok(());
        };
        self.count[class] = count;
        let apart: Vec<f64> = sum.iter().map(|sum| sum / count).collect();
        self.mean[class] = origin.iter().zip(&apart).map(|(origin, apart)| origin + apart).collect();
        let weight = self.weight(class);
        let mut products = self.products.iter_mut().zip(triangle);
        for row in 0..self.width {
            for (column, (total, product)) in (0..=row).zip(&mut products) {
                *total += weight * (product - count * apart[row] * apart[column]);
            }
        }
        Ok(())
    }

    fn weight(&self, class: usize) -> f64 {
        match self.weigh {
            Weigh::Classes => 1.0 / (self.count[class] + self.elsewhere[class]),
            Weigh::Rows => 1.0,
        }
    }

    /// d; 0 where nothing was seen.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// How its classes count.
    #[must_use]
    pub fn weigh(&self) -> Weigh {
        self.weigh
    }

    /// Rows of all closed classes.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use tinyonn::ops::{ClassScatter, Weigh};
    ///
    /// let mut scatter = ClassScatter::new(Weigh::Rows);
    /// scatter.push(&Tensor::new(&[[0f32, 0.0], [2.0, 0.0]], &Device::Cpu)?, 1)?;
    /// scatter.close()?;
    /// assert_eq!((scatter.width(), scatter.rows(), scatter.classes(), scatter.weigh()), (2, 2.0, 2, Weigh::Rows));
    /// assert_eq!(ClassScatter::bytes(1000), [8 * 1000 * 1001 / 2, 4 * 1000 * 1000]); // half of a symmetric matrix, and a whole one
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn rows(&self) -> f64 {
        self.count.iter().sum()
    }

    /// The number of classes, those without a row before the last one among them.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.count.len()
    }

    /// The mean of the rows of a closed class `[d]`; `None` of one without rows.
    #[must_use]
    pub fn mean(&self, class: usize) -> Option<Vec<f64>> {
        self.count.get(class).filter(|count| **count > 0.0).map(|_| self.mean[class].clone())
    }

    /// The scatter of the rows of closed classes, as [`Weigh`] has it: `[d, d]`, row-major, symmetric.
    #[must_use]
    pub fn matrix(&self) -> Vec<f64> {
        let d = self.width;
        let classes: Vec<usize> = (0..self.count.len()).filter(|class| self.count[*class] > 0.0).collect();
        let scale = if self.weigh == Weigh::Classes { 1.0 / classes.len().max(1) as f64 } else { 1.0 };
        // Of all rows, what lies between the classes' means comes on top of what lies within classes.
        let centre = |j: usize| classes.iter().map(|c| self.count[*c] * self.mean[*c][j]).sum::<f64>() / self.rows();
        let centre: Vec<f64> = (0..d).map(centre).collect();
        let between = |row: usize, column: usize| {
            let of_class = |c: &usize| {
                self.count[*c] * (self.mean[*c][row] - centre[row]) * (self.mean[*c][column] - centre[column])
            };
            if self.weigh == Weigh::Rows { classes.iter().map(of_class).sum() } else { 0.0 }
        };
        let mut matrix = vec![0.0; d * d];
        let mut products = self.products.iter();
        for row in 0..d {
            for (column, product) in (0..=row).zip(&mut products) {
                let value = scale * (product + between(row, column));
                matrix[row * d + column] = value;
                matrix[column * d + row] = value;
            }
        }
        matrix
    }

    /// Adds what another shard of the same rows has summed up: with x̄ the mean of a class, Σ (x − x̄)(x − x̄)ᵀ of both shards a and b is the sum of their own
    /// and n_a n_b / (n_a + n_b) (x̄_a − x̄_b)(x̄_a − x̄_b)ᵀ. All classes of both are closed.
    ///
    /// # Errors
    /// Rows of another width or weighed otherwise; shards that do not have the same rows in all.
    pub(crate) fn merge(&mut self, other: &Self) -> Result<()> {
        if other.width == 0 && other.count.is_empty() {
            return Ok(());
        }
        if self.width == 0 && self.count.is_empty() {
            *self = other.clone();
            return Ok(());
        }
        let classes = self.count.len().max(other.count.len());
        let all = |scatter: &Self, class: usize| -> f64 {
            [&scatter.count, &scatter.elsewhere].iter().filter_map(|rows| rows.get(class)).sum()
        };
        let differ = |class: usize| all(self, class) != all(other, class);
        let widths = [self.width, other.width];
        let taken_twice = |class: usize| other.count.get(class) > self.elsewhere.get(class);
        let wide = widths[0] != widths[1] && !widths.contains(&0);
        if self.weigh != other.weigh || wide || (0..classes).any(|class| differ(class) || taken_twice(class)) {
            candle_core::bail!("class_scatter: shards of other rows");
        }
        if self.width == 0 {
            (self.width, self.products) = (other.width, vec![0.0; lower(other.width)]);
        }
        self.products.iter_mut().zip(&other.products).for_each(|(sum, x)| *sum += x);
        for class in 0..classes {
            let (Some(own), Some(others)) = (self.count.get(class).copied(), other.count.get(class).copied()) else {
                continue;
            };
            if others == 0.0 {
                continue;
            }
            let (share, weight) = (others / (own + others), self.weight(class));
            if own == 0.0 {
                self.mean[class].clone_from(&other.mean[class]);
            } else {
                let apart: Vec<f64> =
                    other.mean[class].iter().zip(&self.mean[class]).map(|(other, own)| other - own).collect();
                let mut products = self.products.iter_mut();
                for row in 0..self.width {
                    for (column, total) in (0..=row).zip(&mut products) {
                        *total += weight * own * share * apart[row] * apart[column];
                    }
                }
                self.mean[class].iter_mut().zip(&apart).for_each(|(mean, apart)| *mean += share * apart);
            }
            self.count[class] += others;
            self.elsewhere[class] -= others;
        }
        Ok(())
    }

    /// Rows of each class, here and elsewhere; their means here, of a class without any zeros; the lower triangle of the products.
    pub(crate) fn parts(&self) -> ([&[f64]; 2], Vec<f64>, &[f64]) {
        let mean = |mean: &Vec<f64>| if mean.is_empty() { vec![0.0; self.width] } else { mean.clone() };
        ([&self.count, &self.elsewhere], self.mean.iter().flat_map(mean).collect(), &self.products)
    }

    /// What [`parts`](Self::parts) said of rows of `width`; `None` where they do not fit together.
    pub(crate) fn of_parts(
        (weigh, width): (Weigh, usize),
        [count, elsewhere]: [Vec<f64>; 2],
        mean: &[f64],
        products: Vec<f64>,
    ) -> Option<Self> {
        let counts = count.iter().chain(&elsewhere);
        let fits = elsewhere.len() == count.len()
            && Some(mean.len()) == count.len().checked_mul(width)
            && products.len() == lower(width)
            && (width > 0 || count.iter().all(|count| *count == 0.0))
            && counts.into_iter().all(|count| count.fract() == 0.0 && (0.0..MOST).contains(count));
        let means = mean.chunks_exact(width.max(1)).map(<[f64]>::to_vec);
        let mean = if width == 0 { vec![Vec::new(); count.len()] } else { means.collect() };
        fits.then_some(Self { weigh, width, count, elsewhere, mean, products, open: None })
    }
}

/// Numbers in the lower triangle of a matrix of so many rows.
fn lower(width: usize) -> usize {
    width * (width + 1) / 2
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Batches of each class as (shard, rows), by class: as shards see them, each its own, and as the whole does.
    fn read(batches: &[Vec<(usize, Vec<f32>)>], d: usize, weigh: Weigh, shard: Option<usize>) -> Result<ClassScatter> {
        let mut scatter = ClassScatter::new(weigh);
        for (class, batches) in batches.iter().enumerate() {
            for (owner, values) in batches {
                let rows = values.len() / d;
                if shard.is_none_or(|shard| shard == *owner) {
                    scatter.push(&Tensor::from_slice(values, (rows, d), &Device::Cpu)?, class)?;
                } else {
                    scatter.skip(rows, class);
                }
            }
            scatter.close()?;
        }
        Ok(scatter)
    }

    /// However batches are dealt, also where a shard has none of a class, or none at all.
    #[test]
    fn shards_add_up_to_the_whole() -> Result<()> {
        let (d, mut next) = (3, 0.3f32);
        let mut value = || {
            next = (next * 7.3 + 0.19) % 1.0;
            4.0 * next - 1.0
        };
        // (shard, rows) of each batch, by class.
        let dealt: [&[(usize, usize)]; 4] =
            [&[(0, 5), (1, 1), (2, 3), (0, 2)], &[(1, 4)], &[], &[(1, 2), (0, 6), (1, 1)]];
        let batches: Vec<Vec<(usize, Vec<f32>)>> = dealt
            .iter()
            .map(|class| class.iter().map(|(owner, n)| (*owner, (0..n * d).map(|_| value()).collect())).collect())
            .collect();
        for (weigh, turn) in [(Weigh::Classes, 0), (Weigh::Classes, 2), (Weigh::Rows, 1), (Weigh::Rows, 2)] {
            let whole = read(&batches, d, weigh, None)?;
            let mut sum = read(&batches, d, weigh, Some(turn))?;
            // The fourth shard is empty.
            for other in 1..4 {
                let scatter = read(&batches, d, weigh, Some((turn + other) % 4))?;
                let ([here, elsewhere], mean, products) = scatter.parts();
                let counts = [here.to_vec(), elsewhere.to_vec()];
                let again = ClassScatter::of_parts((weigh, scatter.width()), counts, &mean, products.to_vec());
                assert!(again.is_some());
                again.iter().try_for_each(|again| sum.merge(again))?;
            }
            assert_eq!(sum.count, whole.count);
            assert!(sum.elsewhere.iter().all(|rows| *rows == 0.0));
            // Products of numbers up to 3 in f32, some tens of them: 1e-5 is a hundred times their rounding.
            let alike = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(alike(&sum.matrix(), &whole.matrix()), "{:?} and {:?}", sum.matrix(), whole.matrix());
            for class in 0..whole.classes() {
                assert!(alike(&sum.mean(class).unwrap_or_default(), &whole.mean(class).unwrap_or_default()));
            }
        }
        Ok(())
    }

    #[test]
    fn shards_of_other_rows_do_not_add_up() -> Result<()> {
        let shard = |own: usize, elsewhere: usize| -> Result<ClassScatter> {
            let mut scatter = ClassScatter::new(Weigh::Rows);
            scatter.push(&Tensor::ones((own, 2), DType::F32, &Device::Cpu)?, 0)?;
            scatter.skip(elsewhere, 0);
            scatter.close()?;
            Ok(scatter)
        };
        assert!(shard(2, 3)?.merge(&shard(3, 2)?).is_ok());
        assert!(shard(2, 3)?.merge(&shard(3, 3)?).is_err());
        assert!(shard(3, 2)?.merge(&shard(3, 2)?).is_err());
        Ok(())
    }
}
