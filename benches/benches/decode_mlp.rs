//! One token through an MLP in main memory, as decoding computes it: dense, and of single neurons that its own gate chooses, at shares of the MLP's operations.
//! Widths of SmolLM2-135M and of Qwen3-1.7B, more layers than a cache holds, so that weights come from memory as in a model. Medians, dense and chosen in turn.

use std::time::Instant;

use benches::values;
use candle_core::{Device, Tensor};
use tinyonn::Result;
use tinyonn::ops::{MlpWeights, NeuronChoice, Silu, Take, chosen_neurons, glu_mlp};

const ROUNDS: usize = 15;

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Result<()> {
    for (d, i, layers) in [(576, 1536, 30), (2048, 6144, 6)] {
        let scaled = |seed: u64| Ok::<Tensor, tinyonn::Error>((values(seed, &[i, d], &Device::Cpu)? * 0.05)?);
        let matrices = (0..layers as u64).map(|at| Ok([scaled(3 * at)?, scaled(3 * at + 1)?, scaled(3 * at + 2)?]));
        let matrices: Vec<[Tensor; 3]> = matrices.collect::<Result<_>>()?;
        let (x, ones) = (values(99, &[1, d], &Device::Cpu)?, Tensor::ones(i, candle_core::DType::F32, &Device::Cpu)?);
        let pass = |most: Option<usize>| -> Result<f64> {
            let start = Instant::now();
            for [gate, up, down] in &matrices {
                let weights = MlpWeights { gate, up, down, activation: &Silu };
                match most {
                    None => drop(glu_mlp::forward(&x, weights, None)?),
                    Some(most) => {
                        let take = Take { most, least_score: 0.0 };
                        let choice = NeuronChoice::Gate { mean_up_i: &ones, worth_i: &ones, candidates_i: None, take };
                        drop(chosen_neurons::forward(&x, weights, None, choice)?);
                    }
                }
            }
            Ok(start.elapsed().as_secs_f64())
        };
        for operations in [0.5, 0.75] {
            let most = ((3.0 * operations - 1.0) / 2.0 * i as f64) as usize;
            let (mut dense, mut chosen) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                dense.push(pass(None)?);
                chosen.push(pass(Some(most))?);
            }
            let (dense, chosen) = (median(dense), median(chosen));
            println!(
                "cpu/decode-mlp: d {d}, I {i}, {layers} layers, {:.0} % of the operations: {:.3} ms, dense {:.3} ms, ratio {:.2}",
                100.0 * operations,
                1e3 * chosen,
                1e3 * dense,
                chosen / dense
            );
        }
    }
    Ok(())
}
