//! A feed-forward of which a token takes what a [`Choice`] says, repaired beside its weights: forward passes only.

use candle_core::Tensor;
use tinyonn::decoder::{Answers, FeedForward, Learn, Mlp, Pass, Trace};
use tinyonn::ops::Grads;
use tinyonn::train::Repair;
use tinyonn::{Error, Result};

use super::choice::{Choice, Taken};

/// The layer.
pub(crate) struct ChosenMlp {
    mlp: Mlp,
    choice: Choice,
    /// W_d + ΔW and b, in the type of W.
    repaired: Option<(Tensor, Tensor)>,
}

impl ChosenMlp {
    /// Without a repair.
    pub(crate) fn new(mlp: Mlp, choice: Choice) -> Self {
        Self { mlp, choice, repaired: None }
    }

    /// With it.
    pub(crate) fn repaired(self, repair: &Repair) -> Result<Self> {
        let down = self.mlp.weights().down;
        let sum = (down.to_dtype(repair.down_id.dtype())? + &repair.down_id)?.to_dtype(down.dtype())?;
        let repaired = Some((sum, repair.bias_d.to_dtype(down.dtype())?));
        Ok(Self { repaired, ..self })
    }

    /// What is taken of x `[B, T, d]`.
    pub(crate) fn take(&self, x: &Tensor) -> Result<Taken> {
        self.choice.take(x, self.mlp.weights())
    }

    /// y of what was taken: `[B·T, d]`.
    pub(crate) fn output(&self, taken: &Taken) -> Result<Tensor> {
        Ok(match &self.repaired {
            None => taken.hidden_ti.matmul(self.mlp.weights().down)?,
            Some((down_id, bias_d)) => taken.hidden_ti.matmul(down_id)?.broadcast_add(bias_d)?,
        })
    }
}

impl FeedForward for ChosenMlp {
    type Saved = ();

    fn forward(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, Trace, Option<()>)> {
        Ok((self.output(&self.take(x)?)?.reshape(x.shape())?, Trace::default(), None))
    }

    fn backward(&self, (): (), _: &Tensor, _: &Learn, _: bool, _: &mut Grads) -> Result<(Option<Tensor>, Answers)> {
        Err(Error::setting("learn", "this choice is made for forward passes", "train a declared variant"))
    }

    fn learns(&self, _: &Learn, _: &Grads) -> bool {
        false
    }
}
