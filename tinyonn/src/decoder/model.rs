//! The decoder without its head: embedding, blocks, final normalisation.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use tinyonn_spec::AttentionSpec;

use super::block::{self, Block};
use super::{Answers, Arch, FeedForward, Keep, KvCache, Learn, Pass, RmsNorm, Rotary, Trace};
use crate::ops::{Grads, embedding};
use crate::{Error, Result};

/// The decoder, over any feed-forward; named as in the checkpoint (`model`).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::decoder::{Decoder, Mlp, Pass};
/// use tinyonn::ops::attention;
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let new = |vb: &_| Decoder::new(&cfg, vb, |layer, vb| Mlp::new(&cfg, layer, &vb));
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| new(&vb).map(drop))?;
/// let decoder = new(&store.builder(DType::F32, |_| false))?;
/// let ids = Tensor::new(&[[3u32, 1, 4]], &Device::Cpu)?;
///
/// // Layer by layer, as `forward` goes: the feed-forward's output is added to the stream.
/// let mut x = decoder.embed(&ids)?;
/// assert_eq!(decoder.keys(0, &x)?.dims(), [1, 3, cfg.num_key_value_heads, cfg.head_dim]);
/// for (at, layer) in decoder.layers().iter().enumerate() {
///     let [stream, seen] = decoder.attend(at, &x)?;
///     // The same by an attention of one's own: here the library's.
///     let [again, _] = decoder.attend_by(at, &x, |[q, k, v]| Ok(attention::forward(q, k, v)?.0))?;
///     assert!((&stream - again)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
///     x = (stream + layer.mlp().output(&seen)?)?;
/// }
/// let (hidden, ..) = decoder.forward(&ids, &Pass::all(), None)?;
/// assert!((&hidden - decoder.last(&x)?)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
/// assert_eq!((hidden.dims(), x.dims(), decoder.config().num_hidden_layers), (&[1, 3, cfg.hidden_size][..], hidden.dims(), 4));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder<F> {
    embed_tokens: Tensor,
    layers: Vec<Block<F>>,
    norm: RmsNorm,
    rotary: Rotary,
    cfg: Arch,
}

/// What the backward of a decoder needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::Result;
/// use tinyonn::decoder::model::Saved;
/// use tinyonn::decoder::{Answers, Decoder, FeedForward, Learn, Pass};
/// use tinyonn::ops::Grads;
///
/// /// There and back: what each layer says of the pass.
/// fn step<F: FeedForward>(decoder: &Decoder<F>, ids: &Tensor, grads: &mut Grads) -> Result<Vec<Answers>> {
///     let (hidden, _, saved) = decoder.forward(ids, &Pass::all().kept(), None)?;
///     let saved: Saved<F> = saved.expect("the pass keeps it");
///     decoder.backward(saved, &hidden.ones_like()?, &Learn::default(), grads)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved<F: FeedForward> {
    ids: Tensor,
    blocks: Vec<block::Saved<F::Saved>>,
    /// The output of the last block.
    last: Tensor,
}

impl<F: FeedForward> Decoder<F> {
    /// Reads or initialises the weights; `feed_forward(layer, vb)` builds each layer's `mlp`.
    ///
    /// # Errors
    /// A configuration that cannot work; a missing or misshapen weight.
    pub fn new(
        cfg: &Arch,
        vb: &VarBuilder<'_>,
        mut feed_forward: impl FnMut(usize, VarBuilder<'_>) -> Result<F>,
    ) -> Result<Self> {
        cfg.validate()?;
        let shape = (cfg.vocab_size, cfg.hidden_size);
        let embed_tokens =
            vb.pp("embed_tokens").get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev: 0.02 })?;
        let mut layers = Vec::with_capacity(cfg.num_hidden_layers);
        for layer in 0..cfg.num_hidden_layers {
            let vb = vb.pp("layers").pp(layer);
            layers.push(Block::new(cfg, layer, feed_forward(layer, vb.pp("mlp"))?, &vb)?);
        }
        let norm = RmsNorm::new(cfg.hidden_size, cfg.rms_norm_eps, &vb.pp("norm"))?;
        let rotary = Rotary::new(cfg, vb.device())?;
        Ok(Self { embed_tokens, layers, norm, rotary, cfg: cfg.clone() })
    }

    /// Final hidden states `[B, T, d]` of token ids `[B, T]` (with a cache, of the T positions after those it holds), what was asked of
    /// each layer, and what the backward needs, if one follows.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn forward(
        &self,
        ids: &Tensor,
        pass: &Pass,
        mut cache: Option<&mut KvCache>,
    ) -> Result<(Tensor, Vec<Trace>, Option<Saved<F>>)> {
        let (_, t) = ids.dims2()?;
        let past = cache.as_ref().map_or(0, |cache| cache.positions());
        let mut x = embedding::forward(ids, &self.embed_tokens)?;
        let rotary = self.rotary.positions(past, t, x.dtype())?;
        let (mut traces, mut blocks) = (Vec::with_capacity(self.layers.len()), Vec::new());
        for layer in &self.layers {
            let (out, trace, saved) = layer.forward(&x, &rotary, pass, cache.as_deref_mut())?;
            x = out;
            traces.push(trace);
            blocks.extend(saved);
        }
        let hidden = self.norm.forward(&x)?;
        let saved = (pass.keep != Keep::Nothing).then(|| Saved { ids: ids.clone(), blocks, last: x });
        Ok((hidden, traces, saved))
    }

    /// The stream `[B, T, d]` that enters the first layer, of token ids `[B, T]`: for whoever goes through a text layer by layer.
    ///
    /// # Errors
    /// Ids beyond the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(embedding::forward(ids, &self.embed_tokens)?)
    }

    /// The stream x `[B, T, d]` of whole sequences behind the attention of a layer, and the same normalised, which its feed-forward sees; what that
    /// says, added to the first, enters the next layer.
    ///
    /// # Errors
    /// A layer that there is not; what the device reports.
    pub fn attend(&self, layer: usize, x: &Tensor) -> Result<[Tensor; 2]> {
        let missing = || Error::setting("layer", format!("is {layer} of {}", self.layers.len()), "count from 0");
        let block = self.layers.get(layer).ok_or_else(missing)?;
        let (middle, normed, _) = block.attend(x, &self.rotary.positions(0, x.dim(1)?, x.dtype())?, false, None)?;
        Ok([middle, normed])
    }

    /// As [`attend`](Self::attend), where `f` is the attention: it makes y `[B, T, H, D]` of queries `[B, T, H, D]`, keys and values `[B, T, K, D]`, queries and keys
    /// normalised and turned. For whoever tries another.
    ///
    /// # Errors
    /// As above; what `f` reports.
    pub fn attend_by(
        &self,
        layer: usize,
        x: &Tensor,
        f: impl FnOnce([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<[Tensor; 2]> {
        let missing = || Error::setting("layer", format!("is {layer} of {}", self.layers.len()), "count from 0");
        let block = self.layers.get(layer).ok_or_else(missing)?;
        block.attend_by(x, &self.rotary.positions(0, x.dim(1)?, x.dtype())?, f)
    }

    /// What the head reads, of the stream `[B, T, d]` behind the last layer.
    ///
    /// # Errors
    /// What the device reports.
    pub fn last(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// The keys of whole sequences as queries meet them, normalised and turned, `[B, T, K, D]`, of the stream x `[B, T, d]` that enters a layer.
    ///
    /// # Errors
    /// A layer that there is not; what the device reports.
    pub fn keys(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let missing = || Error::setting("layer", format!("is {layer} of {}", self.layers.len()), "count from 0");
        let block = self.layers.get(layer).ok_or_else(missing)?;
        block.keys(x, &self.rotary.positions(0, x.dim(1)?, x.dtype())?)
    }

    /// With attention to these pairs in routed passes, in place of what is declared.
    pub(super) fn set_attention(&mut self, spec: &AttentionSpec) -> Result<()> {
        let Self { layers, cfg, .. } = self;
        layers.iter_mut().try_for_each(|layer| layer.set_pairs(spec, cfg))
    }

    /// With the main directions of each layer's keys, `[K, r or more, D]`, where attention reads any.
    pub(super) fn set_key_directions(&mut self, directions: &[Tensor]) -> Result<()> {
        if directions.len() != self.layers.len() {
            let problem = format!("there are some for {} layers of {}", directions.len(), self.layers.len());
            return Err(Error::setting("directions", problem, "fit them on this model with exp_directions"));
        }
        self.layers.iter_mut().zip(directions).try_for_each(|(layer, own)| layer.set_key_directions(own))
    }

    /// From ∂L/∂hidden down to the lowest layer where something learns or is asked; answers by layer, none below it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn backward(
        &self,
        saved: Saved<F>,
        dhidden: &Tensor,
        learn: &Learn,
        grads: &mut Grads,
    ) -> Result<Vec<Answers>> {
        let Saved { ids, mut blocks, last } = saved;
        let embedded = grads.learns(&self.embed_tokens);
        let asked = |layer: &Block<F>| learn.image.is_some() || layer.learns(learn, grads);
        let lowest = if embedded { 0 } else { self.layers.iter().position(asked).unwrap_or(self.layers.len()) };
        let mut answers = vec![Answers::default(); self.layers.len()];
        let mut dx = Some(self.norm.backward(&last, dhidden, grads)?);
        for (at, layer) in self.layers.iter().enumerate().skip(lowest).rev() {
            let (Some(saved), Some(dout)) = (blocks.pop(), dx.take()) else { break };
            (dx, answers[at]) = layer.backward(saved, &dout, learn, embedded || at > lowest, grads)?;
        }
        if let Some(dx) = dx.filter(|_| embedded) {
            embedding::backward(&ids, &self.embed_tokens, &dx, grads)?;
        }
        Ok(answers)
    }

    /// Whether anything of it learns, or is asked.
    pub(super) fn takes_gradient(&self, learn: &Learn, grads: &Grads) -> bool {
        learn.image.is_some()
            || grads.learns(&self.embed_tokens)
            || self.norm.learns(grads)
            || self.layers.iter().any(|layer| layer.learns(learn, grads))
    }

    /// The decoder layers.
    pub fn layers(&self) -> &[Block<F>] {
        &self.layers
    }

    /// The configuration.
    pub fn config(&self) -> &Arch {
        &self.cfg
    }

    pub(super) fn embed_tokens(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// The norm behind the last layer.
    #[cfg(feature = "cuda")]
    pub(super) fn last_norm(&self) -> &RmsNorm {
        &self.norm
    }

    #[cfg(feature = "cuda")]
    pub(super) fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// Whether the angles of so many positions are in the table.
    #[cfg(feature = "cuda")]
    pub(super) fn has_angles(&self, positions: usize) -> Result<bool> {
        Ok(self.rotary.cos.dim(0)? >= positions)
    }
}
