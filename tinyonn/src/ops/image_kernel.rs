//! What imaging and Surprise Min-K sum over tokens, on a GPU, for surprise at the weights; formulas stand in [`neuron_moments`](super::neuron_moments)
//! and [`min_k`](super::min_k). Values are read once, or twice where experts are summed too; nothing of their size is written.
//!
//! Legend: t tokens, d hidden, i neurons, n experts.

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor};

use super::expert_neurons::{ExpertNeurons, NeuronLists};
use super::grad_site::GradSite;
use super::image_sums::ImageTensors;
use super::kernel::{Argument, Grid, Kernel, THREADS, are_read, attribute, card, is_read, room};
use super::mlp_values::MlpBackward;
use super::neuron_moments::{Imaging, Log1pScale};

static KERNELS: Kernel = Kernel::new("image_sums", concat!(include_str!("numbers.cu"), include_str!("image_sums.cu")));

/// Tokens of a block, by the name that they have in the kernels' text.
const SPAN: usize = 64;
/// Threads of a block that sums neurons, of which each takes four.
const SUMMING: u32 = 128;

/// A pass as the kernels read it: h under its gates, and ‖δ_y‖² and ‖x‖² of every token.
struct Pass<'a> {
    h_ti: &'a Tensor,
    seen: &'a MlpBackward<'a>,
    counted_t: Option<&'a Tensor>,
    y2_t: Tensor,
    x2_t: Tensor,
}

/// Whether the kernels read this pass, whose gated h is `h_ti`; and the experts, where some are summed.
///
/// # Errors
/// What the driver reports.
pub(super) fn takes(h_ti: &Tensor, seen: &MlpBackward<'_>, imaging: &Imaging<'_>) -> Result<bool> {
    let values = [h_ti, seen.delta_h_ti, seen.delta_g_ti, seen.delta_u_ti];
    let alike = values.iter().all(|values| values.dims() == h_ti.dims());
    let rows = is_read(seen.x_td) && is_read(seen.delta_y_td);
    if imaging.site != GradSite::Weight || !alike || !rows || !are_read(&values) || h_ti.elem_count() == 0 {
        return Ok(false);
    }
    let of_block = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(imaging.experts.is_none() || attribute(card(h_ti)?, of_block)? >= norms_bytes(h_ti.dim(1)?))
}

/// h² and S² of a token.
fn norms_bytes(width: usize) -> usize {
    2 * 4 * width
}

/// Σ S² of every neuron over the counted tokens, `[i]` f64.
///
/// # Errors
/// What the driver reports.
pub(super) fn surprise_squares(h_ti: &Tensor, seen: &MlpBackward<'_>, counted_t: Option<&Tensor>) -> Result<Tensor> {
    Pass::new(h_ti, seen, counted_t)?.neurons("neuron_squares", 1, None)?.squeeze(0)
}

/// What `imaging` asks for.
///
/// # Errors
/// What the driver reports.
pub(super) fn moments(
    h_ti: &Tensor,
    seen: &MlpBackward<'_>,
    counted_t: &Tensor,
    imaging: &Imaging<'_>,
) -> Result<ImageTensors> {
    let pass = Pass::new(h_ti, seen, Some(counted_t))?;
    let experts = imaging.experts.map(|experts| pass.experts(experts, imaging.scale)).transpose()?;
    let split = |sums: Tensor, first: usize| {
        let rest = sums.dim(0)? - first;
        Ok::<_, candle_core::Error>((
            sums.narrow(0, 0, first)?,
            (rest > 0).then(|| sums.narrow(0, first, rest)).transpose()?,
        ))
    };
    let (function, rows) = if imaging.scale.is_some() { ("neuron_moments_log1p", 11) } else { ("neuron_moments", 7) };
    let (neurons, log1p_neurons) = split(pass.neurons(function, rows, imaging.scale)?, 7)?;
    let (experts, log1p_experts) = match experts {
        Some(sums) => split(sums, 4).map(|(experts, log1p)| (Some(experts), log1p))?,
        None => (None, None),
    };
    Ok(ImageTensors { neurons, experts, log1p_neurons, log1p_experts })
}

impl<'a> Pass<'a> {
    fn new(h_ti: &'a Tensor, seen: &'a MlpBackward<'a>, counted_t: Option<&'a Tensor>) -> Result<Self> {
        let t = h_ti.dim(0)?;
        if counted_t.is_some_and(|counted_t| counted_t.dims() != [t] || counted_t.dtype() != DType::U8) {
            candle_core::bail!("image sums: marks {counted_t:?} for {t} tokens");
        }
        let (y2_t, x2_t) = (row_squares(seen.delta_y_td)?, row_squares(seen.x_td)?);
        if y2_t.dims() != [t] || x2_t.dims() != [t] {
            candle_core::bail!(
                "image sums: x {:?}, δ_y {:?} for {t} tokens",
                seen.x_td.shape(),
                seen.delta_y_td.shape()
            );
        }
        Ok(Self { h_ti, seen, counted_t, y2_t, x2_t })
    }

    fn marks(&self) -> Result<Argument> {
        self.counted_t.map_or(Ok(Argument::NOTHING), Argument::of)
    }

    /// `rows` sums of every neuron, `[rows, i]` f64.
    #[allow(unsafe_code)]
    fn neurons(&self, function: &str, rows: usize, scale: Option<Log1pScale>) -> Result<Tensor> {
        let (t, width) = self.h_ti.dims2()?;
        let parts = room((t.div_ceil(SPAN), rows, width), DType::F32, self.h_ti.device())?;
        let seen = self.seen;
        let values = [self.h_ti, seen.delta_h_ti, seen.delta_g_ti, seen.delta_u_ti, &self.y2_t, &self.x2_t];
        let values = values.map(Argument::of).into_iter().collect::<Result<Vec<_>>>()?;
        let [a_scale, s_scale] = numbers(scale);
        let sizes = [Argument::count(t), Argument::count(width), Argument::half(self.h_ti), a_scale, s_scale];
        let all = [&values[..], &[self.marks()?, Argument::of(&parts)?], &sizes].concat();
        let blocks = (width.div_ceil(4 * SUMMING as usize), t.div_ceil(SPAN));
        let grid = Grid { blocks, threads: SUMMING, shared_bytes: 0 };
        // SAFETY: the signature of neuron_squares, neuron_moments and neuron_moments_log1p: four values [t, i] of one type that is read, as `takes` has seen, two
        // numbers and perhaps a mark of every token, and new parts of as many rows as the function writes.
        unsafe { KERNELS.launch_function(function, card(self.h_ti)?, &grid, &all)? };
        sum_of(&parts)
    }

    /// Four or, with a scale, eight sums of every expert, `[rows, n]` f64.
    #[allow(unsafe_code)]
    fn experts(&self, experts: &ExpertNeurons, scale: Option<Log1pScale>) -> Result<Tensor> {
        let ((t, width), n, device) = (self.h_ti.dims2()?, experts.count(), self.h_ti.device());
        let [order_i, starts] = experts.order_and_starts(device)?;
        let (a_tn, s_tn) = (room((t, n), DType::F32, device)?, room((t, n), DType::F32, device)?);
        let seen = self.seen;
        let values =
            [self.h_ti, seen.delta_g_ti, seen.delta_u_ti, &self.y2_t, &self.x2_t, &order_i, &starts, &a_tn, &s_tn];
        let values = values.map(Argument::of).into_iter().collect::<Result<Vec<_>>>()?;
        let sizes = [Argument::count(width), Argument::count(n), Argument::half(self.h_ti)];
        let grid = Grid { blocks: (t, 1), threads: THREADS, shared_bytes: norms_bytes(width) as u32 };
        // SAFETY: the signature of expert_norms: as above, lists of the i neurons by expert, and new norms of every token and expert.
        unsafe { KERNELS.launch_function("expert_norms", card(self.h_ti)?, &grid, &[&values[..], &sizes].concat())? };
        let (function, rows) = if scale.is_some() { ("expert_moments_log1p", 8) } else { ("expert_moments", 4) };
        let parts = room((t.div_ceil(SPAN), rows, n), DType::F32, device)?;
        let values = [Argument::of(&a_tn)?, Argument::of(&s_tn)?, Argument::of(&starts)?, self.marks()?];
        let [a_scale, s_scale] = numbers(scale);
        let sizes = [Argument::of(&parts)?, Argument::count(t), Argument::count(n), a_scale, s_scale];
        let blocks = (n.div_ceil(THREADS as usize), t.div_ceil(SPAN));
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: the signature of expert_moments and expert_moments_log1p: the norms just written, where experts begin, perhaps a mark of every token, and new
        // parts of as many rows as the function writes.
        unsafe { KERNELS.launch_function(function, card(self.h_ti)?, &grid, &[&values[..], &sizes].concat())? };
        sum_of(&parts)
    }
}

/// Sums over each expert's neurons of `[i]` f64 values that lie on a card, `[n]`.
#[allow(unsafe_code)]
pub(super) fn expert_sums(values_i: &Tensor, neurons: &NeuronLists) -> Result<Tensor> {
    let experts = neurons.starts.elem_count().saturating_sub(1);
    if values_i.dims() != neurons.order_i.dims() || values_i.dtype() != DType::F64 || !values_i.is_contiguous() {
        candle_core::bail!("expert_sums: values {values_i:?} of {} neurons", neurons.order_i.elem_count());
    }
    let out = room(experts, DType::F64, values_i.device())?;
    let tensors = [values_i, &neurons.order_i, &neurons.starts, &out].map(Argument::of);
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    let blocks = (experts.div_ceil(THREADS as usize / 32), 1);
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of expert_sums: a number of every neuron, lists of them by expert, and a new number for every expert.
    unsafe {
        KERNELS.launch_function(
            "expert_sums",
            card(values_i)?,
            &grid,
            &[&tensors[..], &[Argument::count(experts)]].concat(),
        )?;
    }
    Ok(out)
}

/// The scales of a and S; what is not asked for is not read.
fn numbers(scale: Option<Log1pScale>) -> [Argument; 2] {
    let Log1pScale { activation, surprise } = scale.unwrap_or(Log1pScale { activation: 1.0, surprise: 1.0 });
    [activation, surprise].map(|scale| Argument::Number(scale as f32))
}

/// ‖row‖² of each row, `[t]` f32.
#[allow(unsafe_code)]
fn row_squares(x_td: &Tensor) -> Result<Tensor> {
    let (t, d) = x_td.dims2()?;
    let out = room(t, DType::F32, x_td.device())?;
    let all = [Argument::of(x_td)?, Argument::of(&out)?, Argument::count(t), Argument::count(d), Argument::half(x_td)];
    let grid = Grid { blocks: (t.div_ceil(THREADS as usize / 32), 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of row_squares: values [t, d] of a type that is read, as `takes` has seen, and a new number for every row.
    unsafe { KERNELS.launch_function("row_squares", card(x_td)?, &grid, &all)? };
    Ok(out)
}

/// Parts `[spans, rows, i]` summed up, `[rows, i]` f64.
#[allow(unsafe_code)]
fn sum_of(parts: &Tensor) -> Result<Tensor> {
    let (spans, rows, width) = parts.dims3()?;
    let out = room((rows, width), DType::F64, parts.device())?;
    let count = rows * width;
    let all = [Argument::of(parts)?, Argument::of(&out)?, Argument::count(spans), Argument::count(count)];
    let grid = Grid { blocks: (count.div_ceil(THREADS as usize), 1), threads: THREADS, shared_bytes: 0 };
    // SAFETY: the signature of sum_parts: parts that a kernel has written whole, and a new sum for every column.
    unsafe { KERNELS.launch_function("sum_parts", card(parts)?, &grid, &all)? };
    Ok(out)
}
