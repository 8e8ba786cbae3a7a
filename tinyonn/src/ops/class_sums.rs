//! What a Gaussian fit keeps of its inputs: for each class of rows their number, Σ z and Σ z², in f64 and in one pass.
//!
//! Legend: n rows, r width of z. An observation, not a function to differentiate.

use candle_core::Result;
use rayon::prelude::*;

use super::lanes;

/// Σ over the rows of each class. Sums of parts of the rows add up to those of the whole.
///
/// ```
/// use tinyonn::ops::ClassSums;
/// let mut sums = ClassSums::zero(3, 2);
/// // Rows (1, 2) and (3, 4) of class 2, (5, 6) of class 0.
/// sums.push_rows(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 2, 0])?;
/// assert_eq!((sums.count(2), sums.sum(2), sums.squares(2)), (2.0, &[4.0, 6.0][..], &[10.0, 20.0][..]));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ClassSums {
    width: usize,
    /// Rows, by class.
    count: Vec<f64>,
    /// Σ z, `[classes, r]`.
    sum: Vec<f64>,
    /// Σ z², `[classes, r]`.
    squares: Vec<f64>,
}

/// Rows a task of the pool sums at once; a constant, so that sums do not depend on the number of threads.
const ROWS: usize = 8192;

impl ClassSums {
    /// Nothing seen, of rows of `width` numbers.
    #[must_use]
    pub fn zero(classes: usize, width: usize) -> Self {
        let zeros = || vec![0.0; classes * width];
        Self { width, count: vec![0.0; classes], sum: zeros(), squares: zeros() }
    }

    /// More rows: `z_nr` row-major `[n, r]`, `class_n` the class of each.
    ///
    /// # Errors
    /// Rows of another width, or of a class beyond those there are.
    pub fn push_rows(&mut self, z_nr: &[f32], class_n: &[u32]) -> Result<()> {
        let (classes, width) = (self.count.len(), self.width);
        if z_nr.len() != class_n.len() * width {
            candle_core::bail!("class_sums: {} numbers for {} rows of {width}", z_nr.len(), class_n.len());
        }
        if let Some(class) = class_n.iter().find(|class| **class as usize >= classes) {
            candle_core::bail!("class_sums: a row is of class {class} of {classes}");
        }
        // Every task holds sums of all classes: many classes take fewer, longer tasks.
        let rows = ROWS.max(4 * classes);
        let parts: Vec<Self> = z_nr
            .par_chunks((rows * width).max(1))
            .zip(class_n.par_chunks(rows))
            .map(|(z_nr, class_n)| {
                let mut part = Self::zero(classes, width);
                lanes::vectorised(|| part.add_rows(z_nr, class_n));
                part
            })
            .collect();
        parts.iter().for_each(|part| self.add(part));
        Ok(())
    }

    #[inline(always)]
    fn add_rows(&mut self, z_nr: &[f32], class_n: &[u32]) {
        let width = self.width;
        for (z, class) in z_nr.chunks_exact(width).zip(class_n) {
            let class = *class as usize;
            self.count[class] += 1.0;
            let sum = &mut self.sum[class * width..][..width];
            let squares = &mut self.squares[class * width..][..width];
            for j in 0..width {
                let z = f64::from(z[j]);
                sum[j] += z;
                squares[j] += z * z;
            }
        }
    }

    fn add(&mut self, other: &Self) {
        let add = |a: &mut Vec<f64>, b: &Vec<f64>| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        add(&mut self.count, &other.count);
        add(&mut self.sum, &other.sum);
        add(&mut self.squares, &other.squares);
    }

    /// Of the first `width` numbers of every row alone.
    ///
    /// ```
    /// use tinyonn::ops::ClassSums;
    ///
    /// let mut sums = ClassSums::zero(1, 3);
    /// sums.push_rows(&[1.0, 2.0, 3.0], &[0])?;
    /// let narrow = sums.narrow(2);
    /// assert_eq!((narrow.width(), narrow.sum(0)), (2, &[1.0, 2.0][..]));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn narrow(&self, width: usize) -> Self {
        let cut = |rows: &[f64]| -> Vec<f64> {
            rows.chunks(self.width.max(1)).flat_map(|row| &row[..width.min(row.len())]).copied().collect()
        };
        Self {
            width: width.min(self.width),
            count: self.count.clone(),
            sum: cut(&self.sum),
            squares: cut(&self.squares),
        }
    }

    /// r.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows of a class.
    #[must_use]
    pub fn count(&self, class: usize) -> f64 {
        self.count[class]
    }

    /// Σ z of a class, `[r]`.
    #[must_use]
    pub fn sum(&self, class: usize) -> &[f64] {
        &self.sum[class * self.width..][..self.width]
    }

    /// Σ z² of a class, `[r]`.
    #[must_use]
    pub fn squares(&self, class: usize) -> &[f64] {
        &self.squares[class * self.width..][..self.width]
    }
}
