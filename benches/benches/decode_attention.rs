//! Attention of one token behind a long text, in main memory: to all of its keys, and to an eighth of them by several indices.
//!
//! The shape is SmolLM2-135M's (30 layers, three query heads over each of three key heads of width 64), of random numbers; every layer has keys and values of its own, more than a cache
//! holds. The time is that of the index, the selection and the products of what is kept; projections and what a new key adds to the cache are left out on both sides. In each round all are
//! timed in turn, and a ratio is the median of the rounds' ratios. `-- --positions N` takes another length than 8,192.

use std::time::Instant;

use benches::{median, values};
use candle_core::{Device, Tensor};
use tinyonn::Result;
use tinyonn::moe::{KeptPairs, PairIndex, PairsBy, PairsSpec};
use tinyonn::ops::{attention, sparse_attention};

const ROUNDS: usize = 15;

fn main() -> Result<()> {
    let after = |flag: &str| std::env::args().skip_while(|argument| argument != flag).nth(1);
    time(after("--positions").and_then(|count| count.parse().ok()).unwrap_or(8192))
}

/// What is kept, and by which index: 32 next to the query and the first four among them.
fn indices() -> [(&'static str, PairsSpec); 3] {
    let of = |index, by| PairsSpec { by, near: 32, first: 4, ..PairsSpec::new(KeptPairs::Share(0.125), index) };
    [
        ("components(8), by head", of(PairIndex::Components(8), PairsBy::Head)),
        ("components(8), by key head", of(PairIndex::Components(8), PairsBy::KvHead)),
        ("directions(16), by key head", of(PairIndex::Directions(16), PairsBy::KvHead)),
    ]
}

fn time(positions: usize) -> Result<()> {
    let (layers, heads, kv_heads, d) = (30u64, 9, 3, 64);
    let of = |seed, shape: &[usize]| values(seed, shape, &Device::Cpu);
    let kv = |at: u64| Ok([of(2 * at, &[1, positions, kv_heads, d])?, of(2 * at + 1, &[1, positions, kv_heads, d])?]);
    let kv = (0..layers).map(kv).collect::<Result<Vec<[Tensor; 2]>>>()?;
    let q = of(1000, &[1, 1, heads, d])?;
    let directions = of(1001, &[kv_heads, 16, d])?;
    let choosing = indices().map(|(_, pairs)| sparse_attention::Choosing {
        pairs,
        directions_krd: matches!(pairs.index, PairIndex::Directions(_)).then(|| directions.clone()),
    });
    let indexed = choosing.iter().map(|by| kv.iter().map(|[k, _]| Ok(by.indexed(k)?)).collect());
    let indexed: Vec<Vec<Option<Tensor>>> = indexed.collect::<Result<_>>()?;
    let round = |_| -> Result<Vec<f64>> {
        let began = Instant::now();
        for [k, v] in &kv {
            attention::forward_in_room(&q, k, v, positions)?;
        }
        let mut times = vec![began.elapsed().as_secs_f64()];
        for (by, indexed) in choosing.iter().zip(&indexed) {
            let began = Instant::now();
            for ([k, v], indexed) in kv.iter().zip(indexed) {
                sparse_attention::forward_in_room(&q, [k, v], indexed.as_ref(), positions, by)?;
            }
            times.push(began.elapsed().as_secs_f64());
        }
        Ok(times)
    };
    let rounds = (0..ROUNDS).map(round).collect::<Result<Vec<_>>>()?;
    for (at, (name, _)) in indices().iter().enumerate() {
        let of = |figure: &dyn Fn(&[f64]) -> f64| median(rounds.iter().map(|round| figure(round)).collect());
        println!(
            "cpu/decode-attention: {positions} positions, {layers} layers, {name}: {:.2} ms, all keys {:.2} ms, ratio {:.2}",
            1e3 * of(&|round| round[at + 1]),
            1e3 * of(&|round| round[0]),
            of(&|round| round[at + 1] / round[0])
        );
    }
    Ok(())
}
