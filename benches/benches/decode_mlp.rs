//! One token through an MLP in main memory, as decoding computes it: dense, and of single neurons that its own gate chooses, at shares of the MLP's operations.
//! Widths of SmolLM2-135M and of Qwen3-1.7B, more layers than a cache holds, so that weights come from memory as in a model.
//!
//! In each round all are timed in turn, and a ratio is the median of the rounds' ratios. Beside the dense MLP, whose products of one row `gemm` computes on one thread, stands
//! the same MLP by rows on all threads, as chosen neurons are computed: what skipping rows is worth by itself.

use std::time::Instant;

use benches::{median, values};
use candle_core::{DType, Device, Tensor};
use tinyonn::Result;
use tinyonn::ops::{MlpWeights, NeuronChoice, Silu, Take, chosen_neurons, glu_mlp};

const ROUNDS: usize = 41;
const SHARES: [f64; 2] = [0.5, 0.75];

fn main() -> Result<()> {
    for (d, i, layers) in [(576, 1536, 30), (2048, 6144, 6)] {
        let scaled = |seed: u64| Ok::<Tensor, tinyonn::Error>((values(seed, &[i, d], &Device::Cpu)? * 0.05)?);
        let matrices = (0..layers as u64).map(|at| Ok([scaled(3 * at)?, scaled(3 * at + 1)?, scaled(3 * at + 2)?]));
        let matrices: Vec<[Tensor; 3]> = matrices.collect::<Result<_>>()?;
        let (x, ones) = (values(99, &[1, d], &Device::Cpu)?, Tensor::ones(i, DType::F32, &Device::Cpu)?);
        let pass = |choice: Option<NeuronChoice<'_>>| -> Result<f64> {
            let start = Instant::now();
            for [gate, up, down] in &matrices {
                let weights = MlpWeights { gate, up, down, activation: &Silu };
                match choice {
                    None => drop(glu_mlp::forward(&x, weights, None)?),
                    Some(choice) => drop(chosen_neurons::forward(&x, weights, None, choice)?),
                }
            }
            Ok(start.elapsed().as_secs_f64())
        };
        let chosen = SHARES.map(|operations| {
            let take = Take { most: ((3.0 * operations - 1.0) / 2.0 * i as f64) as usize, least_score: 0.0 };
            Some(NeuronChoice::Gate {
                mean_up_i: &ones,
                worth_i: &ones,
                candidates_i: None,
                take,
                least_hidden: 0.0,
                inputs: None,
            })
        });
        let of_round = |_| {
            let (dense, by_rows) = (pass(None)?, pass(Some(NeuronChoice::Fixed(&ones)))?);
            Ok([dense, by_rows, pass(chosen[0])?, pass(chosen[1])?])
        };
        let rounds: Vec<[f64; 4]> = (0..ROUNDS).map(of_round).collect::<Result<_>>()?;
        let of = |figure: &dyn Fn(&[f64; 4]) -> f64| median(rounds.iter().map(figure).collect());
        for (at, operations) in SHARES.iter().enumerate() {
            println!(
                "cpu/decode-mlp: d {d}, I {i}, {layers} layers, {:.0} % of the operations: {:.3} ms, dense {:.3} ms, ratio {:.2}; all neurons by rows {:.3} ms, ratio {:.2}",
                100.0 * operations,
                1e3 * of(&|round| round[2 + at]),
                1e3 * of(&|round| round[0]),
                of(&|round| round[2 + at] / round[0]),
                1e3 * of(&|round| round[1]),
                of(&|round| round[2 + at] / round[1]),
            );
        }
    }
    Ok(())
}
