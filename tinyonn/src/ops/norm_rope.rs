//! Queries and keys as attention takes them: every head normalised ([`rms_norm`]) and turned by its position's angles ([`rope`]).
//!
//! Shapes: q `[B, T, H, D]`, k `[B, T, K, D]`, a norm's weight `[D]` each, cos and sin `[T, D/2]`. y = turn(x / √(mean(x²) + ε) ⊙ w); backward, with g what
//! comes of turning dy back: dx and dw are the norm's of g. The plain form is the composition; on a GPU queries and keys are one launch each way, in which
//! every value is read and written once, with the roundings of the composition.

use candle_core::{Result, Tensor};

use super::{Grads, rms_norm, rope};

/// How queries and keys are normalised and turned.
#[derive(Clone, Copy, Debug)]
pub struct NormRope<'a> {
    /// The weights of both norms, `[D]` each: two tensors.
    pub weights: [&'a Tensor; 2],
    /// What both norms add under the root.
    pub eps: f64,
    /// Cosines `[T, D/2]`.
    pub cos: &'a Tensor,
    /// Sines.
    pub sin: &'a Tensor,
}

/// Normalised and turned queries and keys.
///
/// # Errors
/// Shapes, dtypes or devices that do not go together.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::norm_rope::{self, NormRope};
///
/// let (x, w) = (Tensor::new(&[[[[3f32, 4.0]], [[3.0, 4.0]]]], &Device::Cpu)?, Tensor::ones(2, DType::F32, &Device::Cpu)?);
/// let (cos, sin) = (Tensor::new(&[[1f32], [0.0]], &Device::Cpu)?, Tensor::new(&[[0f32], [1.0]], &Device::Cpu)?);
/// let [q, _] = norm_rope::forward([&x, &x], NormRope { weights: [&w, &w], eps: 0.0, cos: &cos, sin: &sin })?;
/// let (q, r) = (q.flatten_all()?.to_vec1::<f32>()?, 12.5f32.sqrt());
/// assert_eq!(q.iter().map(|x| (x * r).round()).collect::<Vec<_>>(), [3.0, 4.0, -4.0, 3.0]); // a quarter turn at position 1
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward(x: [&Tensor; 2], by: NormRope<'_>) -> Result<[Tensor; 2]> {
    #[cfg(feature = "cuda")]
    if let Some(heads) = on_a_card::Heads::new(x, by)? {
        return heads.forward();
    }
    let [q, k] = x;
    let turned = |x: &Tensor, weight| rope::forward(&rms_norm::forward(x, weight, by.eps)?, by.cos, by.sin);
    Ok([turned(q, by.weights[0])?, turned(k, by.weights[1])?])
}

/// dq and dk, of the q and k that [`forward`] was given; the gradients of the norms' weights go to `grads`, if they learn there.
///
/// # Errors
/// As above.
pub fn backward(x: [&Tensor; 2], by: NormRope<'_>, dy: [&Tensor; 2], grads: &mut Grads) -> Result<[Tensor; 2]> {
    #[cfg(feature = "cuda")]
    if by.weights.iter().all(|weight| grads.takes_on_a_card(weight))
        && let Some(heads) = on_a_card::Heads::new(x, by)?
    {
        return heads.backward(dy, grads);
    }
    let mut through =
        |x: &Tensor, weight, dy| rms_norm::backward(x, weight, by.eps, &rope::backward(dy, by.cos, by.sin)?, grads);
    Ok([through(x[0], by.weights[0], dy[0])?, through(x[1], by.weights[1], dy[1])?])
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{DType, Result, Tensor};

    use super::super::Grads;
    use super::super::kernel::{Argument, THREADS, are_read, card, room, room_like};
    use super::super::rms_norm::on_a_card::{KERNELS, grid, put};
    use super::NormRope;

    /// Blocks that take heads one after another, at most: two on each of an H200's multiprocessors, whatever the card is, so that sums have one order.
    const BLOCKS: usize = 264;

    /// Queries and keys that the kernels take.
    pub(super) struct Heads<'a> {
        x: [Tensor; 2],
        by: NormRope<'a>,
        positions: usize,
        head_dim: usize,
        /// Heads of one position.
        of_position: [usize; 2],
        /// Heads that a block takes at once.
        of_block: usize,
    }

    impl<'a> Heads<'a> {
        /// Where all is of one type that is read, and a head's halves are chunks of sixteen bytes, a power of two of them.
        pub(super) fn new([q, k]: [&Tensor; 2], by: NormRope<'a>) -> Result<Option<Self>> {
            let ((b, t, h, d), (b_k, t_k, h_k, d_k)) = (q.dims4()?, k.dims4()?);
            let x = [q.detach().contiguous()?, k.detach().contiguous()?];
            let values = 16 / q.dtype().size_in_bytes();
            let lanes = d / 2 / values;
            let whole = d > 0 && d.is_multiple_of(2 * values) && lanes.is_power_of_two() && lanes <= 32;
            let shapes = (b, t, d) == (b_k, t_k, d_k)
                && by.weights.iter().all(|weight| weight.dims() == [d])
                && [by.cos, by.sin].iter().all(|angles| angles.elem_count() == t * (d / 2));
            let apart = by.weights[0].id() != by.weights[1].id();
            let counted = u32::try_from(x[0].elem_count().max(x[1].elem_count())).is_ok();
            let read = are_read(&[&x[0], &x[1], by.weights[0], by.weights[1], by.cos, by.sin]);
            let some = b * t * h * h_k > 0;
            if !(whole && shapes && apart && counted && read && some) {
                return Ok(None);
            }
            let of_block = THREADS as usize / lanes;
            Ok(Some(Self { x, by, positions: t, head_dim: d, of_position: [h, h_k], of_block }))
        }

        /// Heads of all positions.
        fn count(&self, which: usize) -> usize {
            self.x[which].elem_count() / self.head_dim
        }

        /// How many blocks queries and keys take.
        fn blocks(&self) -> [usize; 2] {
            [0, 1].map(|which| self.count(which).div_ceil(self.of_block))
        }

        fn rest(&self, blocks_q: usize) -> Result<[Argument; 7]> {
            Ok([
                Argument::count(blocks_q),
                Argument::of(self.by.cos)?,
                Argument::of(self.by.sin)?,
                Argument::count(self.positions),
                Argument::count(self.head_dim),
                Argument::Number(self.by.eps as f32),
                Argument::half(&self.x[0]),
            ])
        }

        #[allow(unsafe_code)]
        pub(super) fn forward(&self) -> Result<[Tensor; 2]> {
            let y = [room_like(&self.x[0])?, room_like(&self.x[1])?];
            let [blocks_q, blocks_k] = self.blocks();
            let mut arguments = Vec::with_capacity(17);
            for which in [0, 1] {
                arguments.extend([
                    Argument::of(&self.x[which])?,
                    Argument::of(self.by.weights[which])?,
                    Argument::of(&y[which])?,
                    Argument::count(self.count(which)),
                    Argument::count(self.of_position[which]),
                ]);
            }
            arguments.extend(self.rest(blocks_q)?);
            let grid = grid((blocks_q + blocks_k, 1));
            // SAFETY: the signature of norm_rope_forward: of queries and of keys x and y, which is new, of as many heads as said, a weight of a head's length,
            // and angles of half a head for each position, all of one type, as `new` has seen.
            unsafe { KERNELS.launch_function("norm_rope_forward", card(&y[0])?, &grid, &arguments)? };
            Ok(y)
        }

        #[allow(unsafe_code)]
        pub(super) fn backward(&self, dy: [&Tensor; 2], grads: &mut Grads) -> Result<[Tensor; 2]> {
            let dy = [dy[0].detach().contiguous()?, dy[1].detach().contiguous()?];
            if dy.iter().zip(&self.x).any(|(dy, x)| dy.dims() != x.dims() || !are_read(&[dy, x])) {
                candle_core::bail!("norm_rope: gradients {:?} and {:?} of other heads", dy[0].shape(), dy[1].shape());
            }
            let (dx, device) = ([room_like(&self.x[0])?, room_like(&self.x[1])?], self.x[0].device());
            let all: usize = self.of_position.iter().sum();
            let (most, needed) = (self.of_position.map(|heads| (BLOCKS * heads / all).max(1)), self.blocks());
            let blocks = [most[0].min(needed[0]), most[1].min(needed[1])];
            let mut parts: [Option<Tensor>; 2] = [None, None];
            let mut arguments = Vec::with_capacity(21);
            for which in [0, 1] {
                if grads.learns(self.by.weights[which]) {
                    parts[which] = Some(room((blocks[which], self.head_dim), DType::F32, device)?);
                }
                arguments.extend([
                    Argument::of(&self.x[which])?,
                    Argument::of(self.by.weights[which])?,
                    Argument::of(&dy[which])?,
                    Argument::of(&dx[which])?,
                    parts[which].as_ref().map_or(Ok(Argument::NOTHING), Argument::of)?,
                    Argument::count(self.count(which)),
                    Argument::count(self.of_position[which]),
                ]);
            }
            arguments.extend(self.rest(blocks[0])?);
            let grid = grid((blocks[0] + blocks[1], 1));
            // SAFETY: the signature of norm_rope_backward: as above, with dy of the shape and type of x, dx, which is new, and, if the weight learns, room for
            // d values in f32 of every block, which is new.
            unsafe { KERNELS.launch_function("norm_rope_backward", card(&dx[0])?, &grid, &arguments)? };
            let sums = self.by.weights.into_iter().zip(parts);
            let sums: Vec<_> = sums.filter_map(|(weight, parts)| Some((weight, parts?))).collect();
            put(&sums, grads)?;
            Ok(dx)
        }
    }
}
