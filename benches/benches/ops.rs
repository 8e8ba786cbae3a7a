//! Each fused operation against the same function composed of candle's own differentiable operations, forward and backward.
//!
//! Both sides differentiate with `ops::backward` and form the gradients of all inputs. The shapes are those of the default dense
//! model: 1024 tokens of 128 channels, 384 neurons, 4 query and 2 key heads of 32, 2048 tokens in the vocabulary.

use benches::{BATCH, LENGTH, Side, compare, config, run, tokens, values};
use candle_core::{D, Device, Tensor, Var};
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::ops::{self, MlpWeights, Silu};
use tinyonn::qwen3::Qwen3Config;

type Function<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// Times `fused` and `plain` on variables of these shapes.
fn bench(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    shapes: &[&[usize]],
    [fused, plain]: [Function<'_>; 2],
) -> Result<()> {
    let vars = shapes
        .iter()
        .zip(0..)
        .map(|(shape, seed)| Ok(Var::from_tensor(&values(seed, shape, device)?)?))
        .collect::<Result<Vec<Var>>>()?;
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let pass = |function: Function<'_>| {
        ops::backward(&function(&inputs)?.sum_all()?)?;
        Ok(())
    };
    let sides = [Side::new("fused", || pass(fused)), Side::new("plain", || pass(plain))];
    compare(criterion, device, &format!("ops/{name}"), sides, Some(1.0))
}

fn attention(criterion: &mut Criterion, device: &Device, cfg: &Qwen3Config) -> Result<()> {
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
    let fused = |xs: &[Tensor]| ops::causal_attention(&xs[0], &xs[1], &xs[2]);
    bench(criterion, device, "attention", &[&q, &kv, &kv], [&fused, &plain])
}

fn rms_norm(criterion: &mut Criterion, device: &Device, cfg: &Qwen3Config) -> Result<()> {
    let d = cfg.hidden_size;
    let fused = |xs: &[Tensor]| ops::rms_norm(&xs[0], &xs[1], 1e-6);
    let plain = |xs: &[Tensor]| candle_nn::ops::rms_norm_slow(&xs[0], &xs[1], 1e-6);
    bench(criterion, device, "rms_norm", &[&[BATCH * LENGTH, d], &[d]], [&fused, &plain])
}

fn glu_mlp(criterion: &mut Criterion, device: &Device, cfg: &Qwen3Config) -> Result<()> {
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let fused = |xs: &[Tensor]| {
        ops::glu_mlp(&xs[0], MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu }, None, None)
    };
    let plain = |xs: &[Tensor]| {
        let h = (candle_nn::ops::silu(&xs[0].matmul(&xs[1].t()?)?)? * xs[0].matmul(&xs[2].t()?)?)?;
        h.matmul(&xs[3].t()?)
    };
    bench(criterion, device, "glu_mlp", &[&[BATCH * LENGTH, d], &[i, d], &[i, d], &[d, i]], [&fused, &plain])
}

fn head_cross_entropy(criterion: &mut Criterion, device: &Device, cfg: &Qwen3Config) -> Result<()> {
    let (d, vocab) = (cfg.hidden_size, cfg.vocab_size);
    let targets = tokens(vocab, 0, device)?.flatten_all()?;
    let fused = |xs: &[Tensor]| ops::head_cross_entropy(&xs[0], &xs[1], &targets);
    let plain = |xs: &[Tensor]| candle_nn::loss::cross_entropy(&xs[0].matmul(&xs[1].t()?)?, &targets);
    bench(criterion, device, "head_cross_entropy", &[&[BATCH * LENGTH, d], &[vocab, d]], [&fused, &plain])
}

fn main() -> Result<()> {
    let cfg = config(128, 384);
    run(|criterion, device| {
        attention(criterion, device, &cfg)?;
        rms_norm(criterion, device, &cfg)?;
        glu_mlp(criterion, device, &cfg)?;
        head_cross_entropy(criterion, device, &cfg)
    })
}
