//! From the logits of a hierarchy of routers to the experts that are taken and their gates, and back, on a GPU: a launch each (`hierarchy.cu`).
//!
//! p(n) is the product of softmaxes on the way from the top to expert n; every router of a node that is taken takes its `top_k` largest logits, ties
//! to the lower index. Of the K experts at the ends of these ways, w_n = K p_n / Σ p, or p_n / Σ p where gates are normalised; others weigh 0, experts that
//! always take part 1. Backward, with q = p / Σ p over what is taken: e_n = K q_n (∂L/∂w_n − Σ q ∂L/∂w), a node's e is the sum of those
//! below it, and ∂L/∂ℓ_c = e_c − p_c Σ e over the choices of c's router. The selection has no derivative.
//!
//! Shapes: logits `[t, nodes]`, the nodes of all levels from the top, f32; taken and gates `[t, N]`. It equals the plain form in `moe::select` and
//! `moe::gate`, which serves every other declaration and device.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

/// Nodes whose values fit the shared memory that every card has.
const MOST_NODES: usize = 2048;

/// A hierarchy as the kernels read it; without a GPU there is none.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::Hierarchy;
///
/// // Two groups of two experts, one of each taken: by kernels on a GPU, in plain operations elsewhere, where there is none.
/// let levels = [vec![(0..2, 1)], vec![(0..2, 1), (2..4, 1)]];
/// if let Some(hierarchy) = Hierarchy::new(&levels, 0, false, &Device::Cpu)? {
///     let logits_tn = Tensor::zeros((1, 6), DType::F32, &Device::Cpu)?;
///     let [taken_tn, gates_tn] = hierarchy.gates(&logits_tn, DType::F32)?;
///     hierarchy.backward(&logits_tn, &taken_tn, &gates_tn)?;
/// }
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct Hierarchy {
    /// Six numbers a node, as `Node` in the kernels' text.
    table: Tensor,
    /// The first node of each router.
    heads: Tensor,
    /// The first node of each level, and the number of nodes.
    levels: Tensor,
    nodes: usize,
    routed: usize,
    experts: usize,
    depth: usize,
    normalised: bool,
}

impl Hierarchy {
    /// Of levels from the top, each the choices of its routers, by node of the level, and how many are taken: the i-th router of a level stands under
    /// the i-th node of the level above. The nodes of the last level are experts, behind which `always` more always take part. `None` on
    /// another device than a GPU, and for a hierarchy that has no level or more nodes than the kernels have room for.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(
        levels: &[Vec<(Range<usize>, usize)>],
        always: usize,
        normalised: bool,
        device: &Device,
    ) -> Result<Option<Self>> {
        let widths = levels.iter().map(|routers| routers.last().map_or(0, |(nodes, _)| nodes.end));
        let mut starts = vec![0];
        for width in widths {
            starts.push(starts.last().unwrap_or(&0) + width);
        }
        let (nodes, depth) = (starts.last().copied().unwrap_or(0), levels.len());
        if !device.is_cuda() || nodes == 0 || nodes > MOST_NODES {
            return Ok(None);
        }
        let (mut table, mut heads) = (vec![[0u32; 6]; nodes], Vec::new());
        for (level, routers) in levels.iter().enumerate() {
            for (router, (choices, top_k)) in routers.iter().enumerate() {
                let own = starts[level] + choices.start..starts[level] + choices.end;
                heads.push(own.start as u32);
                for node in own.clone() {
                    let above = if level == 0 { node } else { starts[level - 1] + router };
                    table[node] = [own.start, own.end, *top_k, above, 0, 0].map(|number| number as u32);
                }
                if level > 0 {
                    let above = &mut table[starts[level - 1] + router];
                    (above[4], above[5]) = (own.start as u32, own.end as u32);
                }
            }
        }
        let routed = starts[depth] - starts[depth - 1];
        let starts: Vec<u32> = starts.into_iter().map(|start| start as u32).collect();
        Ok(Some(Self {
            table: Tensor::from_vec(table.concat(), (nodes, 6), device)?,
            heads: Tensor::new(heads.as_slice(), device)?,
            levels: Tensor::new(starts.as_slice(), device)?,
            nodes,
            routed,
            experts: routed + always,
            depth,
            normalised,
        }))
    }

    /// Which experts are taken, f32 of ones and zeros, and the gates in `dtype`, `[t, N]` each.
    ///
    /// # Errors
    /// Logits of other shapes, types or devices.
    pub fn gates(&self, logits_tn: &Tensor, dtype: DType) -> Result<[Tensor; 2]> {
        #[cfg(feature = "cuda")]
        return on_a_card::gates(self, logits_tn, dtype);
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("hierarchy: logits {:?} and gates in {dtype:?} without a GPU", logits_tn.shape())
    }

    /// The tables of nodes and of routers' first nodes, and how many nodes, routed experts and experts there are, and whether gates are normalised.
    #[cfg(feature = "cuda")]
    pub(super) fn parts(&self) -> ([&Tensor; 2], [usize; 3], bool) {
        ([&self.table, &self.heads], [self.nodes, self.routed, self.experts], self.normalised)
    }

    /// ∂L/∂logits `[t, nodes]`, from what [`gates`](Self::gates) has taken and ∂L/∂gates `[t, N]`.
    ///
    /// # Errors
    /// As above.
    pub fn backward(&self, logits_tn: &Tensor, taken_tn: &Tensor, dgates_tn: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        return on_a_card::backward(self, logits_tn, taken_tn, dgates_tn);
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("hierarchy: gates {:?} {:?} {:?} without a GPU", logits_tn, taken_tn, dgates_tn)
    }
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::kernel::{Argument, Grid, Kernel, card, is_read, room};
    use super::Hierarchy;

    static KERNELS: Kernel = Kernel::new(
        "hierarchy",
        concat!(include_str!("numbers.cu"), include_str!("hierarchy_nodes.cu"), include_str!("hierarchy.cu")),
    );

    /// Threads of a block, and the tokens that it takes: at most so many, and as their nodes' values have room.
    const THREADS: u32 = 128;
    const TOKENS: usize = 8;
    const BYTES: usize = 40 << 10;

    #[allow(unsafe_code)]
    pub(super) fn gates(of: &Hierarchy, logits_tn: &Tensor, dtype: DType) -> Result<[Tensor; 2]> {
        let tokens = of.tokens(logits_tn)?;
        let [taken, gates] = [DType::F32, dtype].map(|dtype| room((tokens, of.experts), dtype, logits_tn.device()));
        let (taken, gates) = (taken?, gates?);
        if !is_read(&gates) {
            candle_core::bail!("hierarchy: gates in {dtype:?}");
        }
        let tensors = [logits_tn, &of.table, &of.heads, &gates, &taken].map(Argument::of);
        let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
        let (each, grid) = of.grid(tokens, 9);
        let numbers = [tokens, each, of.nodes, of.routed, of.routers()?, of.experts, usize::from(of.normalised)];
        let all = [&tensors[..], &numbers.map(Argument::count), &[Argument::half(&gates)]].concat();
        // SAFETY: the signature of hierarchy_gates: logits [t, nodes] in f32, as `tokens` has seen, the tables that `new` has made, and gates and marks [t, N],
        // which are new; the shared memory holds two values and a mark of every node of a block's tokens.
        unsafe { KERNELS.launch_function("hierarchy_gates", card(logits_tn)?, &grid, &all)? };
        Ok([taken, gates])
    }

    #[allow(unsafe_code)]
    pub(super) fn backward(
        of: &Hierarchy,
        logits_tn: &Tensor,
        taken_tn: &Tensor,
        dgates_tn: &Tensor,
    ) -> Result<Tensor> {
        let (tokens, dgates_tn) = (of.tokens(logits_tn)?, dgates_tn.contiguous()?);
        let of_experts = [tokens, of.experts];
        if taken_tn.dims() != of_experts || dgates_tn.dims() != of_experts || !is_read(&dgates_tn) {
            candle_core::bail!("hierarchy: gradients {:?} of gates {of_experts:?}", dgates_tn.shape());
        }
        let dlogits_tn = room(logits_tn.shape(), DType::F32, logits_tn.device())?;
        let tensors =
            [logits_tn, &of.table, &of.heads, &of.levels, taken_tn, &dgates_tn, &dlogits_tn].map(Argument::of);
        let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
        let (each, grid) = of.grid(tokens, 8);
        let normalised = usize::from(of.normalised);
        let numbers = [tokens, each, of.nodes, of.routed, of.routers()?, of.experts, of.depth, normalised];
        let all = [&tensors[..], &numbers.map(Argument::count), &[Argument::half(&dgates_tn)]].concat();
        // SAFETY: the signature of hierarchy_logits: as above, marks that hierarchy_gates has written, gradients of gates of a type that is read, and of
        // logits, which are new; the shared memory holds two values of every node of a block's tokens.
        unsafe { KERNELS.launch_function("hierarchy_logits", card(logits_tn)?, &grid, &all)? };
        Ok(dlogits_tn)
    }

    impl Hierarchy {
        /// The tokens of a block, and the blocks.
        fn grid(&self, tokens: usize, bytes_a_node: usize) -> (usize, Grid) {
            let of_token = bytes_a_node * self.nodes;
            let each = (BYTES / of_token).clamp(1, TOKENS);
            let blocks = (tokens.div_ceil(each), 1);
            (each, Grid { blocks, threads: THREADS, shared_bytes: (each * of_token) as u32 })
        }

        fn routers(&self) -> Result<usize> {
            self.heads.dim(0)
        }

        fn tokens(&self, logits_tn: &Tensor) -> Result<usize> {
            let (tokens, nodes) = logits_tn.dims2()?;
            if nodes != self.nodes || logits_tn.dtype() != DType::F32 || !is_read(logits_tn) {
                candle_core::bail!("hierarchy: logits {:?} of {} nodes in f32", logits_tn.shape(), self.nodes);
            }
            Ok(tokens)
        }
    }
}
