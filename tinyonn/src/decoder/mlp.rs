//! The dense feed-forward of gated linear units.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

#[cfg(feature = "cuda")]
use super::feed_forward::NewTokens;
use super::{Answers, Arch, FeedForward, Keep, Learn, Pass, Trace};
use crate::Result;
use crate::ops::{Activation, Grads, Learners, MlpWeights, SlicedMlp, glu_mlp};

/// y = W_d h(W_g x, W_u x), named as in the checkpoint (`mlp`); h(g, u) = silu(g) ⊙ u unless the configuration says otherwise.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::decoder::Mlp;
/// use tinyonn::decoder::mlp::projections;
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| Mlp::new(&cfg, 0, &vb).map(drop))?;
/// let vb = store.builder(DType::F32, |_| false);
/// let mlp = Mlp::new(&cfg, 0, &vb)?;
/// let [gate, ..] = projections(&cfg, &vb)?;
/// assert_eq!((mlp.weights().gate.dims(), gate.dims()), (&[cfg.intermediate_size, cfg.hidden_size][..], mlp.weights().down.dims()));
/// let x = Tensor::zeros((1, 2, cfg.hidden_size), DType::F32, &Device::Cpu)?;
/// assert_eq!(mlp.output(&x)?.abs()?.max_all()?.to_scalar::<f32>()?, 0.0); // no bias: of nothing comes nothing
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mlp {
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    activation: &'static dyn Activation,
    layer: usize,
}

impl Mlp {
    /// Reads or initialises the weights of layer `layer`.
    ///
    /// # Errors
    /// A missing or misshapen weight; an unknown activation.
    pub fn new(cfg: &Arch, layer: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let [gate_proj, up_proj, down_proj] = projections(cfg, vb)?;
        Ok(Self { gate_proj, up_proj, down_proj, activation: cfg.activation()?, layer })
    }

    /// The matrices.
    #[must_use]
    pub fn weights(&self) -> MlpWeights<'_> {
        let (gate, up, down) = (&self.gate_proj, &self.up_proj, &self.down_proj);
        MlpWeights { gate, up, down, activation: self.activation }
    }

    /// y of x `[B, T, d]`, and nothing else.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    pub fn output(&self, x: &Tensor) -> Result<Tensor> {
        Ok(glu_mlp::forward(x, self.weights(), None)?.0)
    }

    /// |h(W_g x, W_u x)| `[k, I]` of some rows of x `[B, T, d]`.
    fn hidden(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let x_kd = x.detach().flatten_to(1)?.index_select(rows, 0)?;
        let [g_ki, u_ki] = [&self.gate_proj, &self.up_proj].map(|w_id| x_kd.matmul(&w_id.detach().t()?));
        Ok(self.activation.forward(&g_ki?, &u_ki?)?.abs()?)
    }
}

/// W_g, W_u and W_d, `[I, d]` each, under their checkpoint names: a neuron is a row of all three. (Files have W_d as `[d, I]`:
/// [`ModelFolder`](crate::checkpoint::ModelFolder) turns it.)
///
/// # Errors
/// A missing or misshapen weight.
pub fn projections(cfg: &Arch, vb: &VarBuilder<'_>) -> Result<[Tensor; 3]> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let get = |name: &str, shape: (usize, usize), stdev| {
        vb.pp(name).get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev })
    };
    Ok([
        get("gate_proj", (i, d), 0.02)?,
        get("up_proj", (i, d), 0.02)?,
        get("down_proj", (i, d), cfg.residual_stdev())?,
    ])
}

impl FeedForward for Mlp {
    type Saved = glu_mlp::Saved;

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Self::Saved>)> {
        let (y, saved) = glu_mlp::forward(x, self.weights(), None)?;
        let hidden = pass.ask.hidden.as_ref().map(|rows| self.hidden(x, rows)).transpose()?;
        Ok((y, Trace { hidden, ..Trace::default() }, (pass.keep != Keep::Nothing).then_some(saved)))
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
        let mut answers = learn.answers(self.layer, &saved.image(&deltas))?;
        let learners = match learn.experts.mask(self.layer)? {
            Some(mask) => mask.learners([&self.gate_proj, &self.up_proj, &self.down_proj], grads)?,
            None => Learners::All,
        };
        answers.products = Some(saved.weight_gradients(self.weights(), &deltas, &learners, grads)?);
        let dx = input.then(|| saved.input_gradient(&deltas)?.reshape(dy.shape())).transpose()?;
        Ok((dx, answers))
    }

    #[cfg(feature = "cuda")]
    fn decode(&self, new: &mut NewTokens<'_>, _: &Pass) -> Result<Option<Tensor>> {
        Ok(new.glu(self.weights(), None)?)
    }

    fn learns(&self, _: &Learn, grads: &Grads) -> bool {
        [&self.gate_proj, &self.up_proj, &self.down_proj].into_iter().any(|weight| grads.learns(weight))
    }
}
