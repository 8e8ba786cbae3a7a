//! The ways to combine experts, forward and backward, each beside another that computes the same or all of it: 2048 tokens of d
//! channels; slices of 3d neurons, 10 of 100 active; replicas, 2 of 8.

use std::cell::RefCell;

use benches::{Side, compare, run, values};
use candle_core::{Device, Tensor};
use criterion::Criterion;
use rand::seq::index::sample;
use tinyonn::ops::{
    Grads, Learners, MlpGate, MlpWeights, Replicas, RowRun, Silu, SlicedMlp, dispatch_mlp, glu_mlp, merged_mlp,
    replica_dispatch, shared_mlp,
};
use tinyonn::{Result, random};

const TOKENS: usize = 2048;
/// Rows that share a decision.
const SEGMENT: usize = 512;
/// Experts that are slices, and how many of them a decision chooses.
const SLICES: (usize, usize) = (100, 10);
/// Experts that are replicas, and how many of them a decision chooses.
const REPLICAS: (usize, usize) = (8, 2);

/// Forward, and backward of the sum of the outputs where there is a place for the gradients of weights.
type Way<'a> = (&'static str, &'a dyn Fn(&[Tensor], Option<&mut Grads>) -> candle_core::Result<()>);

/// Times two ways over the same inputs: forward alone, then forward and backward to all of them.
fn bench(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    inputs: &[Tensor],
    [ours, theirs]: [Way<'_>; 2],
    targets: [Option<f64>; 2],
) -> Result<()> {
    let forward = |way: Way<'_>| Ok(way.1(inputs, None)?);
    let sides = [Side::new(ours.0, || forward(ours)), Side::new(theirs.0, || forward(theirs))];
    compare(criterion, device, &format!("combine/{name}/forward"), sides, targets[0])?;
    let grads = RefCell::new(Grads::new(inputs.iter().map(|x| (x, 0)))?);
    let both = |way: Way<'_>| {
        let mut grads = grads.borrow_mut();
        grads.begin();
        Ok(way.1(inputs, Some(&mut grads))?)
    };
    let sides = [Side::new(ours.0, || both(ours)), Side::new(theirs.0, || both(theirs))];
    compare(criterion, device, &format!("combine/{name}/both"), sides, targets[1])
}

/// The way back of slices: x, the matrices, and the gates if there are any.
fn back<S: SlicedMlp>(xs: &[Tensor], (y, saved): (Tensor, S), grads: Option<&mut Grads>) -> candle_core::Result<()> {
    let Some(grads) = grads else { return Ok(()) };
    let deltas = saved.deltas(&y.ones_like()?)?;
    saved.weight_gradients(weights(xs), &deltas, &Learners::All, grads)?;
    saved.gate_gradient(&deltas)?;
    saved.input_gradient(&deltas).map(drop)
}

/// x, the three matrices, gates `[rows, experts]`, and three more matrices for each of `deltas` experts.
fn inputs(
    d: usize,
    rows: usize,
    (experts, active): (usize, usize),
    deltas: usize,
    device: &Device,
) -> Result<Vec<Tensor>> {
    let mut rng = random::stream(4, "bench/gates");
    let mut gates = vec![0f32; rows * experts];
    for row in gates.chunks_exact_mut(experts) {
        sample(&mut rng, experts, active).into_iter().for_each(|n| row[n] = 1.0 / active as f32);
    }
    let matrix = [3 * d, d];
    let matrices: [&[usize]; 3] = [&matrix; 3];
    let shapes = (0..=deltas).flat_map(|_| matrices).zip(1..);
    let mut inputs: Vec<Tensor> = shapes.map(|(shape, seed)| values(seed, shape, device)).collect::<Result<_>>()?;
    inputs.insert(0, values(0, &[TOKENS, d], device)?);
    inputs.insert(4, Tensor::from_vec(gates, (rows, experts), device)?);
    Ok(inputs)
}

fn weights(xs: &[Tensor]) -> MlpWeights<'_> {
    MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu }
}

fn gate<'a>(xs: &'a [Tensor], neuron_expert: &'a Tensor) -> MlpGate<'a> {
    MlpGate { gate_tn: &xs[4], neuron_expert }
}

fn segments() -> Vec<RowRun> {
    (0..TOKENS / SEGMENT).map(|at| RowRun { rows: at * SEGMENT..(at + 1) * SEGMENT, decision: Some(at) }).collect()
}

fn dense(xs: &[Tensor], grads: Option<&mut Grads>) -> candle_core::Result<()> {
    back(xs, glu_mlp::forward(&xs[0], weights(xs), None)?, grads)
}

fn slices(criterion: &mut Criterion, device: &Device, d: usize) -> Result<()> {
    let (width, experts) = (3 * d as u32, SLICES.0 as u32);
    let neuron_expert = Tensor::new((0..width).map(|i| i * experts / width).collect::<Vec<_>>(), device)?;
    let dispatch = |xs: &[Tensor], grads: Option<&mut Grads>| {
        back(xs, dispatch_mlp::forward(&xs[0], weights(xs), gate(xs, &neuron_expert))?, grads)
    };
    let concat = |xs: &[Tensor], grads: Option<&mut Grads>| {
        back(xs, glu_mlp::forward(&xs[0], weights(xs), Some(gate(xs, &neuron_expert)))?, grads)
    };
    let ways: [Way<'_>; 2] = [("dispatch", &dispatch), ("concat", &concat)];
    let by_token = inputs(d, TOKENS, SLICES, 0, device)?;
    bench(criterion, device, &format!("token/{d}"), &by_token, ways, [Some(1.0); 2])?;

    let runs = segments();
    let shared = |xs: &[Tensor], grads: Option<&mut Grads>| {
        back(xs, shared_mlp::forward(&xs[0], weights(xs), gate(xs, &neuron_expert), &runs)?, grads)
    };
    let ways: [Way<'_>; 2] = [("shared", &shared), ("dense", &dense)];
    let by_segment = inputs(d, runs.len(), SLICES, 0, device)?;
    bench(criterion, device, &format!("segment/{d}"), &by_segment, ways, [Some(0.25), None])
}

fn replicas(criterion: &mut Criterion, device: &Device, d: usize) -> Result<()> {
    fn deltas(xs: &[Tensor]) -> Vec<Option<[&Tensor; 3]>> {
        xs[5..].chunks_exact(3).map(|m| Some([&m[0], &m[1], &m[2]])).collect()
    }
    let runs = segments();
    let merged = |xs: &[Tensor], grads: Option<&mut Grads>| {
        let replicas = Replicas { base: weights(xs), deltas: &deltas(xs) };
        let (y, saved) = merged_mlp::forward(&xs[0], replicas, &xs[4], &runs)?;
        let Some(grads) = grads else { return Ok(()) };
        merged_mlp::backward(&saved, replicas, &y.ones_like()?, (true, true), grads).map(drop)
    };
    let ways: [Way<'_>; 2] = [("merged", &merged), ("dense", &dense)];
    let by_segment = inputs(d, runs.len(), REPLICAS, REPLICAS.0, device)?;
    bench(criterion, device, &format!("replicas/segment/{d}"), &by_segment, ways, [None; 2])?;

    let dispatch = |xs: &[Tensor], grads: Option<&mut Grads>| {
        let replicas = Replicas { base: weights(xs), deltas: &deltas(xs) };
        let (y, saved) = replica_dispatch::forward(&xs[0], replicas, &xs[4])?;
        let Some(grads) = grads else { return Ok(()) };
        replica_dispatch::backward(&saved, replicas, &y.ones_like()?, (true, true), grads).map(drop)
    };
    let ways: [Way<'_>; 2] = [("dispatch", &dispatch), ("dense", &dense)];
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
