//! All Gaussian routers of a layer at once, on a GPU: from x to the logits of every node, and back (`gaussian_routing.cu`).
//!
//! z = P x; ℓ_c = s · (−½ / r) Σ_j [(z_j − μ_cj)² / σ²_cj + log σ²_cj] + log π_c, for the choices c of all routers of a level and for all levels (DESIGN §2).
//! With G = ∂L/∂ℓ: dz = −(s / r) Σ_c G (z − μ) / σ², dμ = (s / r) Σ_t G (z − μ) / σ², d log σ² = (s / 2r) Σ_t G ((z − μ)² / σ² − 1), d log π = Σ_t G,
//! ds = Σ G (ℓ − log π) / s, dP = dzᵀ x and dx = dz P.
//!
//! x is bf16, the parameters f32. Projections are two products of bf16, rounded and with what rounding took of them, as in [`linear`](super::linear): one
//! product for all routers has both side by side. z is kept for the backward; dz is rounded to bf16, and dx is added in f32 to what is there. Forward and
//! backward together are four launches and two products, and for each router two launches and a product besides; nothing is summed by atomics.

use candle_core::{Device, Result, Tensor};

use super::Grads;
#[cfg(feature = "cuda")]
use super::{Workspace, gemv::Normed};

/// Parameters of the routers of a level, f32.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct Parameters {
    /// P `[r, d]`.
    pub projection: Tensor,
    /// μ `[p, c, r]`.
    pub mean: Tensor,
    /// log σ², `[p, c, r]` or with a 1 for choices or values that share it.
    pub log_variance: Tensor,
    /// log π `[p, c]`.
    pub log_prior: Tensor,
    /// s `[]`.
    pub scale: Tensor,
    /// Whether densities are summed over values, not averaged.
    pub sum: bool,
}

/// The routers of a layer as the kernels read them; without a GPU there are none.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::Grads;
/// use tinyonn::ops::gaussian_routing::{GaussianRouting, Parameters, Saved};
///
/// let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
/// let router = Parameters {
///     projection: zeros(&[4, 8])?, mean: zeros(&[1, 3, 4])?, log_variance: zeros(&[1, 3, 4])?, log_prior: zeros(&[1, 3])?,
///     scale: Tensor::new(1f32, &Device::Cpu)?, sum: false,
/// };
/// // By kernels on a GPU; elsewhere there is none, and every router is asked by itself.
/// if let Some(routing) = GaussianRouting::new(vec![router], &Device::Cpu)? {
///     let x_td = zeros(&[2, 8])?.to_dtype(DType::BF16)?;
///     let (logits_tn, saved): (Tensor, Saved) = routing.forward(&x_td)?.expect("x is bf16");
///     routing.backward(&saved, &x_td, &logits_tn, None, true, &mut Grads::none())?;
/// }
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct GaussianRouting {
    routers: Vec<Parameters>,
    places: Vec<Place>,
    /// Eight numbers a router, as `Router` in the kernels' text.
    table: Tensor,
    totals: Totals,
}

/// What the backward needs.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct Saved {
    /// Both parts of z side by side, `[t, 2 R]` f32.
    z: Tensor,
    /// Parameters as kernels read them.
    packed: Tensor,
    /// Projections rounded, then what rounding took, `[2 R, d]` bf16.
    projections: Tensor,
}

/// What logits of a few rows are made of.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub(super) struct OfFew {
    /// Parameters as kernels read them.
    pub(super) packed: Tensor,
    /// The matrix of both parts of z side by side, `[2 R, d]`.
    pub(super) projections: Tensor,
    /// The routers' table.
    pub(super) table: Tensor,
    /// Nodes of all routers.
    pub(super) nodes: usize,
}

/// Where a router's numbers are among those of all.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct Place {
    gaussians: usize,
    parents: usize,
    r: usize,
    /// Of z.
    column: usize,
    /// Of packed parameters: the first, and how many.
    parameters: (usize, usize),
    /// Of sums over tokens: the first, and how many.
    sums: (usize, usize),
    /// Of log σ²: Gaussians that have one row of it, values of a row, and from one value to the next.
    shared: (usize, usize, usize),
}

/// Of all routers.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct Totals {
    hidden: usize,
    nodes: usize,
    values: usize,
    parameters: usize,
    sums: usize,
    /// The widest z, and the most Gaussians and values, filled up to fours, of one router.
    widest: usize,
    columns: usize,
    /// Blocks of the sums over tokens, and their threads.
    blocks: usize,
    threads: usize,
}

/// Values of z that a block has room for.
const MOST_VALUES: usize = 256;
/// Gaussians and values of a router, for each of which a block has room.
const MOST_COLUMNS: usize = 8192;

fn in_fours(count: usize) -> usize {
    count.next_multiple_of(4)
}

impl GaussianRouting {
    /// Of the routers of all levels, in their order. `None` on another device than a GPU, and where the kernels have no room.
    ///
    /// # Errors
    /// What the device reports; parameters that do not go together.
    pub fn new(routers: Vec<Parameters>, device: &Device) -> Result<Option<Self>> {
        if !device.is_cuda() || routers.is_empty() {
            return Ok(None);
        }
        let mut places: Vec<Place> = Vec::with_capacity(routers.len());
        let mut totals = Totals {
            hidden: routers[0].projection.dim(1)?,
            nodes: 0,
            values: 0,
            parameters: 0,
            sums: 0,
            widest: 0,
            columns: 0,
            blocks: 0,
            threads: 0,
        };
        for router in &routers {
            let (parents, choices, r) = router.mean.dims3()?;
            let gaussians = parents * choices;
            let shared = match router.log_variance.dims3()? {
                own if own == (parents, choices, r) => (1, r, 1),
                own if own == (parents, 1, r) => (choices, r, 1),
                own if own == (parents, choices, 1) => (1, 1, 0),
                other => candle_core::bail!("gaussian_routing: log σ² {other:?} of means {:?}", router.mean.shape()),
            };
            if router.projection.dims() != [r, totals.hidden] || router.log_prior.dims() != [parents, choices] {
                candle_core::bail!(
                    "gaussian_routing: projections {:?} of {} values",
                    router.projection.shape(),
                    totals.hidden
                );
            }
            let (columns, width) = (in_fours(gaussians), in_fours(r));
            let (parameters, sums) = (4 * columns * width + 2 * columns + 4, in_fours(2 * gaussians * r + gaussians));
            places.push(Place {
                gaussians,
                parents,
                r,
                column: totals.values,
                parameters: (totals.parameters, parameters),
                sums: (totals.sums, sums),
                shared,
            });
            totals.nodes += gaussians;
            totals.values += r;
            totals.parameters += parameters;
            totals.sums += sums;
            totals.widest = totals.widest.max(r);
            totals.columns = totals.columns.max(columns + width);
        }
        if totals.widest > MOST_VALUES || totals.columns > MOST_COLUMNS || totals.nodes == 0 {
            return Ok(None);
        }
        // Threads of the sums over tokens take four Gaussians and four values each: as few blocks as there can be, all alike.
        let tiles = |place: &Place| place.gaussians.div_ceil(4) * place.r.div_ceil(4);
        let most = places.iter().map(tiles).max().unwrap_or(1);
        totals.threads = most.div_ceil(most.div_ceil(256)).next_multiple_of(32);
        let (mut table, mut first) = (Vec::with_capacity(8 * places.len()), 0);
        for place in &places {
            let Place { gaussians, r, column, parameters, sums, .. } = place;
            table.extend([first, *gaussians, *r, *column, parameters.0, sums.0, totals.blocks, 0].map(|x| x as u32));
            first += gaussians;
            totals.blocks += tiles(place).div_ceil(totals.threads);
        }
        let table = Tensor::from_vec(table, (places.len(), 8), device)?;
        Ok(Some(Self { routers, places, table, totals }))
    }

    /// Logits of all nodes `[t, N]` f32, of x `[t, d]` in bf16; `None` of x in another type.
    ///
    /// # Errors
    /// x of another width.
    pub fn forward(&self, x_td: &Tensor) -> Result<Option<(Tensor, Saved)>> {
        #[cfg(feature = "cuda")]
        return on_a_card::forward(self, x_td);
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("gaussian_routing: x {:?} without a GPU", x_td.shape())
    }

    /// What z and logits of a few rows are made of; `None` where the kernels do not read x or the routers.
    ///
    /// # Errors
    /// As above.
    #[cfg(feature = "cuda")]
    pub(super) fn of_few(&self, of: Normed<'_>, workspace: &mut Workspace) -> Result<Option<OfFew>> {
        on_a_card::of_few(self, of, workspace)
    }

    /// ∂L/∂x `[t, d]`, if `input`, added to `dx_td` where there is one; the gradients of the parameters that learn go to `grads`.
    ///
    /// # Errors
    /// Gradients of other logits.
    // The kernels add to it where it lies.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::needless_pass_by_value))]
    pub fn backward(
        &self,
        saved: &Saved,
        x_td: &Tensor,
        dlogits_tn: &Tensor,
        dx_td: Option<Tensor>,
        input: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        return on_a_card::backward(self, (saved, x_td), dlogits_tn, dx_td, input, grads);
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("gaussian_routing: {saved:?} {x_td:?} {dlogits_tn:?} {dx_td:?} {input} {grads:?}")
    }
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::gemv::{self, Normed};
    use super::super::kernel::{Argument, Grid, Kernel, card, is_read, room};
    use super::super::product::accumulate;
    use super::super::{Grads, Workspace};
    use super::{GaussianRouting, OfFew, Parameters, Place, Saved};

    static KERNELS: Kernel = Kernel::new(
        "gaussian_routing",
        concat!(include_str!("numbers.cu"), include_str!("gaussian_packed.cu"), include_str!("gaussian_routing.cu")),
    );

    // Sizes by the names that they have in the kernels' text, and of its blocks.
    const TOKENS: usize = 32;
    const STRIDE: usize = TOKENS + 4;
    const COLUMNS: usize = 128;
    const THREADS: usize = 256;
    const PROJECTION_VALUES: usize = 4 * THREADS;
    const PACKED_GAUSSIANS: usize = THREADS / 32;
    const TOTAL_COLUMNS: usize = 32;
    /// Parts that tokens are summed in, at most, and tokens of one, at least.
    const PARTS: usize = 128;
    const LEAST: usize = 8;
    /// Tokens whose G and z a block holds at once, at most; and bytes of them.
    const CHUNK: usize = 32;
    const CHUNK_BYTES: usize = 40 << 10;

    fn grid(blocks: (usize, usize), threads: usize, shared_bytes: usize) -> Grid {
        Grid { blocks, threads: threads as u32, shared_bytes: shared_bytes as u32 }
    }

    fn of<const N: usize>(tensors: [&Tensor; N]) -> Result<Vec<Argument>> {
        tensors.into_iter().map(Argument::of).collect()
    }

    /// What a router's density is multiplied by besides s.
    fn times(router: &Parameters, place: &Place) -> Argument {
        Argument::Number(if router.sum { place.r as f32 } else { 1.0 })
    }

    impl Parameters {
        /// All but the projection, in the order of gaussian_gradients.
        fn of_gaussians(&self) -> [&Tensor; 4] {
            [&self.mean, &self.log_variance, &self.log_prior, &self.scale]
        }
    }

    impl Place {
        fn packed(&self, all: &Tensor) -> Result<Tensor> {
            all.narrow(0, self.parameters.0, self.parameters.1)
        }

        /// Rows that log σ² has besides those of single Gaussians.
        fn shared_rows(&self) -> usize {
            if self.shared.0 > 1 { self.parents } else { 0 }
        }
    }

    /// Whether the kernels read x.
    fn reads(all: &GaussianRouting, x_td: &Tensor) -> Result<bool> {
        let (t, d) = x_td.dims2()?;
        if d != all.totals.hidden {
            candle_core::bail!("gaussian_routing: x {:?} of {} values", x_td.shape(), all.totals.hidden);
        }
        Ok(x_td.dtype() == DType::BF16 && is_read(x_td) && t > 0)
    }

    pub(super) fn forward(all: &GaussianRouting, x_td: &Tensor) -> Result<Option<(Tensor, Saved)>> {
        if !reads(all, x_td)? {
            return Ok(None);
        }
        let device = x_td.device();
        let Some([packed, projections]) = prepared(all)? else { return Ok(None) };
        let z = room((x_td.dim(0)?, 2 * all.totals.values), DType::F32, device)?;
        accumulate(&z, x_td, &projections.t()?, false)?;
        let logits_tn = room((x_td.dim(0)?, all.totals.nodes), DType::F32, device)?;
        logits(all, &z, &packed, &logits_tn)?;
        Ok(Some((logits_tn, Saved { z, packed, projections })))
    }

    pub(super) fn of_few(all: &GaussianRouting, of: Normed<'_>, workspace: &mut Workspace) -> Result<Option<OfFew>> {
        if !reads(all, of.x_bd)? {
            return Ok(None);
        }
        // Parameters do not change while a text is written.
        let made = workspace.made(|| Ok(prepared(all)?.map_or_else(Vec::new, Vec::from)))?;
        let [packed, projections] = made.as_slice() else { return Ok(None) };
        if !gemv::takes(of.x_bd, &[projections])? {
            return Ok(None);
        }
        let [packed, projections] = [packed, projections].map(Clone::clone);
        Ok(Some(OfFew { packed, projections, table: all.table.clone(), nodes: all.totals.nodes }))
    }

    /// Packed parameters, and projections rounded and what rounding took; `None` of parameters that the kernels do not read.
    #[allow(unsafe_code)]
    fn prepared(all: &GaussianRouting) -> Result<Option<[Tensor; 2]>> {
        let (device, s) = (all.table.device(), all.totals);
        let d = s.hidden;
        let packed = room(s.parameters, DType::F32, device)?;
        let projections = room((2 * s.values, d), DType::BF16, device)?;
        for (router, place) in all.routers.iter().zip(&all.places) {
            let Parameters { projection, mean, log_variance, log_prior, scale, .. } = router;
            let tensors = [projection, mean, log_variance, log_prior, scale].map(Tensor::detach);
            if tensors.iter().any(|x| x.dtype() != DType::F32 || !x.is_contiguous() || !x.device().is_cuda()) {
                return Ok(None);
            }
            let rows = |first: usize| projections.narrow(0, first + place.column, place.r);
            let [a, b, c, e, f] = &tensors;
            let (own, near, rest) = (place.packed(&packed)?, rows(0)?, rows(s.values)?);
            let of_projection = (place.r * d).div_ceil(PROJECTION_VALUES);
            let (per, row, step) = place.shared;
            let sizes = [place.gaussians, place.r, d, per, row, step].map(Argument::count);
            let last = [times(router, place), Argument::count(of_projection)];
            let arguments = [&of([a, b, c, e, f, &own, &near, &rest])?[..], &sizes, &last].concat();
            let blocks = of_projection + place.gaussians.next_multiple_of(4).div_ceil(PACKED_GAUSSIANS);
            let grid = grid((blocks, 1), THREADS, 0);
            // SAFETY: the signature of gaussian_prepare: contiguous parameters in f32 of shapes that `new` has compared, and the router's own places in packed
            // parameters and in rows of projections, which are new.
            unsafe { KERNELS.launch_function("gaussian_prepare", card(&all.table)?, &grid, &arguments)? };
        }
        Ok(Some([packed, projections]))
    }

    #[allow(unsafe_code)]
    fn logits(all: &GaussianRouting, z: &Tensor, packed: &Tensor, logits_tn: &Tensor) -> Result<()> {
        let (t, s) = (z.dim(0)?, all.totals);
        let tensors = of([z, packed, &all.table, logits_tn])?;
        let arguments = [&tensors[..], &[t, s.values, s.nodes].map(Argument::count)].concat();
        let grid =
            grid((t.div_ceil(TOKENS), all.places.len()), THREADS, 4 * (STRIDE * s.widest + TOKENS * (COLUMNS + 1)));
        // SAFETY: the signature of gaussian_logits: both parts of z, packed parameters, which are written, the table that `new` has made, logits [t, N] in f32,
        // which nobody has read; the shared memory holds the widest z of a block's tokens and a run of their logits.
        unsafe { KERNELS.launch_function("gaussian_logits", card(z)?, &grid, &arguments) }
    }

    #[allow(unsafe_code)]
    pub(super) fn backward(
        all: &GaussianRouting,
        (saved, x_td): (&Saved, &Tensor),
        dlogits_tn: &Tensor,
        dx_td: Option<Tensor>,
        input: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let ((t, _), s, device) = (x_td.dims2()?, all.totals, x_td.device());
        let dlogits_tn = dlogits_tn.contiguous()?;
        if dlogits_tn.dims() != [t, s.nodes] || dlogits_tn.dtype() != DType::F32 || saved.z.dim(0)? != t {
            candle_core::bail!("gaussian_routing: gradients {:?} of logits [{t}, {}]", dlogits_tn.shape(), s.nodes);
        }
        let projected = all.routers.iter().any(|router| grads.learns(&router.projection));
        if input || projected {
            let dz = room((t, s.values), DType::BF16, device)?;
            let tensors = of([&saved.z, &saved.packed, &all.table, &dlogits_tn, &dz])?;
            let arguments = [&tensors[..], &[t, s.values, s.nodes].map(Argument::count)].concat();
            let grid = grid((t.div_ceil(TOKENS), all.places.len()), THREADS, 0);
            // SAFETY: the signature of gaussian_z: what `forward` has written, gradients [t, N] in f32, and dz [t, R] in bf16, which is new.
            unsafe { KERNELS.launch_function("gaussian_z", card(x_td)?, &grid, &arguments)? };
            for (router, place) in all.routers.iter().zip(&all.places) {
                grads.add_product(&router.projection, &dz.narrow(1, place.column, place.r)?, x_td)?;
            }
            all.parameters(saved, &dlogits_tn, grads)?;
            if !input {
                return Ok(None);
            }
            let near = saved.projections.narrow(0, 0, s.values)?;
            return match dx_td {
                Some(dx_td) => {
                    accumulate(&dx_td, &dz, &near, true)?;
                    Ok(Some(dx_td))
                }
                None => dz.matmul(&near).map(Some),
            };
        }
        all.parameters(saved, &dlogits_tn, grads)?;
        Ok(None)
    }

    #[allow(unsafe_code)]
    impl GaussianRouting {
        /// The gradients of all parameters but the projections.
        fn parameters(&self, saved: &Saved, dlogits_tn: &Tensor, grads: &mut Grads) -> Result<()> {
            let ((t, _), s, device) = (dlogits_tn.dims2()?, self.totals, dlogits_tn.device());
            if !self.routers.iter().flat_map(Parameters::of_gaussians).any(|weight| grads.learns(weight)) {
                return Ok(());
            }
            let tokens = t.div_ceil(PARTS).max(LEAST);
            let count = t.div_ceil(tokens);
            let chunk = (CHUNK_BYTES / (4 * s.columns)).clamp(1, CHUNK);
            let (parts, sums) = (room((count, s.sums), DType::F32, device)?, room(s.sums, DType::F32, device)?);
            let tensors = of([&saved.z, &saved.packed, &self.table, dlogits_tn, &parts])?;
            let sizes = [self.places.len(), t, s.values, s.nodes, tokens, chunk, s.sums].map(Argument::count);
            let of_sums = grid((s.blocks, count), s.threads, 4 * chunk * s.columns);
            // SAFETY: the signature of gaussian_sums: what `forward` has written, gradients [t, N] in f32, and room for the sums of every part, which is new; the
            // shared memory holds G and z of a chunk of tokens of any router.
            unsafe {
                KERNELS.launch_function("gaussian_sums", card(&parts)?, &of_sums, &[&tensors[..], &sizes].concat())?;
            };
            let [of_parts, of_total] = [&parts, &sums].map(Argument::of);
            let arguments = [of_parts?, of_total?, Argument::count(count), Argument::count(s.sums)];
            let of_total = grid((s.sums.div_ceil(TOTAL_COLUMNS), 1), THREADS, 0);
            // SAFETY: the signature of gaussian_total: the parts just written, and their sums, which are new.
            unsafe { KERNELS.launch_function("gaussian_total", card(&parts)?, &of_total, &arguments)? };
            for (router, place) in self.routers.iter().zip(&self.places) {
                let own = sums.narrow(0, place.sums.0, place.sums.1)?;
                let mut arguments = of([&place.packed(&saved.packed)?, &own])?;
                let mut targets = Vec::with_capacity(4);
                for weight in router.of_gaussians() {
                    targets.push(grads.target(weight));
                }
                for target in &targets {
                    arguments.extend(match target {
                        Some((at, add)) => [Argument::of(at)?, Argument::half(at), Argument::count(usize::from(*add))],
                        None => [Argument::NOTHING; 3],
                    });
                }
                let (per, _, step) = place.shared;
                arguments.extend([place.gaussians, place.r, per, step].map(Argument::count));
                arguments.push(times(router, place));
                let grid = grid((place.gaussians + place.shared_rows() + 1, 1), THREADS, 0);
                // SAFETY: the signature of gaussian_gradients: packed parameters and sums as written, and gradients in the shapes of the parameters, in f32 or
                // bf16, of which no other reference is used.
                unsafe { KERNELS.launch_function("gaussian_gradients", card(&sums)?, &grid, &arguments)? };
            }
            Ok(())
        }
    }
}
