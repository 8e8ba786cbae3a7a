//! Small models that several subjects run over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::decoder::{
    Answers, Arch, AttentionBias, CausalLm, Family, FeedForward, Keep, Learn, Mlp, Pass, RopeScaling, Trace,
};
use tinyonn::imaging::{Integral, NeuronMarks, Partition, PartitionSources, partition};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{self, MoeSpec, Variant};
use tinyonn::ops::Grads;

use crate::gradients::inputs;

pub(crate) const CPU: Device = Device::Cpu;

/// A decoder of two layers whose MLPs have `width` neurons.
pub(crate) fn config(width: usize, tied: bool) -> Arch {
    Arch {
        vocab_size: 37,
        hidden_size: 16,
        intermediate_size: width,
        hidden_act: "silu".into(),
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        max_position_embeddings: 64,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: tied,
        attention_bias: AttentionBias::None,
        family: Family::Qwen3,
        rope_scaling: RopeScaling::None,
        nope_layers: Vec::new(),
    }
}

/// Random weights of order one over √fan-in, far from the timid ones of a new model, so that every part shows in the logits.
pub(crate) fn weights(cfg: &Arch, dtype: DType) -> ParamStore {
    let mut store = ParamStore::new(&CPU);
    for (i, (name, shape)) in tinyonn::checkpoint::expected_tensors(cfg).into_iter().enumerate() {
        let draw = inputs(100 + i as u64, &[&shape]).remove(0);
        let value = match shape[..] {
            [_, fan_in] if !name.contains("embed") => (draw / (fan_in as f64).sqrt()).unwrap(),
            [_, _] => draw,
            _ => draw.affine(0.1, 1.0).unwrap(),
        };
        store.insert_stored(&name, value.to_dtype(dtype).unwrap()).unwrap();
    }
    store
}

pub(crate) fn variant(name: &str) -> &'static Variant {
    moe::variant(name).unwrap()
}

/// Experts of both layers' neurons; clustered strategies are given made-up profiles over three tasks, gate rows and activations.
pub(crate) fn partition(strategy: Partition, spec: &MoeSpec, cfg: &Arch) -> Result<Vec<Vec<u32>>> {
    let (layers, width) = (cfg.num_hidden_layers, cfg.intermediate_size);
    let profile =
        |task: usize, layer: usize| inputs((10 * task + layer) as u64, &[&[width]]).remove(0).to_vec1::<f64>().unwrap();
    let neurons = (0..3).map(|task| (0..layers).map(|layer| profile(task, layer)).collect()).collect();
    let integral = Integral { neurons };
    let tensors = |seed: u64, shape: [usize; 2]| -> Vec<Tensor> {
        (0..layers).map(|layer| inputs(seed + layer as u64, &[&shape]).remove(0)).collect()
    };
    let (gate_rows, hidden) = (tensors(50, [width, cfg.hidden_size]), tensors(60, [40, width]));
    let rows = |layer: usize| Ok(gate_rows[layer].clone());
    let marks: Vec<NeuronMarks> = hidden.iter().map(|hidden| NeuronMarks::of(hidden).unwrap()).collect();
    let sources = PartitionSources {
        integral: Some(&integral),
        gate_rows: Some(&rows),
        coactivation: Some(&hidden),
        marks: Some(&marks),
    };
    partition::assign(strategy, spec, (layers, width), sources, 3)
}

pub(crate) fn dense(cfg: &Arch, store: &ParamStore, dtype: DType) -> CausalLm<Mlp> {
    CausalLm::dense(cfg, &store.builder(dtype, |_| false)).unwrap()
}

pub(crate) fn sparse(cfg: &Arch, variant: &'static Variant, store: &ParamStore, dtype: DType) -> TinyOnnForCausalLm {
    TinyOnnForCausalLm::new(cfg, variant, &store.builder(dtype, |_| false)).unwrap()
}

/// Random ids `[b, t]` of the small vocabulary.
pub(crate) fn ids(shape: (usize, usize)) -> Tensor {
    tinyonn::checkpoint::tokens::random_tokens(37, shape, 5, &CPU).unwrap()
}

/// The bits of every value, through f32, which holds bf16 and f16 exactly.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// The largest absolute difference.
pub(crate) fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The words of a refusal.
pub(crate) fn message<T>(result: Result<T>) -> String {
    result.err().expect("must be refused").to_string()
}

/// The same parameters on another device.
pub(crate) fn on(store: &ParamStore, device: &Device) -> ParamStore {
    let mut moved = ParamStore::new(device);
    for (name, var) in store.iter() {
        moved.insert(name, var.as_detached_tensor().to_device(device).unwrap()).unwrap();
    }
    moved
}

/// Which way a pass goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Forward,
    Backward,
}

/// What is done each time that a pass reaches a feed-forward, before it.
pub(crate) type Hook = Arc<dyn Fn(Way) -> Result<()> + Send + Sync>;

/// An MLP behind a [`Hook`].
pub(crate) struct Hooked(Mlp, Hook);

impl FeedForward for Hooked {
    type Saved = <Mlp as FeedForward>::Saved;

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Self::Saved>)> {
        (self.1)(Way::Forward)?;
        self.0.forward(x, pass)
    }

    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)> {
        (self.1)(Way::Backward)?;
        self.0.backward(saved, dy, learn, input, grads)
    }

    fn learns(&self, learn: &Learn, grads: &Grads) -> bool {
        self.0.learns(learn, grads)
    }
}

/// A dense model whose feed-forwards share one hook.
pub(crate) fn hooked(
    cfg: &Arch,
    vb: &VarBuilder<'_>,
    hook: impl Fn(Way) -> Result<()> + Send + Sync + 'static,
) -> CausalLm<Hooked> {
    let hook: Hook = Arc::new(hook);
    let build = |layer, vb: VarBuilder<'_>| Ok(Hooked(Mlp::new(cfg, layer, &vb)?, hook.clone()));
    CausalLm::new(cfg, vb, build).unwrap()
}

/// An MLP that counts the positions it reads.
pub(crate) struct Counting(Mlp, Arc<AtomicUsize>);

impl FeedForward for Counting {
    type Saved = <Mlp as FeedForward>::Saved;

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Trace, Option<Self::Saved>)> {
        self.1.fetch_add(x.elem_count() / x.dim(2)?, Ordering::Relaxed);
        self.0.forward(x, pass)
    }

    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        learn: &Learn,
        input: bool,
        grads: &mut Grads,
    ) -> Result<(Option<Tensor>, Answers)> {
        self.0.backward(saved, dy, learn, input, grads)
    }

    fn learns(&self, learn: &Learn, grads: &Grads) -> bool {
        self.0.learns(learn, grads)
    }
}

/// A dense model, and how many positions its feed-forwards have read.
pub(crate) fn counting(cfg: &Arch, vb: &VarBuilder<'_>) -> (CausalLm<Counting>, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    let build = |layer, vb: VarBuilder<'_>| Ok(Counting(Mlp::new(cfg, layer, &vb)?, read.clone()));
    (CausalLm::new(cfg, vb, build).unwrap(), read.clone())
}

/// What a forward and a backward pass over text say.
pub(crate) struct Learnt {
    /// `[B, T]`.
    pub(crate) losses: Tensor,
    pub(crate) traces: Vec<Trace>,
    pub(crate) answers: Vec<Answers>,
    pub(crate) grads: Grads,
}

/// Forward and backward of the sum of the losses of `targets`; the parameters of `store` that `picked` names have a place for their
/// gradients.
pub(crate) fn learnt<F: FeedForward>(
    model: &CausalLm<F>,
    (store, picked): (&ParamStore, &dyn Fn(&str) -> bool),
    (ids, targets): (&Tensor, &Tensor),
    pass: &Pass,
    learn: &Learn,
) -> Learnt {
    let weights = store.iter().filter(|(name, _)| picked(name)).map(|(_, var)| (var.as_tensor(), 0));
    let mut grads = Grads::new(weights).unwrap();
    let pass = if pass.keep == Keep::Nothing { pass.kept() } else { pass.clone() };
    let forward = model.forward(ids, targets, &pass).unwrap();
    let ones = forward.losses.ones_like().unwrap();
    let answers = model.backward(forward.saved, &ones, learn, &mut grads).unwrap();
    Learnt { losses: forward.losses, traces: forward.traces, answers, grads }
}

/// With `RUST_BACKTRACE` candle writes the calls that led to an error behind it: no message of ours has them.
#[test]
fn a_message_holds_no_backtrace() {
    let backtrace = || Box::new(std::backtrace::Backtrace::force_capture());
    let inner =
        candle_core::Error::WithBacktrace { inner: Box::new(candle_core::Error::UnwrapNone), backtrace: backtrace() };
    let error = candle_core::Error::WithBacktrace { inner: Box::new(inner.context("layer 3")), backtrace: backtrace() };
    assert_eq!(tinyonn::Error::from(error).to_string(), "layer 3\nunwrap none");
}
