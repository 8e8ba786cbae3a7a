//! The dense feed-forward with a low-rank difference of each matrix, which alone learns (LoRA; Hu et al., 2021).

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::mlp::projections;
use super::{Answers, Arch, FeedForward, Keep, Learn, Pass, Trace};
use crate::ops::low_rank_mlp::{self, LowRank};
use crate::ops::{Activation, Grads, MlpWeights};
use crate::{Error, Result};

/// y = W'_d h(W'_g x, W'_u x), W' = W + B A: the [`Mlp`](super::Mlp) of the same names, with `lora_a` `[r, d]` and `lora_b` `[I, r]` beside each `weight`
/// ([`grow_lora`](crate::checkpoint::grow_lora)).
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{ParamStore, grow_lora};
/// use tinyonn::decoder::{CausalLm, LowRankMlp};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let mut store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// grow_lora(&mut store, &cfg, 2, 0)?;
/// let vb = store.builder(DType::F32, |_| false);
/// let model = CausalLm::new(&cfg, &vb, |layer, vb| LowRankMlp::new(&cfg, layer, 2, &vb))?;
/// let [of_gate, ..] = model.model().layers()[0].mlp().low_rank();
/// assert_eq!((of_gate.a_rd.dims(), of_gate.b_ir.dims()), (&[2, cfg.hidden_size][..], &[cfg.intermediate_size, 2][..]));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LowRankMlp {
    /// W_g, W_u, W_d, frozen.
    base: [Tensor; 3],
    /// A and B of each.
    pairs: [[Tensor; 2]; 3],
    activation: &'static dyn Activation,
    layer: usize,
}

impl LowRankMlp {
    /// Reads layer `layer`, whose differences have rank `rank`.
    ///
    /// # Errors
    /// A rank of zero; a missing or misshapen weight; an unknown activation.
    pub fn new(cfg: &Arch, layer: usize, rank: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        if rank == 0 {
            return Err(Error::setting("rank", "is 0, and nothing would learn", "use 1 or more"));
        }
        let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
        let pair = |name: &str| -> Result<[Tensor; 2]> {
            let vb = vb.pp(name);
            let get = |shape: (usize, usize), name: &str| vb.get_with_hints(shape, name, Init::Const(0.0));
            Ok([get((rank, d), "lora_a")?, get((i, rank), "lora_b")?])
        };
        let pairs = [pair("gate_proj")?, pair("up_proj")?, pair("down_proj")?];
        Ok(Self { base: projections(cfg, vb)?, pairs, activation: cfg.activation()?, layer })
    }

    fn weights(&self) -> MlpWeights<'_> {
        let [gate, up, down] = &self.base;
        MlpWeights { gate, up, down, activation: self.activation }
    }

    /// The differences of W_g, W_u and W_d.
    #[must_use]
    pub fn low_rank(&self) -> [LowRank<'_>; 3] {
        self.pairs.each_ref().map(|[a_rd, b_ir]| LowRank { a_rd, b_ir })
    }
}

impl FeedForward for LowRankMlp {
    type Saved = low_rank_mlp::Saved;

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Self::Saved>)> {
        let (y, saved) = low_rank_mlp::forward(x, self.weights(), self.low_rank())?;
        Ok((y, Trace::default(), (pass.keep != Keep::Nothing).then_some(saved)))
    }

    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)> {
        let deltas = saved.deltas(dy)?;
        let answers = learn.answers(self.layer, &saved.image(&deltas))?;
        saved.gradients(self.low_rank(), &deltas, grads)?;
        let dx = input.then(|| saved.input_gradient(&deltas)?.reshape(dy.shape())).transpose()?;
        Ok((dx, answers))
    }

    fn learns(&self, _: &Learn, grads: &Grads) -> bool {
        self.pairs.iter().flatten().any(|weight| grads.learns(weight))
    }
}
