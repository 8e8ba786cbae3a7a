//! The definition of surprise, taken literally: every token gets weights of its own, equal in value to the shared ones, and
//! candle's tape differentiates the loss with respect to them. Token t's part of the gradient of a shared weight is then
//! the gradient of t's own copy; nothing here knows that it is an outer product. All in f64, from candle's operations.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use tinyonn::checkpoint::ParamStore;
use tinyonn::decoder::Arch;

use crate::activation::composed;

/// What one sequence does to the neurons of one layer, `[t][i]`.
pub(crate) struct Layer {
    pub(crate) activation: Vec<Vec<f64>>,
    pub(crate) surprise: Vec<Vec<f64>>,
}

/// All layers, and the sum of the losses.
pub(crate) struct Image {
    pub(crate) layers: Vec<Layer>,
    pub(crate) loss: f64,
}

/// Images one sequence; `targets` may be shorter than `ids`, whose last positions then have none.
pub(crate) fn image(cfg: &Arch, store: &ParamStore, ids: &[u32], targets: &[u32]) -> Image {
    let model = Reference { cfg, store, t: ids.len() };
    let (logits, own) = model.forward(ids).unwrap();
    let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().narrow(0, 0, targets.len()).unwrap();
    let index = Tensor::new(targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let loss = log_p.gather(&index, 1).unwrap().sum_all().unwrap().neg().unwrap();
    let grads = loss.backward().unwrap();
    let layers = own
        .iter()
        .map(|own| {
            // Each copy's gradient, its values of one neuron along the last dimension.
            let squares = |var: &Var, along: usize| grads.get(var).unwrap().sqr().unwrap().sum(along).unwrap();
            let rows = (squares(&own.gate, 2) + squares(&own.up, 2)).unwrap();
            let surprise = (rows + squares(&own.down, 1)).unwrap().sqrt().unwrap();
            Layer { activation: own.hidden.abs().unwrap().to_vec2().unwrap(), surprise: surprise.to_vec2().unwrap() }
        })
        .collect();
    Image { layers, loss: loss.to_scalar().unwrap() }
}

/// Every token's copy of one layer's weights.
struct Own {
    /// `[t, i, d]`.
    gate: Var,
    /// `[t, i, d]`.
    up: Var,
    /// `[t, d, i]`.
    down: Var,
    /// h, `[t, i]`.
    hidden: Tensor,
}

struct Reference<'a> {
    cfg: &'a Arch,
    store: &'a ParamStore,
    t: usize,
}

impl Reference<'_> {
    fn weight(&self, name: &str) -> Tensor {
        self.store.get(name).unwrap().as_detached_tensor().to_dtype(DType::F64).unwrap()
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let r = (x.sqr()?.mean_keepdim(D::Minus1)? + self.cfg.rms_norm_eps)?.sqrt()?;
        x.broadcast_div(&r)?.broadcast_mul(&self.weight(&format!("{name}.weight")))
    }

    /// x `[t, ..]` by a matrix `[out, in]`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.matmul(&self.weight(&format!("{name}.weight")).t()?)
    }

    fn rotate(&self, x_htd: &Tensor) -> Result<Tensor> {
        let half = self.cfg.head_dim / 2;
        let angle =
            |t: usize, j: usize| t as f64 * self.cfg.rope_theta.powf(-((2 * j) as f64) / self.cfg.head_dim as f64);
        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f64> = (0..self.t).flat_map(|t| (0..half).map(move |j| f(angle(t, j)))).collect();
            Tensor::from_vec(values, (1, self.t, half), &Device::Cpu)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let (a, b) = (x_htd.narrow(2, 0, half)?, x_htd.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 2)
    }

    fn attention(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (cfg, t) = (self.cfg, self.t);
        let heads = |which: &str, count: usize| -> Result<Tensor> {
            self.linear(x, &format!("{name}.{which}_proj"))?.reshape((t, count, cfg.head_dim))
        };
        let each = |x_htd: &Tensor| -> Result<Tensor> {
            let repeats = cfg.num_attention_heads / cfg.num_key_value_heads;
            let shape = (cfg.num_key_value_heads, repeats, t, cfg.head_dim);
            x_htd.unsqueeze(1)?.broadcast_as(shape)?.reshape((cfg.num_attention_heads, t, cfg.head_dim))
        };
        let by_head = |x_thd: Tensor| x_thd.transpose(0, 1)?.contiguous();
        let q = by_head(self.norm(&heads("q", cfg.num_attention_heads)?, &format!("{name}.q_norm"))?)?;
        let k = by_head(self.norm(&heads("k", cfg.num_key_value_heads)?, &format!("{name}.k_norm"))?)?;
        let (q, k) = (self.rotate(&q)?, each(&self.rotate(&k)?)?);
        let v = each(&by_head(heads("v", cfg.num_key_value_heads)?)?)?;
        let hidden: Vec<f64> = (0..t).flat_map(|i| (0..t).map(move |j| if j > i { -1e9 } else { 0.0 })).collect();
        let mask = Tensor::from_vec(hidden, (1, t, t), &Device::Cpu)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (cfg.head_dim as f64).sqrt())?.broadcast_add(&mask)?;
        let read = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?.transpose(0, 1)?.contiguous()?;
        self.linear(&read.reshape((t, ()))?, &format!("{name}.o_proj"))
    }

    /// The MLP with a copy of its weights for each token.
    fn mlp(&self, x: &Tensor, name: &str) -> Result<(Tensor, Own)> {
        let copies = |which: &str| -> Result<Var> {
            let shared = self.weight(&format!("{name}.{which}_proj.weight"));
            // In memory W_d has a row a neuron.
            let shared = if which == "down" { shared.t()? } else { shared };
            let (rows, columns) = shared.dims2()?;
            Var::from_tensor(&shared.unsqueeze(0)?.broadcast_as((self.t, rows, columns))?.contiguous()?)
        };
        let (gate, up, down) = (copies("gate")?, copies("up")?, copies("down")?);
        let apply = |weights: &Var, x: &Tensor| weights.broadcast_mul(&x.unsqueeze(1)?)?.sum(2);
        let g = apply(&gate, x)?;
        let hidden = composed(&self.cfg.hidden_act, &g, &apply(&up, x)?)?;
        let y = apply(&down, &hidden)?;
        Ok((y, Own { gate, up, down, hidden }))
    }

    fn forward(&self, ids: &[u32]) -> Result<(Tensor, Vec<Own>)> {
        let mut x = self.weight("model.embed_tokens.weight").index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        let mut all = Vec::new();
        for layer in 0..self.cfg.num_hidden_layers {
            let at = format!("model.layers.{layer}");
            let normed = self.norm(&x, &format!("{at}.input_layernorm"))?;
            x = (x + self.attention(&normed, &format!("{at}.self_attn"))?)?;
            let normed = self.norm(&x, &format!("{at}.post_attention_layernorm"))?;
            let (y, own) = self.mlp(&normed, &format!("{at}.mlp"))?;
            x = (x + y)?;
            all.push(own);
        }
        let logits = self.linear(&self.norm(&x, "model.norm")?, "lm_head")?;
        Ok((logits, all))
    }
}
