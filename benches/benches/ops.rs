//! Each fused operation against the same function composed of candle's own differentiable operations, forward and backward.
//!
//! Both sides form the gradients of all inputs: one goes back by the operation's own backward, the other on candle's tape. The shapes are those of the default dense
//! model: 1024 tokens of 128 channels, 384 neurons, 4 query and 2 key heads of 32, 2048 tokens in the vocabulary.

use benches::{BATCH, LENGTH, Side, compare, config, run, tokens, values};
use candle_core::{D, Device, Tensor, Var};
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::decoder::Arch;
use tinyonn::ops::{Grads, Learners, MlpWeights, Silu, SlicedMlp as _, attention, cross_entropy, glu_mlp, rms_norm};

/// Forward and backward of the sum of the outputs; the gradients of weights go where they are told.
type Pair<'a> = &'a dyn Fn(&[Tensor], &mut Grads) -> candle_core::Result<()>;
type Function<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// Times `fused` and `plain` on variables of these shapes.
fn bench(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    shapes: &[&[usize]],
    (fused, plain): (Pair<'_>, Function<'_>),
) -> Result<()> {
    let vars = shapes
        .iter()
        .zip(0..)
        .map(|(shape, seed)| Ok(Var::from_tensor(&values(seed, shape, device)?)?))
        .collect::<Result<Vec<Var>>>()?;
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let mut grads = Grads::new(inputs.iter().map(|x| (x, 0)))?;
    let ours = || {
        grads.begin();
        Ok(fused(&inputs, &mut grads)?)
    };
    let theirs = || {
        plain(&inputs)?.sum_all()?.backward()?;
        Ok(())
    };
    let sides = [Side::new("fused", ours), Side::new("plain", theirs)];
    compare(criterion, device, &format!("ops/{name}"), sides, Some(1.0))
}

fn bench_attention(criterion: &mut Criterion, device: &Device, cfg: &Arch) -> Result<()> {
    let (heads, kv_heads, width) = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim);
    let mask: Vec<f32> =
        (0..LENGTH).flat_map(|i| (0..LENGTH).map(move |j| if j <= i { 0.0 } else { f32::NEG_INFINITY })).collect();
    let mask = Tensor::from_vec(mask, (LENGTH, LENGTH), device)?;
    let by_head = |x: &Tensor| {
        let repeat = heads / x.dim(2)?;
        let x = x.transpose(1, 2)?.unsqueeze(2)?.broadcast_as((BATCH, heads / repeat, repeat, LENGTH, width))?;
        x.contiguous()?.reshape((BATCH, heads, LENGTH, width))
    };
    let plain = |xs: &[Tensor]| {
        let scores = (by_head(&xs[0])?.matmul(&by_head(&xs[1])?.t()?)? / (width as f64).sqrt())?;
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
        p.matmul(&by_head(&xs[2])?)?.transpose(1, 2)?.contiguous()
    };
    let (q, kv) = ([BATCH, LENGTH, heads, width], [BATCH, LENGTH, kv_heads, width]);
    let fused = |xs: &[Tensor], _: &mut Grads| {
        let (y, saved) = attention::forward(&xs[0], &xs[1], &xs[2])?;
        attention::backward(&saved, &y.ones_like()?).map(drop)
    };
    bench(criterion, device, "attention", &[&q, &kv, &kv], (&fused, &plain))
}

fn bench_rms_norm(criterion: &mut Criterion, device: &Device, cfg: &Arch) -> Result<()> {
    let d = cfg.hidden_size;
    let fused = |xs: &[Tensor], grads: &mut Grads| {
        let y = rms_norm::forward(&xs[0], &xs[1], 1e-6)?;
        rms_norm::backward(&xs[0], &xs[1], 1e-6, &y.ones_like()?, grads).map(drop)
    };
    let plain = |xs: &[Tensor]| candle_nn::ops::rms_norm_slow(&xs[0], &xs[1], 1e-6);
    bench(criterion, device, "rms_norm", &[&[BATCH * LENGTH, d], &[d]], (&fused, &plain))
}

fn bench_glu_mlp(criterion: &mut Criterion, device: &Device, cfg: &Arch) -> Result<()> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let fused = |xs: &[Tensor], grads: &mut Grads| {
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
        let (y, saved) = glu_mlp::forward(&xs[0], weights, None)?;
        let deltas = saved.deltas(&y.ones_like()?)?;
        saved.weight_gradients(weights, &deltas, &Learners::All, grads)?;
        saved.input_gradient(&deltas).map(drop)
    };
    let plain = |xs: &[Tensor]| {
        let h = (candle_nn::ops::silu(&xs[0].matmul(&xs[1].t()?)?)? * xs[0].matmul(&xs[2].t()?)?)?;
        h.matmul(&xs[3])
    };
    bench(criterion, device, "glu_mlp", &[&[BATCH * LENGTH, d], &[i, d], &[i, d], &[i, d]], (&fused, &plain))
}

fn bench_cross_entropy(criterion: &mut Criterion, device: &Device, cfg: &Arch) -> Result<()> {
    let (d, vocab) = (cfg.hidden_size, cfg.vocab_size);
    let targets = tokens(vocab, 0, (BATCH, LENGTH), device)?.flatten_all()?;
    let fused = |xs: &[Tensor], grads: &mut Grads| {
        let (losses, saved) = cross_entropy::forward(&xs[0], &xs[1], &targets, true)?;
        let Some(saved) = saved else { candle_core::bail!("nothing was kept") };
        cross_entropy::backward(saved, &xs[1], &losses.ones_like()?, true, grads).map(drop)
    };
    let plain = |xs: &[Tensor]| candle_nn::loss::cross_entropy(&xs[0].matmul(&xs[1].t()?)?, &targets);
    bench(criterion, device, "head_cross_entropy", &[&[BATCH * LENGTH, d], &[vocab, d]], (&fused, &plain))
}

fn main() -> Result<()> {
    let cfg = config(128, 384);
    run(|criterion, device| {
        bench_attention(criterion, device, &cfg)?;
        bench_rms_norm(criterion, device, &cfg)?;
        bench_glu_mlp(criterion, device, &cfg)?;
        bench_cross_entropy(criterion, device, &cfg)
    })
}
