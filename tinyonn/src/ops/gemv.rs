//! Products of a few rows with matrices, as decoding makes them: what they cost is that every matrix is read, once for all rows (`gemv.cu`, `weighted_rows.cu`).
//!
//! Legend: b rows, eight at most, d inputs, m outputs, i neurons, n experts. x̂ = norm(x), where a norm is given.
//! *project*: y = x̂ Wᵀ + b of one to three matrices side by side, `[b, Σ m]`, added to a residual where there is one.
//! *glu*: h = h(W_g x̂, W_u x̂) ⊙ w, `[b, i]` in f32, w `[b, n]` the gate of each neuron's expert: of experts that no row takes nothing is read.
//! *chosen*: the same of neurons that choose themselves ([`chosen_neurons`](super::chosen_neurons)): W_g is read of all that stand for choice, W_u of the chosen. Where W_g reads a part
//! of x it lies by channels, whose lines are weighted rows.
//! *weighted rows*: y = residual + Σ_i h_i W_i (+ b), of W = W_d `[i, d]`; lines whose weights are all 0 are not read.
//!
//! Sums are in f32, of one order, so that the bits are the same in every run; what plain operations would store in bf16 is rounded to it. In a workspace's first step
//! everything is made that the later ones only write to: nothing is allocated then, and nothing read by the host, so that a graph can hold them.

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Device, Result, Tensor};

use super::kernel::{Argument, Grid, Kernel, THREADS, attribute, card, is_read};
use super::{Activation, ByChannel, MlpWeights, NeuronChoice, ReadInputs, Workspace};

static IN_BF16: Kernel = Kernel::overlapping(
    "gemv_bf16",
    concat!(
        "#define KEPT_IN_BF16 true\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("open_neurons.cu"),
        include_str!("row_products.cu"),
        include_str!("gemv.cu")
    ),
);
static IN_F32: Kernel = Kernel::overlapping(
    "gemv_f32",
    concat!(
        "#define KEPT_IN_BF16 false\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("open_neurons.cu"),
        include_str!("row_products.cu"),
        include_str!("gemv.cu")
    ),
);
static WEIGHTED_IN_BF16: Kernel = Kernel::overlapping(
    "weighted_rows_bf16",
    concat!(
        "#define KEPT_IN_BF16 true\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("weighted_rows.cu")
    ),
);
static WEIGHTED_IN_F32: Kernel = Kernel::overlapping(
    "weighted_rows_f32",
    concat!(
        "#define KEPT_IN_BF16 false\n",
        include_str!("numbers.cu"),
        include_str!("overlap.cu"),
        include_str!("weighted_rows.cu")
    ),
);
static BEST: Kernel = Kernel::overlapping(
    "best_neurons",
    concat!(include_str!("numbers.cu"), include_str!("overlap.cu"), include_str!("best_neurons.cu")),
);

/// Rows that the kernels take at most.
pub(crate) const MOST_ROWS: usize = 8;
/// Warps of a block, and blocks a multiprocessor.
const WARPS: usize = THREADS as usize / 32;
const BLOCKS: usize = 2;
/// Bytes between rows of x, where tensor cores read them.
const APART: usize = 64;
/// Chunks of sixteen bytes of a tile of weighted rows.
const LANES: usize = 16;
/// Bytes of shared memory that a block asks for at most.
const MOST_BYTES: usize = 160 << 10;

/// x `[b, d]`, and the weight and ε of the norm that it goes through, if it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normed<'a> {
    pub(crate) x_bd: &'a Tensor,
    pub(crate) norm: Option<(&'a Tensor, f64)>,
}

/// The gates of experts `[b, n]`, and each neuron's expert `[i]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gates<'a> {
    pub(crate) gate_bn: &'a Tensor,
    pub(crate) neuron_expert: &'a Tensor,
}

/// How a projection is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// In x's type.
    Same,
    /// In f32, rounded to x's type.
    Rounded,
    /// In f32, as it was summed.
    Wide,
}

/// Whether the kernels read rows like x and such matrices.
pub(crate) fn takes(x_bd: &Tensor, matrices: &[&Tensor]) -> Result<bool> {
    let (b, d) = x_bd.dims2()?;
    let size = x_bd.dtype().size_in_bytes();
    let fits = (1..=MOST_ROWS).contains(&b) && (d * size).is_multiple_of(16) && held_bytes(x_bd)? <= MOST_BYTES;
    let read = |tensor: &&Tensor| is_read(tensor) && tensor.dtype() == x_bd.dtype();
    Ok(fits && is_read(x_bd) && matrices.iter().all(read))
}

/// Whether the kernels know it.
pub(crate) fn knows(activation: &dyn Activation) -> bool {
    activation.is_silu() || activation.is_gelu()
}

/// Whether they read x and a gated linear unit of so many neurons, of which a block keeps which are open.
pub(crate) fn takes_neurons(x_bd: &Tensor, weights: MlpWeights<'_>) -> Result<bool> {
    // No more experts than neurons.
    let neurons = weights.gate.dim(0)?;
    let read = knows(weights.activation) && takes(x_bd, &[weights.gate, weights.up, weights.down])?;
    Ok(read && held_bytes(x_bd)? + kept_bytes(neurons, neurons) <= MOST_BYTES)
}

/// y of `matrices`, each with its bias, in a tensor of the workspace.
#[allow(unsafe_code)]
pub(crate) fn project(
    of: Normed<'_>,
    matrices: &[(&Tensor, Option<&Tensor>)],
    residual_bm: Option<&Tensor>,
    stored: Stored,
    workspace: &mut Workspace,
) -> Result<Tensor> {
    let ((b, d), mut all) = (of.x_bd.dims2()?, 0);
    let (mut places, mut biases, mut outputs) = ([Argument::NOTHING; 3], [Argument::NOTHING; 3], [0; 3]);
    for (at, (matrix_md, bias_m)) in matrices.iter().enumerate() {
        let (m, inputs) = matrix_md.dims2()?;
        if at > 2
            || inputs != d
            || !takes(of.x_bd, &[matrix_md])?
            || bias_m.is_some_and(|bias| !alike(bias, m, of.x_bd))
        {
            candle_core::bail!("gemv: matrices {matrices:?} of x {:?}", of.x_bd.shape());
        }
        (places[at], outputs[at]) = (Argument::of(matrix_md)?, m);
        biases[at] = optional(*bias_m)?;
        all += m;
    }
    if residual_bm.is_some_and(|residual| residual.dims() != [b, all] || !alike(residual, b * all, of.x_bd)) {
        candle_core::bail!("gemv: residual {residual_bm:?} of {b} rows and {all} outputs");
    }
    let dtype = if stored == Stored::Same { of.x_bd.dtype() } else { DType::F32 };
    let y_bm = workspace.take(&[b, all], dtype, of.x_bd.device())?;
    let wide = Argument::Count(u64::from(stored == Stored::Wide));
    let last = [optional(residual_bm)?, Argument::of(&y_bm)?, Argument::half(&y_bm), wide];
    let arguments = [&of.arguments()?[..], &places, &biases, &outputs.map(Argument::count), &last].concat();
    // SAFETY: the signature of project: x, its norm, and matrices and biases of x's type, as `takes` and `alike` have seen; the residual and y have a value of every row and
    // output, and y is the workspace's, which nobody reads before it is written.
    unsafe { of.launch("project", all, 0, &arguments)? };
    Ok(y_bm)
}

/// h `[b, i]` in f32.
#[allow(unsafe_code)]
pub(crate) fn glu(
    of: Normed<'_>,
    weights: MlpWeights<'_>,
    gates: Option<Gates<'_>>,
    workspace: &mut Workspace,
) -> Result<Tensor> {
    let neurons = of.neurons(&[weights.gate, weights.up], weights.activation)?;
    let h_bi = workspace.take(&[of.x_bd.dim(0)?, neurons], DType::F32, of.x_bd.device())?;
    let matrices = [Argument::of(weights.gate)?, Argument::of(weights.up)?];
    let last = [Argument::count(neurons), gelu(weights.activation), Argument::of(&h_bi)?];
    let arguments = [&of.arguments()?[..], &matrices, &of.gates(gates, neurons)?, &last].concat();
    let experts = gates.map(|gates| gates.gate_bn.dim(1)).transpose()?;
    let (function, kept) = experts.map_or(("glu", 0), |experts| ("gated_glu", kept_bytes(neurons, experts)));
    // SAFETY: the signature of glu: x and its norm, W_g and W_u of x's type and [i, d], gates [b, n] with an expert below n of every neuron, and h, which is the
    // workspace's.
    unsafe { of.launch(function, neurons, kept, &arguments)? };
    Ok(h_bi)
}

/// h `[b, i]` in f32 of the neurons that each row takes.
#[allow(unsafe_code)]
pub(crate) fn chosen(
    of: Normed<'_>,
    weights: MlpWeights<'_>,
    gates: Option<Gates<'_>>,
    choice: NeuronChoice<'_>,
    workspace: &mut Workspace,
) -> Result<Tensor> {
    let NeuronChoice::Gate { mean_up_i, worth_i, candidates_i, take, least_hidden, inputs } = choice else {
        candle_core::bail!("gemv: neurons that are fixed do not choose themselves")
    };
    let neurons = of.neurons(&[weights.gate, weights.up], weights.activation)?;
    let (b, device) = (of.x_bd.dim(0)?, of.x_bd.device());
    let in_f32 = [Some(mean_up_i), Some(worth_i), candidates_i];
    if in_f32.into_iter().flatten().any(|x| x.elem_count() != neurons || x.dtype() != DType::F32 || !x.is_contiguous())
    {
        candle_core::bail!("gemv: {choice:?} of {neurons} neurons");
    }
    let mut values = || workspace.take(&[b, neurons], DType::F32, device);
    let [g_bi, scores_bi, taken_bi, h_bi] = [values()?, values()?, values()?, values()?];
    let [g, scores, taken, h] = [&g_bi, &scores_bi, &taken_bi, &h_bi].map(Argument::of);
    let (g, scores, taken, gelu, count) = (g?, scores?, taken?, gelu(weights.activation), Argument::count(neurons));
    let by = [
        optional(candidates_i)?,
        Argument::of(mean_up_i)?,
        Argument::of(worth_i)?,
        Argument::Number(take.least_score.max(0.0)),
    ];
    if let Some(inputs) = inputs {
        if gates.is_some() {
            candle_core::bail!("gemv: W_g reads all of x where experts were chosen");
        }
        let (values_bc, place) = of.read_by_channel(inputs, neurons, workspace)?;
        let first = [Argument::of(&values_bc)?, place, Argument::count(values_bc.dim(1)?)];
        let arguments = [&first[..], &by[1..], &[count, gelu, g, scores, taken]].concat();
        let grid = Grid { blocks: (neurons.div_ceil(THREADS as usize), b), threads: THREADS, shared_bytes: 0 };
        // SAFETY: the signature of scores_of: gate values of every row in x's type, the place of every neuron among them, and as below.
        unsafe { of.kernel().launch_function("scores_of", card(of.x_bd)?, &grid, &arguments)? };
    } else {
        let first = [&of.arguments()?[..], &[Argument::of(weights.gate)?], &of.gates(gates, neurons)?].concat();
        let arguments = [&first[..], &by, &[count, gelu, g, scores, taken]].concat();
        let experts = gates.map(|gates| gates.gate_bn.dim(1)).transpose()?.or(candidates_i.map(|_| 0));
        let (function, kept) = experts.map_or(("scores", 0), |experts| ("gated_scores", kept_bytes(neurons, experts)));
        // SAFETY: the signature of scores, as above; what scores are made of has a value of every neuron in f32, g, scores and taken of every row and neuron.
        unsafe { of.launch(function, neurons, kept, &arguments)? };
    }
    if take.most < neurons {
        let grid = Grid { blocks: (b, 1), threads: 1024, shared_bytes: 4 * neurons as u32 };
        let arguments = [scores, taken, count, Argument::count(take.most)];
        // SAFETY: the signature of best_neurons: scores and taken of b rows of i neurons; the shared memory holds a number of each.
        unsafe { BEST.launch_function("best_neurons", card(of.x_bd)?, &grid, &arguments)? };
    }
    let least_hidden = [Argument::of(worth_i)?, Argument::Number(least_hidden.max(0.0))];
    let last = [Argument::of(weights.up)?, g, taken];
    let arguments = [&of.arguments()?[..], &last, &least_hidden, &[count, gelu, h?]].concat();
    // SAFETY: the signature of up, as above.
    unsafe { of.launch("up", neurons, open_bytes(neurons), &arguments)? };
    Ok(h_bi)
}

/// y `[b, d]` of h `[b, i]` in f32; `skips` where many weights are zeros.
#[allow(unsafe_code)]
pub(crate) fn weighted_rows(
    h_bi: &Tensor,
    w_id: &Tensor,
    residual_bd: Option<&Tensor>,
    bias_d: Option<&Tensor>,
    skips: bool,
    workspace: &mut Workspace,
) -> Result<Tensor> {
    let ((b, lines), (i, d)) = (h_bi.dims2()?, w_id.dims2()?);
    let beside = [(residual_bd, b * d), (bias_d, d)];
    let fits = is_read(w_id)
        && (1..=MOST_ROWS).contains(&b)
        && (d * w_id.dtype().size_in_bytes()).is_multiple_of(16)
        && beside.into_iter().all(|(tensor, count)| tensor.is_none_or(|tensor| alike(tensor, count, w_id)));
    if lines != i || h_bi.dtype() != DType::F32 || !h_bi.is_contiguous() || !fits {
        candle_core::bail!("weighted_rows: h {:?}, W {:?}, residual {residual_bd:?}", h_bi.shape(), w_id.shape());
    }
    let (device, half) = (w_id.device(), w_id.dtype() == DType::BF16);
    let tiles = d.div_ceil(LANES * 16 / w_id.dtype().size_in_bytes());
    // No more spans than lines.
    let spans = (BLOCKS * multiprocessors(device)?).div_ceil(tiles).clamp(1, lines);
    let span = lines.div_ceil(spans);
    let parts = workspace.take(&[spans, b, d], DType::F32, device)?;
    let arrived = workspace.take(&[tiles], DType::U32, device)?;
    let y_bd = workspace.take(&[b, d], w_id.dtype(), device)?;
    let tensors = [Argument::of(h_bi)?, Argument::of(w_id)?, optional(residual_bd)?, optional(bias_d)?];
    let room = [&parts, &arrived, &y_bd].map(Argument::of).into_iter().collect::<Result<Vec<_>>>()?;
    let numbers = [b, lines, d].map(Argument::count);
    let rows = b.next_power_of_two();
    let grid = Grid { blocks: (spans, tiles), threads: THREADS, shared_bytes: (4 * (rows + 1) * span) as u32 };
    let kernel = if half { &WEIGHTED_IN_BF16 } else { &WEIGHTED_IN_F32 };
    let arguments = [&tensors[..], &room, &numbers].concat();
    let function = format!("{}weighted_rows_{rows}", if skips { "few_" } else { "" });
    // SAFETY: the signature of weighted_rows; W and the residual are of one type and of shapes that were compared, parts hold the sums of every span, the counts of
    // arrivals are zeros at first and left as such; the shared memory holds a span's weights of every row, and which of its lines take part.
    unsafe { kernel.launch_function(&function, card(w_id)?, &grid, &arguments)? };
    Ok(y_bd)
}

impl Normed<'_> {
    /// x, its norm, ε, b and d: what every function begins with.
    pub(super) fn arguments(&self) -> Result<[Argument; 5]> {
        let (b, d) = self.x_bd.dims2()?;
        if self.norm.is_some_and(|(weight, _)| !alike(weight, d, self.x_bd)) {
            candle_core::bail!("gemv: a norm {:?} of x {:?}", self.norm, self.x_bd.shape());
        }
        let eps = self.norm.map_or(0.0, |(_, eps)| eps as f32);
        let norm = optional(self.norm.map(|(weight, _)| weight))?;
        Ok([Argument::of(self.x_bd)?, norm, Argument::Number(eps), Argument::count(b), Argument::count(d)])
    }

    /// How many neurons these matrices have.
    fn neurons(&self, matrices: &[&Tensor], activation: &dyn Activation) -> Result<usize> {
        let (d, i) = (self.x_bd.dim(1)?, matrices[0].dim(0)?);
        let fits = matrices.iter().all(|matrix| matrix.dims() == [i, d]);
        if !fits || !takes(self.x_bd, matrices)? || !knows(activation) || 4 * i > MOST_BYTES {
            candle_core::bail!("gemv: {activation:?} of matrices {matrices:?} and x {:?}", self.x_bd.shape());
        }
        Ok(i)
    }

    /// g `[b, c]` of the candidates, of the channels that each row reads, lines of W_gᵀ; and where each neuron stands among them.
    #[allow(unsafe_code)]
    fn read_by_channel(
        &self,
        inputs: ReadInputs<'_>,
        neurons: usize,
        workspace: &mut Workspace,
    ) -> Result<(Tensor, Argument)> {
        let (b, d) = self.x_bd.dims2()?;
        let Some(ByChannel { gate_dc, place_i }) = inputs.by_channel else {
            candle_core::bail!("gemv: W_g is not laid out by channels")
        };
        let placed = place_i.map_or(gate_dc.dim(1)? >= neurons, |place_i| {
            place_i.dims() == [neurons] && place_i.dtype() == DType::U32 && place_i.is_contiguous()
        });
        let sized = inputs.size_d.elem_count() == d && inputs.size_d.dtype() == DType::F32;
        if !placed || !sized || !inputs.size_d.is_contiguous() || gate_dc.dtype() != self.x_bd.dtype() {
            candle_core::bail!("gemv: channels {inputs:?} of {neurons} neurons");
        }
        let read_bd = workspace.take(&[b, d], DType::F32, self.x_bd.device())?;
        let [x, norm, eps, _, width] = self.arguments()?;
        let least = Argument::Number(inputs.least);
        let arguments = [x, norm, eps, width, Argument::of(inputs.size_d)?, least, Argument::of(&read_bd)?];
        let grid = Grid { blocks: (b, 1), threads: THREADS, shared_bytes: 0 };
        // SAFETY: the signature of read_channels: x and its norm, a size of every channel in f32, and room for every row.
        unsafe { self.kernel().launch_function("read_channels", card(self.x_bd)?, &grid, &arguments)? };
        let values_bc = weighted_rows(&read_bd, gate_dc, None, None, true, workspace)?;
        Ok((values_bc, optional(place_i)?))
    }

    /// Gates, owners, and how many experts there are.
    fn gates(&self, gates: Option<Gates<'_>>, neurons: usize) -> Result<[Argument; 3]> {
        let Some(Gates { gate_bn, neuron_expert }) = gates else {
            return Ok([Argument::NOTHING, Argument::NOTHING, Argument::Count(0)]);
        };
        let (b, experts) = gate_bn.dims2()?;
        let owned =
            neuron_expert.dims() == [neurons] && neuron_expert.dtype() == DType::U32 && neuron_expert.is_contiguous();
        // An owner is sixteen bits, of which the highest number stands for none.
        if b != self.x_bd.dim(0)?
            || !owned
            || experts >= usize::from(u16::MAX)
            || !alike(gate_bn, b * experts, self.x_bd)
        {
            candle_core::bail!("gemv: gates {:?} of {neurons} neurons", gate_bn.shape());
        }
        Ok([Argument::of(gate_bn)?, Argument::of(neuron_expert)?, Argument::count(experts)])
    }

    /// # Safety
    /// As of [`Kernel::launch_function`].
    // SAFETY: it does nothing but launch; the caller vouches for the arguments.
    #[allow(unsafe_code)]
    unsafe fn launch(&self, function: &str, outputs: usize, behind_bytes: usize, arguments: &[Argument]) -> Result<()> {
        let blocks = blocks(outputs, self.x_bd.device())?;
        let b = self.x_bd.dim(0)?;
        let function = format!("{function}_{}", if b > 2 { MOST_ROWS } else { b });
        let shared_bytes = (held_bytes(self.x_bd)? + behind_bytes) as u32;
        let grid = Grid { blocks: (blocks, 1), threads: THREADS, shared_bytes };
        // SAFETY: the caller vouches for the arguments; the shared memory holds x and what the function keeps behind it.
        unsafe { self.kernel().launch_function(&function, card(self.x_bd)?, &grid, arguments) }
    }

    fn kernel(&self) -> &'static Kernel {
        if self.x_bd.dtype() == DType::BF16 { &IN_BF16 } else { &IN_F32 }
    }
}

/// Blocks of a launch with a warp an output: all lie on the card at once, beside those of another launch.
pub(super) fn blocks(outputs: usize, device: &Device) -> Result<usize> {
    Ok(outputs.div_ceil(WARPS).min(BLOCKS * multiprocessors(device)?))
}

/// Bytes that a block holds of x: rows are kept apart by a few chunks where tensor cores read them.
pub(super) fn held_bytes(x_bd: &Tensor) -> Result<usize> {
    let (b, d) = x_bd.dims2()?;
    Ok(b * (d * x_bd.dtype().size_in_bytes() + APART))
}

/// Bytes of which neurons are open: a bit of each, and how many stand before every 32.
fn open_bytes(neurons: usize) -> usize {
    neurons.div_ceil(32) * (4 + 4)
}

/// Bytes that a block keeps of neurons some of which may not be open: besides that sixteen bits of each for its owner, and a mark of every expert.
fn kept_bytes(neurons: usize, experts: usize) -> usize {
    open_bytes(neurons) + neurons.next_multiple_of(32) * 2 + experts.max(1)
}

fn gelu(activation: &dyn Activation) -> Argument {
    Argument::Count(u64::from(activation.is_gelu()))
}

/// Whether it has so many values, of that type, one behind the other.
fn alike(tensor: &Tensor, count: usize, to: &Tensor) -> bool {
    tensor.elem_count() == count
        && tensor.dtype() == to.dtype()
        && tensor.device().same_device(to.device())
        && tensor.is_contiguous()
}

fn optional(tensor: Option<&Tensor>) -> Result<Argument> {
    tensor.map_or(Ok(Argument::NOTHING), Argument::of)
}

fn multiprocessors(device: &Device) -> Result<usize> {
    let Device::Cuda(device) = device else { candle_core::bail!("gemv: {device:?} is no card") };
    attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
}
