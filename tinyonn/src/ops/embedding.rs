//! `y_t = W[id_t]`: rows of a table.
//!
//! Shapes: ids `[..]` u32, W `[V, d]`, y `[.., d]`. Backward: row v of dW is the sum of dy_t over the t with id_t = v.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tinyonn::ops::embedding::{backward, forward};
//! use tinyonn::ops::Grads;
//!
//! let (table, ids) = (Var::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?, Tensor::new(&[1u32, 1], &Device::Cpu)?);
//! let y = forward(&ids, &table)?;
//! assert_eq!(y.to_vec2::<f32>()?, [[3.0, 4.0], [3.0, 4.0]]);
//! let mut grads = Grads::new([(table.as_tensor(), 0)])?;
//! backward(&ids, &table, &y.ones_like()?, &mut grads)?;
//! assert_eq!(grads.get(&table).expect("it learns").to_vec2::<f32>()?, [[0.0, 0.0], [2.0, 2.0]]); // twice the second row
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Result, Tensor};

use super::grad_site::wide;
use super::linear::rows;
use super::{Grads, lanes};

/// The rows of `weight_vd` named by `ids`.
///
/// # Errors
/// An id that the table does not hold; devices that do not go together.
pub fn forward(ids: &Tensor, weight_vd: &Tensor) -> Result<Tensor> {
    let mut shape = ids.dims().to_vec();
    shape.push(weight_vd.dim(1)?);
    weight_vd.detach().index_select(&ids.flatten_all()?.contiguous()?, 0)?.reshape(shape)
}

/// dW goes to `grads`, if it learns there.
///
/// # Errors
/// As above.
pub fn backward(ids: &Tensor, weight_vd: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<()> {
    let (dy_td, ids) = (rows(dy)?, ids.flatten_all()?.contiguous()?);
    let d = dy_td.dim(1)?;
    #[cfg(feature = "cuda")]
    if super::kernel::is_read(&dy_td) && grads.takes_on_a_card(weight_vd) {
        return grads.add_on_a_card(weight_vd, |dw| on_a_card::add(&ids, &dy_td, dw));
    }
    if !lanes::fused(&[&dy_td]) {
        // In f32 if the weights are narrower: a sum of many small terms stalls in bf16.
        let dy_td = wide(&dy_td)?;
        let zeros_vd = || Tensor::zeros(weight_vd.shape(), dy_td.dtype(), dy_td.device());
        return grads.add_with(weight_vd, || zeros_vd()?.index_add(&ids, &dy_td, 0));
    }
    grads.change(weight_vd, |dw, fresh| {
        // A tied head has written before: its sum comes first.
        let mut sums = vec![0f32; if fresh { 0 } else { dw.len() }];
        let target = if fresh {
            dw.fill(0.0);
            &mut *dw
        } else {
            &mut sums
        };
        lanes::with_ids(&ids, |ids| {
            lanes::with_slices([&dy_td], |[dy]| {
                for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
                    target[*id as usize * d..][..d].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                }
            })
        })??;
        dw.iter_mut().zip(&sums).for_each(|(dw, sum)| *dw += sum);
        Ok(())
    })
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use candle_core::{Result, Tensor};

    use super::super::kernel::{Argument, Kernel, card};

    static GRADIENT: Kernel =
        Kernel::new("embedding_gradient", concat!(include_str!("numbers.cu"), include_str!("embedding.cu")));

    /// Adds dy to the rows of dW that ids name.
    #[allow(unsafe_code)]
    pub(super) fn add(ids_t: &Tensor, dy_td: &Tensor, dw_vd: &Tensor) -> Result<()> {
        let (t, d) = dy_td.dims2()?;
        let [ids, dy, dw] = [ids_t, dy_td, dw_vd].map(Argument::of);
        let [tokens, rows, width] = [t, dw_vd.dim(0)?, d].map(Argument::count);
        let arguments = [ids?, dy?, dw?, tokens, rows, width, Argument::half(dy_td), Argument::half(dw_vd)];
        // SAFETY: the signature of embedding_gradient: t ids in u32, t·d values of dy, and dW of `rows` rows of d, a slot of gradients, which only the pass at
        // hand refers to.
        unsafe { GRADIENT.launch(card(dy_td)?, t, &arguments) }
    }
}
