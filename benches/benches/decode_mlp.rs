//! One token through an MLP in main memory, as decoding computes it: dense, and of single neurons that its own gate chooses, at shares of the MLP's operations; by one
//! number of neurons, and by the three thresholds that a calibration sets, found on the first layer.
//! Widths of SmolLM2-135M and of Qwen3-1.7B, more layers than a cache holds, so that weights come from memory as in a model.
//!
//! In each round all are timed in turn, and a ratio is the median of the rounds' ratios. Beside the dense MLP, whose products of one row `gemm` computes on one thread, stands
//! the same MLP by rows on all threads, as chosen neurons are computed: what skipping rows is worth by itself.

use std::time::Instant;

use benches::{median, values};
use candle_core::{DType, Device, Tensor};
use tinyonn::Result;
use tinyonn::imaging::{Choose, Cut};
use tinyonn::ops::{Activation, ByChannel, MlpWeights, NeuronChoice, ReadInputs, Silu, Take, chosen_neurons, glu_mlp};

const ROUNDS: usize = 41;
const SHARES: [f64; 2] = [0.5, 0.75];

fn main() -> Result<()> {
    for (d, i, layers) in [(576, 1536, 30), (2048, 6144, 6)] {
        let scaled = |seed: u64| Ok::<Tensor, tinyonn::Error>((values(seed, &[i, d], &Device::Cpu)? * 0.05)?);
        let matrices = (0..layers as u64).map(|at| Ok([scaled(3 * at)?, scaled(3 * at + 1)?, scaled(3 * at + 2)?]));
        let matrices: Vec<[Tensor; 3]> = matrices.collect::<Result<_>>()?;
        let channels: Vec<Tensor> =
            matrices.iter().map(|[gate, ..]| Ok(gate.t()?.contiguous()?)).collect::<Result<_>>()?;
        let x = values(99, &[1, d], &Device::Cpu)?;
        let [ones_i, ones_d] = [i, d].map(|n| Tensor::ones(n, DType::F32, &Device::Cpu));
        let (ones, ones_d) = (ones_i?, ones_d?);
        let gate_of = |take, least_hidden, inputs| NeuronChoice::Gate {
            mean_up_i: &ones,
            worth_i: &ones,
            candidates_i: None,
            take,
            least_hidden,
            inputs,
        };
        let by_number = |operations: f64| {
            let take = Take { most: ((3.0 * operations - 1.0) / 2.0 * i as f64) as usize, least_score: 0.0 };
            pass(&x, &matrices, |_| Some(gate_of(take, 0.0, None)))
        };
        let least = [thresholds(&x, &matrices[0], SHARES[0])?, thresholds(&x, &matrices[0], SHARES[1])?];
        let by_thresholds = |at: usize| {
            let [least_input, least_score, least_hidden] = least[at];
            pass(&x, &matrices, |layer| {
                let by_channel = ByChannel { gate_dc: &channels[layer], place_i: None };
                let inputs = ReadInputs { size_d: &ones_d, least: least_input, by_channel: Some(by_channel) };
                Some(gate_of(Take { most: i, least_score }, least_hidden, Some(inputs)))
            })
        };
        let of_round = |_| {
            let (dense, by_rows) =
                (pass(&x, &matrices, |_| None)?, pass(&x, &matrices, |_| Some(NeuronChoice::Fixed(&ones)))?);
            Ok([dense, by_rows, by_number(SHARES[0])?, by_number(SHARES[1])?, by_thresholds(0)?, by_thresholds(1)?])
        };
        let rounds: Vec<[f64; 6]> = (0..ROUNDS).map(of_round).collect::<Result<_>>()?;
        let of = |figure: &dyn Fn(&[f64; 6]) -> f64| median(rounds.iter().map(figure).collect());
        for (by, at) in
            [("a number", 2), ("thresholds", 4)].into_iter().flat_map(|(by, first)| [(by, first), (by, first + 1)])
        {
            println!(
                "cpu/decode-mlp: d {d}, I {i}, {layers} layers, by {by}, {:.0} % of the operations: {:.3} ms, dense {:.3} ms, ratio {:.2}; all neurons by rows {:.3} ms, ratio {:.2}",
                100.0 * SHARES[at % 2],
                1e3 * of(&|round| round[at]),
                1e3 * of(&|round| round[0]),
                of(&|round| round[at] / round[0]),
                1e3 * of(&|round| round[1]),
                of(&|round| round[at] / round[1]),
            );
        }
    }
    Ok(())
}

/// Seconds of one token through all layers, each of which computes the neurons that are chosen for it.
fn pass<'a>(x: &Tensor, matrices: &[[Tensor; 3]], choice: impl Fn(usize) -> Option<NeuronChoice<'a>>) -> Result<f64> {
    let start = Instant::now();
    for (at, [gate, up, down]) in matrices.iter().enumerate() {
        let weights = MlpWeights { gate, up, down, activation: &Silu };
        match choice(at) {
            None => drop(glu_mlp::forward(x, weights, None)?),
            Some(choice) => drop(chosen_neurons::forward(x, weights, None, choice)?),
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

/// τ_x, τ and τ_h at which one token reads what [`Cut::by_thresholds`] says of an MLP.
fn thresholds(x: &Tensor, [gate, up, _]: &[Tensor; 3], operations: f64) -> Result<[f32; 3]> {
    let cut = Cut::by_thresholds(operations, 1.0).unwrap_or(Cut::WHOLE);
    let [of_up, of_down] = cut.read(Choose::Threshold);
    let largest = |sizes: &Tensor, share: f64| -> Result<f32> {
        let mut sizes: Vec<f32> = sizes.flatten_all()?.to_vec1()?;
        sizes.sort_by(|a, b| b.total_cmp(a));
        Ok(sizes[((share * sizes.len() as f64) as usize).min(sizes.len() - 1)])
    };
    let least_input = largest(&x.abs()?, cut.inputs)?;
    let read = (x * x.abs()?.ge(f64::from(least_input))?.to_dtype(DType::F32)?)?;
    let (g, u) = (read.matmul(&gate.t()?)?, x.matmul(&up.t()?)?);
    let least_score = largest(&Silu.forward(&g, &u.ones_like()?)?.abs()?, of_up)?;
    let taken = Silu.forward(&g, &u.ones_like()?)?.abs()?.ge(f64::from(least_score))?.to_dtype(DType::F32)?;
    let least_hidden = largest(&(Silu.forward(&g, &u)?.abs()? * taken)?, of_down)?;
    Ok([least_input, least_score, least_hidden])
}
