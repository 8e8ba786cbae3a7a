//! Attention of a text to the keys that a method keeps, a tile of queries at a time.

use candle_core::{D, DType, Result, Tensor};
use tinyonn::moe::PairsSpec;
use tinyonn::ops::attention;

use super::kept::kept;
use super::scores::{Scores, Tile, seen};
use super::{Method, eight_bits, heavy_hitters};

/// Scores of a tile, at most, by where they are computed.
const SCORES: [usize; 2] = [1 << 22, 1 << 28];

/// Pairs of the positions that choose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// Those that are kept, mean over query heads.
    pub kept: f64,
    /// Rows of a cache that some head of a key head reads, mean over key heads.
    pub read: f64,
    /// All that are causal.
    pub causal: f64,
}

impl Counted {
    /// Together with others.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        let Self { kept, read, causal } = other;
        Self { kept: self.kept + kept, read: self.read + read, causal: self.causal + causal }
    }
}

/// y `[1, T, H, D]` of queries `[1, T, H, D]`, keys and values `[1, T, K, D]`, of which the first `prefill` attend to all; and what the others keep. Keys are scored in their main directions
/// `[K, r or more, D]` where the method reads these.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use experiments::attention::{Method, attend};
///
/// let random = |heads| Tensor::randn(0f32, 1f32, (1, 100, heads, 8), &Device::Cpu);
/// let (q, k, v) = (random(4)?, random(2)?, random(2)?);
/// let method = Method::MinMax { size: 4 };
/// let (y, counted) = attend(method, &method.pairs(0.25, 2, 1), None, [&q, &k, &v], 20)?;
/// assert_eq!(y.dims(), q.dims());
/// assert!((counted.kept / counted.causal - 0.25).abs() < 0.01); // n(t) is rounded up
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not go together; a method without its directions; what the device reports.
pub fn attend(
    method: Method,
    pairs: &PairsSpec,
    directions_krd: Option<&Tensor>,
    [q, k, v]: [&Tensor; 3],
    prefill: usize,
) -> Result<(Tensor, Counted)> {
    let t = q.dim(1)?;
    let first = prefill.min(t);
    if method == Method::Dense || first == t {
        return Ok((attention::forward(q, k, v)?.0, Counted::default()));
    }
    if matches!(method, Method::Directions { .. }) && directions_krd.is_none() {
        candle_core::bail!("attention: {} reads directions of keys, and there are none", method.name());
    }
    let part = |x: &Tensor, first: usize, count: usize| x.narrow(1, first, count)?.contiguous();
    let mut parts = Vec::new();
    if first > 0 {
        parts.push(attention::forward(&part(q, 0, first)?, &part(k, 0, first)?, &part(v, 0, first)?)?.0);
    }
    let causal = (first..t).map(|t| (t + 1) as f64).sum();
    let (rest, counted) = match method {
        Method::EightBits => {
            let [k, v] = [eight_bits::rounded(k)?, eight_bits::rounded(v)?];
            let (y, _) = attention::forward_in_room(&part(q, first, t - first)?, &k, &v, t)?;
            (y, Counted { kept: causal, read: causal, causal })
        }
        Method::HeavyHitters => {
            let (y, kept) = heavy_hitters::attend([q, k, v], pairs, first)?;
            (y, Counted { kept, read: kept, causal })
        }
        _ => {
            let (y, [kept, read]) = tiles(method, pairs, directions_krd, [q, k, v], first)?;
            (y, Counted { kept, read, causal })
        }
    };
    parts.push(rest.to_dtype(q.dtype())?);
    Ok((Tensor::cat(&parts, 1)?, counted))
}

/// y of the positions from `first` on, and the pairs that are kept and read.
fn tiles(
    method: Method,
    pairs: &PairsSpec,
    directions_krd: Option<&Tensor>,
    [q, k, v]: [&Tensor; 3],
    first: usize,
) -> Result<(Tensor, [f64; 2])> {
    let (_, t, heads, d) = q.dims4()?;
    let kv = k.dim(2)?;
    let by_head = |x: &Tensor| x.squeeze(0)?.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous();
    let q = (by_head(q)?.reshape((kv, heads / kv, t, d))? * (d as f64).powf(-0.5))?;
    let (k, v) = (by_head(k)?, by_head(v)?);
    let directions = directions_krd.map(|own| own.to_device(q.device())?.to_dtype(DType::F32)).transpose()?;
    let means = matches!(method, Method::Sparq { mean_value: true, .. }).then(|| running_mean(&v)).transpose()?;
    let most = SCORES[usize::from(!q.device().is_cpu())];
    let (mut tiles, mut counted, mut at) = (Vec::new(), [0.0; 2], first);
    while at < t {
        let rows = (most / (heads * t)).clamp(16, 4096).min(t - at);
        let columns = at + rows;
        let (own_q, own_k) = (q.narrow(2, at, rows)?.contiguous()?, k.narrow(1, 0, columns)?.contiguous()?);
        let flat = |x: &Tensor| x.reshape((kv, heads / kv * rows, ()));
        let logits = flat(&own_q)?.matmul(&own_k.t()?.contiguous()?)?.reshape((kv, heads / kv, rows, columns))?;
        let seen = seen(at, rows, columns, q.device())?;
        let tile = Tile { q: own_q, k: own_k, logits: &logits, seen: &seen, first_row: at };
        let Scores { choice, logits: estimated } = tile.scores(method, pairs, directions.as_ref())?;
        let choices = choice.dim(0)?;
        let kept = kept(&choice, at, pairs)?.reshape((kv, choices / kv, rows, columns))?;
        counted[0] += sum(&kept)? / choices as f64;
        counted[1] += sum(&kept.max(1)?)? / kv as f64;
        let kept = kept.broadcast_as(logits.shape())?;
        let nothing = Tensor::full(f32::NEG_INFINITY, logits.shape(), logits.device())?;
        let p = candle_nn::ops::softmax(&kept.where_cond(&logits, &nothing)?, D::Minus1)?;
        let mut y = flat(&p)?.matmul(&v.narrow(1, 0, columns)?.contiguous()?)?.reshape((kv, heads / kv, rows, d))?;
        if let (Some(means), Some(estimated)) = (&means, estimated) {
            let p = candle_nn::ops::softmax(
                &seen.broadcast_as(logits.shape())?.where_cond(&estimated, &nothing)?,
                D::Minus1,
            )?;
            let share = kept.where_cond(&p, &p.zeros_like()?)?.sum_keepdim(D::Minus1)?;
            let mean = means.narrow(1, at, rows)?.unsqueeze(1)?;
            y = (y.broadcast_mul(&share)? + share.affine(-1.0, 1.0)?.broadcast_mul(&mean)?)?;
        }
        tiles.push(y.reshape((heads, rows, d))?.transpose(0, 1)?.contiguous()?);
        at += rows;
    }
    Ok((Tensor::cat(&tiles, 0)?.unsqueeze(0)?, counted))
}

/// How many are kept.
fn sum(kept: &Tensor) -> Result<f64> {
    let of_rows = kept.to_dtype(DType::F32)?.sum(D::Minus1)?;
    Ok(of_rows.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

/// The mean of the values up to each position, `[K, T, D]`.
fn running_mean(v: &Tensor) -> Result<Tensor> {
    let (kv, t, d) = v.dims3()?;
    let mut means: Vec<f32> = v.flatten_all()?.to_vec1()?;
    for of_head in means.chunks_exact_mut(t * d) {
        let mut sums = vec![0f64; d];
        for (at, row) in of_head.chunks_exact_mut(d).enumerate() {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
                *value = (*sum / (at + 1) as f64) as f32;
            }
        }
    }
    Tensor::from_vec(means, (kv, t, d), v.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use rstest::rstest;
    use tinyonn::moe::PairsBy;
    use tinyonn::ops::sparse_attention::{Choosing, forward};

    fn random(seed: u64, heads: usize) -> Result<Tensor> {
        use rand::Rng as _;
        let mut rng = tinyonn::random::stream(seed, "attention");
        let values: Vec<f32> = (0..300 * heads * 8).map(|_| rng.random_range(-2.0..2.0)).collect();
        Tensor::from_vec(values, (1, 300, heads, 8), &Device::Cpu)
    }

    /// What is the library's is what the library computes.
    #[rstest]
    #[case(Method::Components { r: 3, by: PairsBy::Head })]
    #[case(Method::Components { r: 3, by: PairsBy::KvHead })]
    #[case(Method::Directions { r: 3, by: PairsBy::Head })]
    #[case(Method::Directions { r: 3, by: PairsBy::KvHead })]
    #[case(Method::BlockMeans { size: 4 })]
    #[case(Method::Window)]
    #[case(Method::Exact)]
    fn it_is_the_librarys_attention(#[case] method: Method) -> Result<()> {
        let (q, k, v) = (random(1, 4)?, random(2, 2)?, random(3, 2)?);
        let pairs = method.pairs(0.25, 3, 2);
        let rows = random(4, 2)?.narrow(1, 0, 3)?.squeeze(0)?.transpose(0, 1)?;
        let directions = matches!(method, Method::Directions { .. }).then(|| rows.contiguous()).transpose()?;
        let (y, counted) = attend(method, &pairs, directions.as_ref(), [&q, &k, &v], 0)?;
        let by = Choosing { pairs, directions_krd: directions };
        let (expected, saved) = forward(&q, &k, &v, 300, &by)?;
        let apart = (y - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(apart < 1e-5, "{apart}"); // the same sums in another order
        let kept = sum(&saved.kept()?)? / 4.0;
        // Whole numbers, but for a quarter of a pair where heads differ.
        assert!((counted.kept - kept).abs() < 0.1, "{} {kept}", counted.kept);
        assert!(counted.read >= counted.kept && (counted.causal - 45_150.0).abs() < 0.1);
        Ok(())
    }

    /// Of blocks those of most mass keep most; what is left out is given back as far as it was foreseen; a dense prefill is dense.
    #[test]
    fn what_is_published_by_others_does_what_it_says() -> Result<()> {
        let (q, k, v) = (random(1, 4)?, random(2, 2)?, random(3, 2)?);
        let (dense, _) = attention::forward(&q, &k, &v)?;
        let apart = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.mean_all()?.to_scalar::<f32>();
        let missed = |method: Method, prefill: usize| -> Result<f32> {
            let (y, _) = attend(method, &method.pairs(0.25, 3, 2), None, [&q, &k, &v], prefill)?;
            let first = |x: &Tensor| x.narrow(1, 0, 100);
            assert!(prefill < 100 || apart(&first(&y)?, &first(&dense)?)? < 1e-6);
            apart(&y, &dense)
        };
        let mass = missed(Method::LargestMass { size: 4 }, 0)?;
        assert!(mass < missed(Method::BlockMeans { size: 4 }, 0)? && mass < missed(Method::MinMax { size: 4 }, 0)?);
        let sparq = |mean_value| missed(Method::Sparq { r: 4, mean_value }, 0);
        assert!(sparq(true)? < sparq(false)?);
        assert!(missed(Method::EightBits, 0)? < 0.02);
        assert!(missed(Method::HeavyHitters, 100)? < missed(Method::HeavyHitters, 0)?);
        Ok(())
    }
}
