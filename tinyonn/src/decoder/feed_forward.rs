//! What fills the feed-forward slot of a block.

use candle_core::Tensor;
use tinyonn_spec::AttentionSpec;

use super::{Answers, Learn, Pass, Smk, Trace};
use crate::Result;
use crate::ops::{Grads, MinK, Workspace};
#[cfg(feature = "cuda")]
use crate::ops::{
    MlpWeights,
    gemv::{self, Gates, Normed},
};

/// One new token of each of a few texts, on its way through a layer of a model that writes on a GPU.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::decoder::feed_forward::NewTokens;
///
/// /// The root of the mean square that the norm before a feed-forward divides by, of each row.
/// fn root(new: &NewTokens<'_>) -> candle_core::Result<Tensor> {
///     (new.x_bd.sqr()?.mean_keepdim(1)? + new.norm.1)?.sqrt()
/// }
/// ```
#[derive(Debug)]
pub struct NewTokens<'a> {
    /// The stream that enters the norm before the feed-forward, `[B, d]`.
    pub x_bd: &'a Tensor,
    /// That norm's weight `[d]`, and its ε.
    pub norm: (&'a Tensor, f64),
    /// Where the step's tensors lie.
    pub workspace: &'a mut Workspace,
}

#[cfg(feature = "cuda")]
impl NewTokens<'_> {
    /// Whether there are kernels for a gated linear unit of these matrices.
    pub(crate) fn takes(&self, weights: MlpWeights<'_>) -> candle_core::Result<bool> {
        gemv::takes_neurons(self.x_bd, weights)
    }

    /// x + W_d (h ⊙ w), w the gates of the neurons' experts, where there are any.
    pub(crate) fn glu(
        &mut self,
        weights: MlpWeights<'_>,
        gates: Option<Gates<'_>>,
    ) -> candle_core::Result<Option<Tensor>> {
        if !self.takes(weights)? {
            return Ok(None);
        }
        let of = Normed { x_bd: self.x_bd, norm: Some(self.norm) };
        let h_bi = gemv::glu(of, weights, gates, self.workspace)?;
        gemv::weighted_rows(&h_bi, weights.down, Some(self.x_bd), None, gates.is_some(), self.workspace).map(Some)
    }
}

/// The second half of a block: x `[B, T, d]` to y `[B, T, d]`.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::Result;
/// use tinyonn::decoder::{Answers, FeedForward, Learn, Pass, Trace};
/// use tinyonn::ops::Grads;
///
/// /// y = x / 2: nothing to learn.
/// struct Half;
///
/// impl FeedForward for Half {
///     type Saved = ();
///
///     fn forward(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, Trace, Option<()>)> {
///         Ok(((x * 0.5)?, Trace::default(), Some(())))
///     }
///
///     fn backward(&self, (): (), dy: &Tensor, _: &Learn, input: bool, _: &mut Grads) -> Result<(Option<Tensor>, Answers)> {
///         Ok((input.then(|| dy * 0.5).transpose()?, Answers::default()))
///     }
///
///     fn learns(&self, _: &Learn, _: &Grads) -> bool {
///         false
///     }
/// }
/// assert!(!Half.reads_surprisal()); // as by default
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub trait FeedForward: Send + Sync {
    /// What its backward needs.
    type Saved: Send + std::fmt::Debug;

    /// y, under the routing that `pass` asks for (a dense feed-forward has none and ignores it); what was asked; and what the backward
    /// needs, if one follows.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not go together.
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Self::Saved>)>;

    /// ∂L/∂x, if `input`, from ∂L/∂y; weight gradients go to `grads`.
    ///
    /// # Errors
    /// What the device reports; an image of what the feed-forward has not.
    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)>;

    /// Of experts whose gradients are all formed, keeps those of the winners of `smk`, given the tokens of each (`tokens_n` `[N]`; as many of
    /// each where `None`; `surprise = exact`); nothing where there are none.
    ///
    /// ```
    /// use tinyonn::decoder::{FeedForward as _, Mlp, Smk};
    /// use tinyonn::ops::Grads;
    ///
    /// /// A dense feed-forward has no experts to choose among.
    /// fn none(mlp: &Mlp) -> tinyonn::Result<bool> {
    ///     Ok(mlp.keep_winners(&Smk::DEFAULT, None, &mut Grads::none())?.is_none())
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    fn keep_winners(&self, smk: &Smk, tokens_n: Option<&Tensor>, grads: &mut Grads) -> Result<Option<MinK>> {
        let _ = (smk, tokens_n, grads);
        Ok(None)
    }

    /// The stream behind the feed-forward, x + y of the normalised x, by launches that read nothing by the host and write to the workspace, so that a captured graph
    /// can hold them; `None` where there are none for it, and [`forward`](Self::forward) is asked.
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use tinyonn::decoder::feed_forward::NewTokens;
    /// use tinyonn::decoder::{FeedForward, Mlp, Pass};
    ///
    /// fn behind(mlp: &Mlp, new: &mut NewTokens<'_>) -> tinyonn::Result<Option<Tensor>> {
    ///     mlp.decode(new, &Pass::all())
    /// }
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    fn decode(&self, new: &mut NewTokens<'_>, pass: &Pass) -> Result<Option<Tensor>> {
        let _ = (new, pass);
        Ok(None)
    }

    /// Whether any of its weights learns.
    fn learns(&self, learn: &Learn, grads: &Grads) -> bool;

    /// Which pairs the attention before it computes in a routed pass.
    ///
    /// ```
    /// use tinyonn::decoder::{FeedForward as _, Mlp};
    ///
    /// fn computes_all(mlp: &Mlp) -> bool {
    ///     mlp.attention().is_dense() // as of every feed-forward that declares nothing else
    /// }
    /// ```
    fn attention(&self) -> AttentionSpec {
        AttentionSpec::Dense
    }

    /// Whether routing reads [`Pass::surprisal`].
    fn reads_surprisal(&self) -> bool {
        false
    }
}
