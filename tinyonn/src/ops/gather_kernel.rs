//! Columns and rows that an index names, and learners' rows on their way to a gradient, on a GPU, a launch each.

use candle_core::{DType, Result, Tensor};

use super::kernel::{Argument, Grid, Kernel, THREADS, are_read, card, is_read, room};

static KERNELS: Kernel = Kernel::new("gather", concat!(include_str!("numbers.cu"), include_str!("gather.cu")));

/// Whether [`columns`] reads these.
pub(super) fn takes(values_tn: &Tensor, index_m: &Tensor) -> bool {
    let index = index_m.device().is_cuda() && index_m.dtype() == DType::U32 && index_m.is_contiguous();
    is_read(values_tn) && index && values_tn.elem_count() > 0 && index_m.elem_count() > 0
}

/// Column j `[t, m]` is column `index_m[j]` of `values_tn`, or zeros where that is beyond the last.
#[allow(unsafe_code)]
pub(super) fn columns(values_tn: &Tensor, index_m: &Tensor) -> Result<Tensor> {
    let ((t, n), m) = (values_tn.dims2()?, index_m.dims1()?);
    let out = room((t, m), values_tn.dtype(), values_tn.device())?;
    let [n, m] = [n, m].map(Argument::count);
    let all = [Argument::of(values_tn)?, Argument::of(index_m)?, Argument::of(&out)?, n, m, Argument::half(values_tn)];
    let grid = Grid { blocks: (t, 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of columns: values [t, n] of a type that is read and an index [m], as `takes` has seen, and new columns of that type.
    unsafe { KERNELS.launch_function("columns", card(values_tn)?, &grid, &all)? };
    Ok(out)
}

/// Row j `[i, d]` is row `index_i[j]` of `first` and, behind those, of `more`.
///
/// # Errors
/// Shapes or types that do not go together.
pub(super) fn rows_of([first, more]: [&Tensor; 2], index_i: &Tensor) -> Result<Tensor> {
    let out = room((index_i.dims1()?, first.dim(1)?), first.dtype(), first.device())?;
    rows_to_places([first, more], index_i, (&out, false))?;
    Ok(out)
}

/// Puts rows `[m, d]`, those of `more` behind those of `first`, where `place_i` says into `out` `[i, d]`, zeros elsewhere, or adds them.
///
/// # Errors
/// Shapes or types that do not go together.
#[allow(unsafe_code)]
pub(super) fn rows_to_places(
    [first, more]: [&Tensor; 2],
    place_i: &Tensor,
    (out_id, add): (&Tensor, bool),
) -> Result<()> {
    let ((m, d), (i, width), rest) = (first.dims2()?, out_id.dims2()?, more.dim(0)?);
    let places = place_i.dims() == [i] && place_i.dtype() == DType::U32 && place_i.is_contiguous();
    if width != d || more.dims() != [rest, d] || !places || !are_read(&[first, more]) || !is_read(out_id) {
        candle_core::bail!("rows {first:?} and {more:?} at {place_i:?} of {out_id:?}");
    }
    let all = [
        Argument::of(first)?,
        Argument::of(more)?,
        Argument::of(place_i)?,
        Argument::of(out_id)?,
        Argument::count(m),
        Argument::count(m + rest),
        Argument::count(d),
        Argument::half(first),
        Argument::half(out_id),
        Argument::count(usize::from(add)),
    ];
    let grid = Grid { blocks: (i, 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of rows_to_places: rows and gradients of types that are read and a place of each of the i rows, as was just seen; no other
    // reference to the gradients is used, and every block writes a row of its own.
    unsafe { KERNELS.launch_function("rows_to_places", card(out_id)?, &grid, &all) }
}
