//! A cache that lets go of what drew little attention so far (H2O: Zhang et al., 2023), a position behind another.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use tinyonn::moe::PairsSpec;

/// A cache of a key head: which positions it holds, ascending, and how much attention each has drawn.
struct Cache {
    held: Vec<usize>,
    drawn: Vec<f32>,
}

/// y `[1, T − first, H, D]` of the positions from `first` on, of queries `[1, T, H, D]`, keys and values `[1, T, K, D]`, where the cache of a key head holds as many as `pairs` keeps: half of them the
/// nearest, the others those that its queries have attended to most. The first positions attend to all. Returns how many pairs are computed, mean over key heads.
pub(super) fn attend([q, k, v]: [&Tensor; 3], pairs: &PairsSpec, first: usize) -> Result<(Tensor, f64)> {
    let (_, t, heads, d) = q.dims4()?;
    let kv = k.dim(2)?;
    let by_head = |x: &Tensor| -> Result<Vec<f32>> {
        let x = x.squeeze(0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        x.transpose(0, 1)?.contiguous()?.flatten_all()?.to_vec1()
    };
    let (qs, ks, vs) = (by_head(q)?, by_head(k)?, by_head(v)?);
    let group = heads / kv;
    let of_head = |head: usize| {
        let own = |of: usize| of * t * d..(of + 1) * t * d;
        let queries: Vec<&[f32]> = (0..group).map(|member| &qs[own(head * group + member)]).collect();
        let (keys, values) = (&ks[own(head)], &vs[own(head)]);
        let mut cache = Cache { held: Vec::with_capacity(t), drawn: vec![0.0; t] };
        let (mut y, mut computed) = (vec![0f32; group * (t - first) * d], 0usize);
        for at in 0..t {
            cache.held.push(at);
            if at >= first {
                cache.let_go(at, pairs.keys(at + 1));
                computed += cache.held.len();
            }
            for (member, queries) in queries.iter().enumerate() {
                let p = cache.attention(&queries[at * d..][..d], keys);
                for (p, j) in p.iter().zip(&cache.held) {
                    cache.drawn[*j] += p;
                }
                if at >= first {
                    let y = &mut y[(member * (t - first) + at - first) * d..][..d];
                    for (p, j) in p.iter().zip(&cache.held) {
                        y.iter_mut().zip(&values[j * d..][..d]).for_each(|(y, v)| *y += p * v);
                    }
                }
            }
        }
        (y, computed)
    };
    let made: Vec<(Vec<f32>, usize)> = (0..kv).into_par_iter().map(of_head).collect();
    let computed = made.iter().map(|(_, computed)| *computed as f64).sum::<f64>() / kv as f64;
    let y: Vec<f32> = made.into_iter().flat_map(|(y, _)| y).collect();
    let y = Tensor::from_vec(y, (heads, t - first, d), &Device::Cpu)?.to_device(q.device())?;
    Ok((y.transpose(0, 1)?.contiguous()?.unsqueeze(0)?, computed))
}

impl Cache {
    /// Down to `most` positions: the nearest half stays.
    fn let_go(&mut self, at: usize, most: usize) {
        let near = at + 1 - (most / 2).clamp(1, at + 1);
        while self.held.len() > most.max(1) {
            let open = self.held.iter().take_while(|j| **j < near).enumerate();
            let least = open.min_by(|(_, a), (_, b)| self.drawn[**a].total_cmp(&self.drawn[**b]));
            let place = least.map_or(0, |(place, _)| place);
            self.held.remove(place);
        }
    }

    /// Softmax of q k / √D over what it holds.
    fn attention(&self, q: &[f32], keys: &[f32]) -> Vec<f32> {
        let scale = (q.len() as f32).powf(-0.5);
        let mut p: Vec<f32> = self.held.iter().map(|j| scale * dot(q, &keys[j * q.len()..][..q.len()])).collect();
        let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.iter_mut().for_each(|p| *p = (*p - max).exp());
        let total: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
        p
    }
}

/// In eight sums, which a processor forms at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}
