//! The ways to combine experts, forward and backward, each beside another that computes the same or all of it: 2048 tokens of d
//! channels; slices of 3d neurons, 10 of 100 active; replicas, 2 of 8.

use benches::{Side, compare, run, values};
use candle_core::{Device, Tensor, Var};
use criterion::Criterion;
use rand::seq::index::sample;
use tinyonn::ops::{self, MlpGate, MlpWeights, Replicas, Run, Silu};
use tinyonn::{Result, random};

const TOKENS: usize = 2048;
/// Rows that share a decision.
const SEGMENT: usize = 512;
/// Experts that are slices, and how many of them a decision chooses.
const SLICES: (usize, usize) = (100, 10);
/// Experts that are replicas, and how many of them a decision chooses.
const REPLICAS: (usize, usize) = (8, 2);

type Way<'a> = (&'static str, &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>);

/// Times two ways over the same inputs: forward over frozen ones, then forward and backward over variables.
fn bench(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    inputs: &[Var],
    [ours, theirs]: [Way<'_>; 2],
    targets: [Option<f64>; 2],
) -> Result<()> {
    let frozen: Vec<Tensor> = inputs.iter().map(Var::as_detached_tensor).collect();
    let vars: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
    let forward = |way: Way<'_>| {
        way.1(&frozen)?;
        Ok(())
    };
    let sides = [Side::new(ours.0, || forward(ours)), Side::new(theirs.0, || forward(theirs))];
    compare(criterion, device, &format!("combine/{name}/forward"), sides, targets[0])?;
    let both = |way: Way<'_>| {
        ops::backward(&way.1(&vars)?.sum_all()?)?;
        Ok(())
    };
    let sides = [Side::new(ours.0, || both(ours)), Side::new(theirs.0, || both(theirs))];
    compare(criterion, device, &format!("combine/{name}/both"), sides, targets[1])
}

/// x, the three matrices, gates `[rows, experts]`, and three more matrices for each of `deltas` experts.
fn inputs(
    d: usize,
    rows: usize,
    (experts, active): (usize, usize),
    deltas: usize,
    device: &Device,
) -> Result<Vec<Var>> {
    let mut rng = random::stream(4, "bench/gates");
    let mut gates = vec![0f32; rows * experts];
    for row in gates.chunks_exact_mut(experts) {
        sample(&mut rng, experts, active).into_iter().for_each(|n| row[n] = 1.0 / active as f32);
    }
    let matrices: [&[usize]; 3] = [&[3 * d, d], &[3 * d, d], &[d, 3 * d]];
    let shapes = (0..=deltas).flat_map(|_| matrices).zip(1..);
    let mut inputs: Vec<Tensor> = shapes.map(|(shape, seed)| values(seed, shape, device)).collect::<Result<_>>()?;
    inputs.insert(0, values(0, &[TOKENS, d], device)?);
    inputs.insert(4, Tensor::from_vec(gates, (rows, experts), device)?);
    Ok(inputs.iter().map(Var::from_tensor).collect::<candle_core::Result<_>>()?)
}

fn weights(xs: &[Tensor]) -> MlpWeights<'_> {
    MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu }
}

fn gate<'a>(xs: &'a [Tensor], neuron_expert: &'a Tensor) -> MlpGate<'a> {
    MlpGate { gate_tn: &xs[4], neuron_expert }
}

fn segments() -> Vec<Run> {
    (0..TOKENS / SEGMENT).map(|at| Run { rows: at * SEGMENT..(at + 1) * SEGMENT, decision: Some(at) }).collect()
}

fn dense(xs: &[Tensor]) -> candle_core::Result<Tensor> {
    ops::glu_mlp(&xs[0], weights(xs), None, None)
}

fn slices(criterion: &mut Criterion, device: &Device, d: usize) -> Result<()> {
    let (width, experts) = (3 * d as u32, SLICES.0 as u32);
    let neuron_expert = Tensor::new((0..width).map(|i| i * experts / width).collect::<Vec<_>>(), device)?;
    let dispatch = |xs: &[Tensor]| ops::dispatch_mlp(&xs[0], weights(xs), gate(xs, &neuron_expert), None);
    let concat = |xs: &[Tensor]| ops::glu_mlp(&xs[0], weights(xs), Some(gate(xs, &neuron_expert)), None);
    let ways = [("dispatch", &dispatch as _), ("concat", &concat as _)];
    let by_token = inputs(d, TOKENS, SLICES, 0, device)?;
    bench(criterion, device, &format!("token/{d}"), &by_token, ways, [Some(1.0); 2])?;

    let runs = segments();
    let shared = |xs: &[Tensor]| ops::shared_mlp(&xs[0], weights(xs), gate(xs, &neuron_expert), &runs, None);
    let ways = [("shared", &shared as _), ("dense", &dense as _)];
    let by_segment = inputs(d, runs.len(), SLICES, 0, device)?;
    bench(criterion, device, &format!("segment/{d}"), &by_segment, ways, [Some(0.25), None])
}

fn replicas(criterion: &mut Criterion, device: &Device, d: usize) -> Result<()> {
    fn deltas(xs: &[Tensor]) -> Vec<Option<[&Tensor; 3]>> {
        xs[5..].chunks_exact(3).map(|m| Some([&m[0], &m[1], &m[2]])).collect()
    }
    let runs = segments();
    let merged = |xs: &[Tensor]| {
        ops::merged_mlp(&xs[0], Replicas { base: weights(xs), deltas: &deltas(xs) }, &xs[4], &runs, None)
    };
    let ways = [("merged", &merged as _), ("dense", &dense as _)];
    let by_segment = inputs(d, runs.len(), REPLICAS, REPLICAS.0, device)?;
    bench(criterion, device, &format!("replicas/segment/{d}"), &by_segment, ways, [None; 2])?;

    let dispatch =
        |xs: &[Tensor]| ops::replica_dispatch(&xs[0], Replicas { base: weights(xs), deltas: &deltas(xs) }, &xs[4]);
    let ways = [("dispatch", &dispatch as _), ("dense", &dense as _)];
    let by_token = inputs(d, TOKENS, REPLICAS, REPLICAS.0, device)?;
    bench(criterion, device, &format!("replicas/token/{d}"), &by_token, ways, [None; 2])
}

fn main() -> Result<()> {
    run(|criterion, device| {
        for d in [256, 512] {
            slices(criterion, device, d)?;
            replicas(criterion, device, d)?;
        }
        Ok(())
    })
}
