//! Sums and products of equal shapes on a training step's way.
//!
//! f32 on the CPU shares rows out over the same pool as every other loop here; candle's own elementwise operations wait for each other
//! in a loop that holds a core, which costs ten times the time beside a busy neighbour. On a GPU f32 and bf16 have a kernel that reads
//! several values at once; candle's takes nearly three times as long. Everything else is candle's.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use tinyonn::ops::elementwise::{add, add_scaled, cast, multiply};
//!
//! let (a, b) = (Tensor::new(&[1f32, 2.0], &Device::Cpu)?, Tensor::new(&[3f32, 5.0], &Device::Cpu)?);
//! assert_eq!(add(&a, &b)?.to_vec1::<f32>()?, [4.0, 7.0]);
//! assert_eq!(multiply(&a, &b)?.to_vec1::<f32>()?, [3.0, 10.0]);
//! assert_eq!(add_scaled(&a, &b, 2.0)?.to_vec1::<f32>()?, [7.0, 12.0]);
//! assert_eq!(cast(&a, DType::BF16)?.dtype(), DType::BF16);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{DType, Result, Tensor};

use super::lanes;

/// a + b.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_a_card::takes(a, b) {
        return on_a_card::combine(a, b, false);
    }
    if in_rows(a, b) { each([a, b], |[a, b]| a + b) } else { a + b }
}

/// a ⊙ b.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_a_card::takes(a, b) {
        return on_a_card::combine(a, b, true);
    }
    if in_rows(a, b) { each([a, b], |[a, b]| a * b) } else { a * b }
}

/// x in another type.
///
/// # Errors
/// What the device reports.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.dtype() != dtype && super::kernel::is_read(x) && matches!(dtype, DType::F32 | DType::BF16) {
        return on_a_card::cast(x, dtype);
    }
    x.to_dtype(dtype)
}

/// a + k b.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
pub fn add_scaled(a: &Tensor, b: &Tensor, k: f64) -> Result<Tensor> {
    let factor = k as f32;
    if in_rows(a, b) { each([a, b], |[a, b]| a + b * factor) } else { a + (b * k)? }
}

fn in_rows(a: &Tensor, b: &Tensor) -> bool {
    lanes::fused(&[a, b]) && a.dims() == b.dims() && a.is_contiguous() && b.is_contiguous()
}

/// f at each element of contiguous f32 tensors on the CPU.
pub(super) fn each<const N: usize>(inputs: [&Tensor; N], f: impl Fn([f32; N]) -> f32 + Sync) -> Result<Tensor> {
    let mut out = vec![0f32; inputs[0].elem_count()];
    let width = width(out.len());
    lanes::with_slices(inputs, |slices| {
        lanes::by_rows(&mut out, width, |first, out| {
            let slices = slices.map(|slice| &slice[first * width..][..out.len()]);
            for (i, out) in out.iter_mut().enumerate() {
                *out = f(slices.map(|slice| slice[i]));
            }
        });
    })?;
    Tensor::from_vec(out, inputs[0].shape(), inputs[0].device())
}

/// f at each element of contiguous f32 tensors on the CPU, and at what `columns` has for its place in the last dimension.
pub(super) fn each_by_column<const N: usize>(
    inputs: [&Tensor; N],
    columns: &Tensor,
    f: impl Fn([f32; N], f32) -> f32 + Sync,
) -> Result<Tensor> {
    let (mut out, width) = (vec![0f32; inputs[0].elem_count()], columns.elem_count());
    if width == 0 || !out.len().is_multiple_of(width) {
        candle_core::bail!("{:?} has no rows of {width} columns", inputs[0].shape());
    }
    lanes::with_slices([columns], |[columns]| {
        lanes::with_slices(inputs, |slices| {
            lanes::by_rows(&mut out, width, |first, out| {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    let slices = slices.map(|slice| &slice[(first + row) * width..][..width]);
                    for (i, (out, column)) in out.iter_mut().zip(columns).enumerate() {
                        *out = f(slices.map(|slice| slice[i]), *column);
                    }
                }
            });
        })
    })??;
    Tensor::from_vec(out, inputs[0].shape(), inputs[0].device())
}

/// f's two values at each element of contiguous f32 tensors on the CPU.
pub(super) fn each_pair<const N: usize>(
    inputs: [&Tensor; N],
    f: impl Fn([f32; N]) -> (f32, f32) + Sync,
) -> Result<(Tensor, Tensor)> {
    let (mut a, mut b) = (vec![0f32; inputs[0].elem_count()], vec![0f32; inputs[0].elem_count()]);
    let width = width(a.len());
    lanes::with_slices(inputs, |slices| {
        lanes::by_rows_2(&mut a, &mut b, width, |first, a, b| {
            let slices = slices.map(|slice| &slice[first * width..][..a.len()]);
            for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
                (*a, *b) = f(slices.map(|slice| slice[i]));
            }
        });
    })?;
    let (shape, device) = (inputs[0].shape(), inputs[0].device());
    Ok((Tensor::from_vec(a, shape, device)?, Tensor::from_vec(b, shape, device)?))
}

/// Elementwise loops see their values as rows of this width: blocks large enough to share among threads.
fn width(elements: usize) -> usize {
    elements.clamp(1, 1024)
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Kernel, THREADS, are_read, card, in_chunks, room, room_like};

    const TEXT: &str = concat!(include_str!("numbers.cu"), include_str!("elementwise.cu"));
    static ELEMENTWISE: Kernel = Kernel::new("elementwise", TEXT);
    static CAST: Kernel = Kernel::new("cast", TEXT);

    /// Values of a block of casts: a thread takes four.
    const VALUES: usize = 4 * THREADS as usize;

    pub(super) fn takes(a: &Tensor, b: &Tensor) -> bool {
        a.dims() == b.dims() && are_read(&[a, b])
    }

    #[allow(unsafe_code)]
    pub(super) fn combine(a: &Tensor, b: &Tensor, product: bool) -> Result<Tensor> {
        let (y, n) = (room_like(a)?, a.elem_count());
        let [of_a, of_b, of_y] = [a, b, &y].map(Argument::of);
        let arguments =
            [of_a?, of_b?, of_y?, Argument::count(n), Argument::count(usize::from(product)), Argument::half(a)];
        // SAFETY: the signature of elementwise: all three have n values of one type, as `takes` has seen; y is new.
        unsafe { ELEMENTWISE.launch(card(a)?, n.div_ceil(in_chunks(a)), &arguments)? };
        Ok(y)
    }

    #[allow(unsafe_code)]
    pub(super) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
        let (y, n) = (room(x.shape(), dtype, x.device())?, x.elem_count());
        let arguments =
            [Argument::of(x)?, Argument::of(&y)?, Argument::count(n), Argument::half(x), Argument::half(&y)];
        // SAFETY: the signature of cast: both have n values, of types that are read, as the caller has seen; y is new.
        unsafe { CAST.launch(card(x)?, n.div_ceil(VALUES), &arguments)? };
        Ok(y)
    }
}
