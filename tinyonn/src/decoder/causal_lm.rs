//! The decoder with its language-model head.

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};
use tinyonn_spec::AttentionSpec;

use super::{Active, Answers, Arch, Block, Decoder, FeedForward, Keep, KvCache, Learn, Mlp, Pass, Trace, model};
use crate::ops::{Grads, cross_entropy, linear};
use crate::{Error, Result};

/// A causal language model over any feed-forward.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::decoder::{CausalLm, Mlp, Pass};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// // What `dense` does: an MLP in every feed-forward slot.
/// let model = CausalLm::new(&cfg, &store.builder(DType::F32, |_| false), |layer, vb| Mlp::new(&cfg, layer, &vb))?;
/// assert_eq!((model.config(), model.model().layers().len()), (&cfg, 4));
///
/// let (ids, targets) = (Tensor::new(&[[3u32, 1, 4]], &Device::Cpu)?, Tensor::new(&[[1u32, 4, u32::MAX]], &Device::Cpu)?);
/// let (hidden, _) = model.hidden(&ids, &Pass::all())?;
/// let (logits, traces) = model.traced_logits(&ids, &Pass::all(), None)?;
/// let by_hand = hidden.squeeze(0)?.matmul(&model.head().t()?)?;
/// assert!((logits.squeeze(0)? - by_hand)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
/// assert_eq!(traces.len(), 4);
/// let losses = model.token_losses(&ids, &targets, &Pass::all())?.to_vec2::<f32>()?;
/// assert!(losses[0][0] > 0.0 && losses[0][2] == 0.0); // the last token has no target
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CausalLm<F> {
    model: Decoder<F>,
    pub(super) lm_head: Tensor,
}

impl CausalLm<Mlp> {
    /// The dense model.
    ///
    /// # Errors
    /// A configuration that cannot work; a missing or misshapen weight.
    pub fn dense(cfg: &Arch, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::new(cfg, vb, |layer, vb| Mlp::new(cfg, layer, &vb))
    }
}

impl<F: FeedForward> CausalLm<F> {
    /// Reads or initialises the weights; `feed_forward(layer, vb)` builds each layer's `mlp`.
    ///
    /// # Errors
    /// A configuration that cannot work; a missing or misshapen weight.
    pub fn new(
        cfg: &Arch,
        vb: &VarBuilder<'_>,
        feed_forward: impl FnMut(usize, VarBuilder<'_>) -> Result<F>,
    ) -> Result<Self> {
        let model = Decoder::new(cfg, &vb.pp("model"), feed_forward)?;
        let lm_head = if cfg.tie_word_embeddings {
            model.embed_tokens().clone()
        } else {
            let shape = (cfg.vocab_size, cfg.hidden_size);
            vb.pp("lm_head").get_with_hints(shape, "weight", Init::Randn { mean: 0.0, stdev: 0.02 })?
        };
        Ok(Self { model, lm_head })
    }

    /// With attention to these pairs in routed passes, in place of what its feed-forwards declare: of a dense model as well, whose routed passes differ from others in
    /// nothing else.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    /// use tinyonn::decoder::{CausalLm, Pass};
    /// use tinyonn::moe::AttentionSpec;
    /// use tinyonn::phases::RunConfig;
    ///
    /// let cfg = RunConfig::default().dense.arch(64, "silu");
    /// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    /// let few: AttentionSpec = "pairs(keep = keys(3), index = components(4), near = 1, first = 1)".parse().unwrap();
    /// let lm = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?.with_attention(&few)?;
    /// assert_eq!(lm.attention(), few);
    /// let ids = Tensor::new(&[[3u32, 1, 4, 1, 5, 9, 2, 6]], &Device::Cpu)?;
    /// let [few, all] = [Pass::routed(), Pass::all()].map(|pass| lm.logits(&ids, &pass, None));
    /// assert_ne!(few?.to_vec3::<f32>()?, all?.to_vec3::<f32>()?);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What a model of this shape cannot compute.
    pub fn with_attention(mut self, spec: &AttentionSpec) -> Result<Self> {
        self.model.set_attention(spec)?;
        Ok(self)
    }

    /// Which pairs attention computes in routed passes.
    pub fn attention(&self) -> AttentionSpec {
        self.model.layers().first().map_or(AttentionSpec::Dense, Block::pairs)
    }

    /// With the main directions of each layer's keys, `[K, r or more, D]`, which attention by `index = directions(r)` reads.
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use tinyonn::decoder::{CausalLm, FeedForward};
    ///
    /// fn with<F: FeedForward>(lm: CausalLm<F>, directions: &[Tensor]) -> tinyonn::Result<CausalLm<F>> {
    ///     lm.with_key_directions(directions)
    /// }
    /// ```
    ///
    /// # Errors
    /// Directions of other layers or heads, or fewer than the index reads.
    pub fn with_key_directions(mut self, directions: &[Tensor]) -> Result<Self> {
        self.model.set_key_directions(directions)?;
        Ok(self)
    }

    /// The decoder's output `[B, T, d]`, what the head reads; and what was asked of each layer.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn hidden(&self, ids: &Tensor, pass: &Pass) -> Result<(Tensor, Vec<Trace>)> {
        let (hidden, traces, _) = self.model.forward(ids, &inference(&*self.with_surprisal(ids, pass)?), None)?;
        Ok((hidden, traces))
    }

    /// Logits `[B, T, V]` of token ids `[B, T]`, in the model's dtype.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn logits(&self, ids: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<Tensor> {
        Ok(self.traced_logits(ids, pass, cache)?.0)
    }

    /// As [`logits`](Self::logits); and what was asked of each layer.
    ///
    /// # Errors
    /// As above.
    pub fn traced_logits(
        &self,
        ids: &Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor, Vec<Trace>)> {
        let pass = inference(&*self.with_surprisal(ids, pass)?);
        let (hidden, traces, _) = self.model.forward(ids, &pass, cache)?;
        Ok((linear::forward(&hidden, &self.lm_head, None)?, traces))
    }

    /// The cross-entropy of each target `[B, T]` in nats, f32; 0 where the target is `u32::MAX` (none).
    /// The logits are never held whole.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; shapes or devices that do not go together.
    pub fn token_losses(&self, ids: &Tensor, targets: &Tensor, pass: &Pass) -> Result<Tensor> {
        Ok(self.forward(ids, targets, &inference(pass))?.losses)
    }

    /// As [`token_losses`](Self::token_losses); with what was asked of each layer, and what the backward needs, if one follows
    /// ([`Pass::keep`]).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    /// use tinyonn::ops::Grads;
    /// use tinyonn::decoder::{Learn, Pass, Arch, CausalLm};
    ///
    /// let cfg = Arch::from_json(&serde_json::json!({
    ///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    ///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    /// }), "config.json")?;
    /// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
    /// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| true))?;
    /// let (ids, targets) = (Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?, Tensor::new(&[[2u32, 3, 4]], &Device::Cpu)?);
    ///
    /// let mut grads = Grads::new(store.iter().map(|(_, var)| (var.as_tensor(), 0)))?;
    /// let forward = model.forward(&ids, &targets, &Pass::all().kept())?;
    /// model.backward(forward.saved, &forward.losses.ones_like()?, &Learn::default(), &mut grads)?;
    /// assert!(store.iter().all(|(_, var)| grads.get(var).is_some()));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// As above.
    pub fn forward(&self, ids: &Tensor, targets: &Tensor, pass: &Pass) -> Result<Forward<F>> {
        let pass = &*self.with_surprisal(ids, pass)?;
        let (hidden, traces, decoder) = self.model.forward(ids, pass, None)?;
        let keep = pass.keep != Keep::Nothing;
        let (losses, head) = cross_entropy::forward(&hidden, &self.lm_head, targets, keep)?;
        let saved = decoder.zip(head).map(|(decoder, head)| Saved { decoder, head, shape: hidden.dims().to_vec() });
        Ok(Forward { losses, traces, saved })
    }

    /// From the gradient of each token's loss, `[B, T]`, to those of the weights that learn, and to what imaging asks of each layer.
    ///
    /// # Errors
    /// A forward pass that kept nothing; what the device reports.
    pub fn backward(
        &self,
        saved: Option<Saved<F>>,
        dlosses: &Tensor,
        learn: &Learn,
        grads: &mut Grads,
    ) -> Result<Vec<Answers>> {
        let Some(Saved { decoder, head, shape }) = saved else {
            return Err(Error::setting("keep", "nothing was kept of the forward pass", "use Pass::kept()"));
        };
        let below = self.model.takes_gradient(learn, grads);
        match cross_entropy::backward(head, &self.lm_head, dlosses, below, grads)? {
            Some(dhidden_td) => self.model.backward(decoder, &dhidden_td.reshape(shape)?, learn, grads),
            None => Ok(vec![Answers::default(); self.model.layers().len()]),
        }
    }

    /// `pass` with the surprisal of every token given those before it, where routing reads it: a first pass, all active. The first
    /// token of a sequence is as surprising as one of the vocabulary drawn at random.
    pub(super) fn with_surprisal<'a>(&self, ids: &Tensor, pass: &'a Pass) -> Result<Cow<'a, Pass>> {
        let reads = self.model.layers().iter().any(|layer| layer.mlp().reads_surprisal());
        if !reads || pass.surprisal.is_some() || !matches!(pass.active, Active::Routed) {
            return Ok(Cow::Borrowed(pass));
        }
        let (b, t) = ids.dims2()?;
        let first = Tensor::full((self.config().vocab_size as f32).ln(), (b, 1), ids.device())?;
        let surprisal = if t == 1 {
            first
        } else {
            let (hidden, ..) = self.model.forward(&ids.narrow(1, 0, t - 1)?, &Pass::all(), None)?;
            let next = ids.narrow(1, 1, t - 1)?.to_dtype(DType::U32)?.contiguous()?;
            let (losses, _) = cross_entropy::forward(&hidden, &self.lm_head, &next, false)?;
            Tensor::cat(&[first, losses.reshape((b, t - 1))?], 1)?
        };
        Ok(Cow::Owned(Pass { surprisal: Some(surprisal), ..pass.clone() }))
    }

    /// W `[V, d]`, by which hidden states become logits.
    pub fn head(&self) -> &Tensor {
        &self.lm_head
    }

    /// The decoder.
    pub fn model(&self) -> &Decoder<F> {
        &self.model
    }

    /// The configuration.
    pub fn config(&self) -> &Arch {
        self.model.config()
    }
}

/// What a forward pass over text says.
///
/// ```
/// use tinyonn::decoder::{FeedForward, Forward};
///
/// fn mean<F: FeedForward>(forward: &Forward<F>) -> tinyonn::Result<f32> {
///     Ok(forward.losses.mean_all()?.to_scalar()?)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Forward<F: FeedForward> {
    /// The cross-entropy of each target, `[B, T]` f32 in nats; 0 where there is none.
    pub losses: Tensor,
    /// What was asked, by layer.
    pub traces: Vec<Trace>,
    /// What the backward needs, if the pass kept it.
    pub saved: Option<Saved<F>>,
}

/// What the backward of a language model needs.
///
/// ```
/// use candle_core::Tensor;
/// use tinyonn::Result;
/// use tinyonn::decoder::causal_lm::Saved;
/// use tinyonn::decoder::{Answers, CausalLm, FeedForward, Learn};
/// use tinyonn::ops::Grads;
///
/// /// Back from the mean loss of what a forward pass kept.
/// fn back<F: FeedForward>(model: &CausalLm<F>, saved: Option<Saved<F>>, losses: &Tensor, grads: &mut Grads) -> Result<Vec<Answers>> {
///     let each = (losses.ones_like()? / losses.elem_count() as f64)?;
///     model.backward(saved, &each, &Learn::default(), grads)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct Saved<F: FeedForward> {
    decoder: model::Saved<F>,
    head: cross_entropy::Saved,
    /// Of the decoder's output.
    shape: Vec<usize>,
}

pub(super) fn inference(pass: &Pass) -> Pass {
    Pass { keep: Keep::Nothing, ..pass.clone() }
}
