//! The ways to combine experts, side by side: 2048 tokens, d channels, 3d neurons in 100 experts, 10 of them active.

use benches::{Side, compare, run, values};
use candle_core::{Device, Tensor, Var};
use criterion::Criterion;
use rand::seq::index::sample;
use tinyonn::ops::{self, MlpGate, MlpWeights, Silu};
use tinyonn::{Result, random};

const TOKENS: usize = 2048;
const EXPERTS: usize = 100;
const ACTIVE: usize = 10;

/// x and an MLP's three matrices.
struct Mlp {
    x: Var,
    gate: Var,
    up: Var,
    down: Var,
    neuron_expert: Tensor,
}

impl Mlp {
    fn new(d: usize, device: &Device) -> Result<Self> {
        let var = |seed, shape: &[usize]| Ok::<_, tinyonn::Error>(Var::from_tensor(&values(seed, shape, device)?)?);
        let neurons: Vec<u32> = (0..3 * d as u32).map(|i| i * EXPERTS as u32 / (3 * d as u32)).collect();
        Ok(Self {
            x: var(0, &[TOKENS, d])?,
            gate: var(1, &[3 * d, d])?,
            up: var(2, &[3 * d, d])?,
            down: var(3, &[d, 3 * d])?,
            neuron_expert: Tensor::new(neurons, device)?,
        })
    }

    fn weights(&self) -> MlpWeights<'_> {
        MlpWeights { gate: &self.gate, up: &self.up, down: &self.down, activation: &Silu }
    }

    fn frozen(&self) -> [Tensor; 4] {
        [&self.x, &self.gate, &self.up, &self.down].map(|var| var.as_detached_tensor())
    }
}

/// Gates `[rows, EXPERTS]`, ACTIVE of each row 0.1, the others 0.
fn gates(rows: usize, device: &Device) -> Result<Tensor> {
    let mut rng = random::stream(4, "bench/gates");
    let mut gates = vec![0f32; rows * EXPERTS];
    for row in gates.chunks_exact_mut(EXPERTS) {
        sample(&mut rng, EXPERTS, ACTIVE).into_iter().for_each(|n| row[n] = 0.1);
    }
    Ok(Tensor::from_vec(gates, (rows, EXPERTS), device)?)
}

/// Each token's own experts: computed alone against multiplied by their gates.
fn dispatch(criterion: &mut Criterion, device: &Device, d: usize) -> Result<()> {
    let mlp = Mlp::new(d, device)?;
    let gate_tn = Var::from_tensor(&gates(TOKENS, device)?)?;
    let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &mlp.neuron_expert };
    let frozen = mlp.frozen();
    let [x, gate_proj, up, down] = &frozen;
    let weights = MlpWeights { gate: gate_proj, up, down, activation: &Silu };
    let closed = gate_tn.as_detached_tensor();
    let frozen_gate = MlpGate { gate_tn: &closed, neuron_expert: &mlp.neuron_expert };
    let forward = [
        Side::new("dispatch", || Ok(drop(ops::dispatch_mlp(x, weights, frozen_gate, None)?))),
        Side::new("concat", || Ok(drop(ops::glu_mlp(x, weights, Some(frozen_gate), None)?))),
    ];
    compare(criterion, device, &format!("combine/dispatch/forward/{d}"), forward, Some(1.0))?;
    let both = [
        Side::new("dispatch", || {
            ops::backward(&ops::dispatch_mlp(&mlp.x, mlp.weights(), gate, None)?.sum_all()?)?;
            Ok(())
        }),
        Side::new("concat", || {
            ops::backward(&ops::glu_mlp(&mlp.x, mlp.weights(), Some(gate), None)?.sum_all()?)?;
            Ok(())
        }),
    ];
    compare(criterion, device, &format!("combine/dispatch/both/{d}"), both, Some(1.0))
}

fn main() -> Result<()> {
    run(|criterion, device| {
        for d in [256, 512] {
            dispatch(criterion, device, d)?;
        }
        Ok(())
    })
}
