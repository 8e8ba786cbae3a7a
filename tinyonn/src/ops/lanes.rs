//! Fused f32 loops on the CPU: which tensors they take, how rows are shared among threads, and functions that vectorise.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

/// Rows a task of the pool handles at once. A constant, so that sums over rows do not depend on the number of threads.
pub(super) const ROW_BLOCK: usize = 64;

/// Elementwise loops see their values as rows of this width.
pub(super) const WIDTH: usize = 256;

/// True if every tensor is f32 in main memory, the case the fused loops are written for.
pub(super) fn fused(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// Runs `f` on the values of `N` contiguous f32 tensors in main memory.
pub(super) fn with_slices<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    with_all_slices(&tensors, |slices| {
        let mut all = [&[] as &[f32]; N];
        all.copy_from_slice(slices);
        f(all)
    })
}

/// As [`with_slices`], of any number of tensors.
pub(super) fn with_all_slices<R>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices: Vec<&[f32]> = Vec::with_capacity(tensors.len());
    for (guard, layout) in &guards {
        let (Storage::Cpu(storage), Some((start, end))) = (&**guard, layout.contiguous_offsets()) else {
            candle_core::bail!("a fused loop needs contiguous tensors in main memory")
        };
        slices.push(&storage.as_slice::<f32>()?[start..end]);
    }
    Ok(f(&slices))
}

/// Runs `f` on the values of a contiguous u32 tensor in main memory: ids, targets, the experts of neurons.
pub(super) fn with_ids<R>(ids: &Tensor, f: impl FnOnce(&[u32]) -> R) -> Result<R> {
    with_values(ids, f)
}

/// Runs `f` on the values of a contiguous tensor in main memory.
pub(super) fn with_values<T: candle_core::WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a loop over values needs a contiguous tensor in main memory")
    };
    Ok(f(&storage.as_slice::<T>()?[start..end]))
}

/// Runs `f` on the values of a contiguous f32 tensor in main memory, to change them where they lie.
pub(super) fn change<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let change = Change { f: Cell::new(Some(f)), outcome: Cell::new(None) };
    tensor.inplace_op1(&change)?;
    change.outcome.take().ok_or_else(|| candle_core::Error::msg("nothing was changed"))
}

struct Change<F, R> {
    f: Cell<Option<F>>,
    outcome: Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Change<F, R> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("only contiguous f32 values are changed where they lie")
        };
        self.outcome.set(self.f.take().map(|f| f(&mut values[start..end])));
        Ok(())
    }
}

/// Runs `f` with the widest vector instructions the machine has; loops inlined into it are vectorised with them.
#[inline(always)]
pub(super) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `f(first row, rows of each output)` over blocks of [`ROW_BLOCK`] rows, in parallel, vectorised.
pub(super) fn by_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    out.par_chunks_mut(ROW_BLOCK * width.max(1))
        .enumerate()
        .for_each(|(block, out)| vectorised(|| f(block * ROW_BLOCK, out)));
}

/// As [`by_rows`] with two outputs of the same width.
pub(super) fn by_rows_2(a: &mut [f32], b: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
    let chunk = ROW_BLOCK * width.max(1);
    a.par_chunks_mut(chunk)
        .zip(b.par_chunks_mut(chunk))
        .enumerate()
        .for_each(|(block, (a, b))| vectorised(|| f(block * ROW_BLOCK, a, b)));
}

/// eˣ to 2 units in the last place on [−87.3, 88.3], clamped outside; branch-free, so loops over it vectorise.
/// (Cody and Waite's reduction by ln 2 in two parts; the degree-6 polynomial of the Cephes library.)
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer held in the low mantissa bits
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// ln(1 + x) for x ≥ 0, to 2 units in the last place; branch-free, so loops over it vectorise.
/// (The logarithm of the Cephes library, of 1 + x = m 2ᵉ with m in [√½, √2), and what 1 + x lost to rounding.)
#[inline(always)]
pub(super) fn ln_1p(x: f32) -> f32 {
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let y = 1.0 + x;
    let lost = (x - (y - 1.0)) / y;
    let bits = y.to_bits().wrapping_sub(ROOT_HALF);
    let e = (bits.cast_signed() >> 23) as f32;
    let f = f32::from_bits((bits & 0x007f_ffff) + ROOT_HALF) - 1.0;
    let p = 7.037_683_6e-2;
    let p = p * f - 1.151_461e-1;
    let p = p * f + 1.167_699_9e-1;
    let p = p * f - 1.242_014_1e-1;
    let p = p * f + 1.424_932_3e-1;
    let p = p * f - 1.666_805_8e-1;
    let p = p * f + 2.000_071_5e-1;
    let p = p * f - 2.499_999_4e-1;
    let p = p * f + 3.333_333e-1;
    let r = p * f * f * f - e * 2.121_944_4e-4 - 0.5 * f * f;
    f + r + e * 0.693_359_4 + lost
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// erf(x) to 5e-7, exactly odd, within [−1, 1]; branch-free, so loops over it vectorise.
/// (The rational approximation of Eigen's library on [−4, 4], where f32 has 1 beyond.)
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let p = -2.726_142_3e-10;
    let p = p * x2 + 2.770_681_4e-8;
    let p = p * x2 - 2.101_024e-6;
    let p = p * x2 - 5.692_506_4e-5;
    let p = p * x2 - 7.349_906_3e-4;
    let p = p * x2 - 2.954_6e-3;
    let p = p * x2 - 1.609_603_3e-2;
    let q = -1.456_607_18e-5;
    let q = q * x2 - 2.133_740_5e-4;
    let q = q * x2 - 1.682_827e-3;
    let q = q * x2 - 7.373_329_2e-3;
    let q = q * x2 - 1.426_473_9e-2;
    (x * p / q).clamp(-1.0, 1.0)
}

/// Σ a·b, in eight partial sums so that it vectorises; the order is fixed, so equal inputs give equal bits.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (a, b) in a16.iter().zip(b16) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let tail: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let error = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(error < 2.4e-7, "exp({x}) is off by {error}"); // two units in the last place of f32
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 2e-38 && exp(1e9).is_finite());
    }

    #[test]
    fn ln_1p_is_ln_1p() {
        for i in -3800..380 {
            let x = 1.01f64.powi(i) as f32;
            let error = (f64::from(ln_1p(x)) / f64::from(x).ln_1p() - 1.0).abs();
            assert!(error < 2.4e-7, "ln_1p({x}) is off by {error}"); // two units in the last place of f32
        }
        assert_eq!(ln_1p(0.0), 0.0);
        assert!(ln_1p(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_erf() {
        for i in -60_000..60_000 {
            let x = i as f32 / 10_000.0;
            let error = (f64::from(erf(x)) - candle_core::cpu::erf::erf_f64(f64::from(x))).abs();
            assert!(error < 5e-7, "erf({x}) is off by {error}"); // eight units in the last place of 1
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!([erf(0.0), erf(1e9), erf(-1e9)], [0.0, 1.0, -1.0]);
    }

    #[test]
    fn dot_is_a_sum_of_products() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}
