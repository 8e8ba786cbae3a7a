//! What a decision costs: two levels of Gaussian routers and the selection, for each of 1024 tokens, relative to the MLP
//! that they decide for (forward only).

use benches::{Side, compare, config, run, values};
use candle_core::{DType, Device};
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::gallery::TinyOnn;
use tinyonn::moe::{GaussianMoeRouter, Router, select};
use tinyonn::ops::{self, MlpWeights, Silu};

const TOKENS: usize = 1024;

fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let (spec, cfg) = (TinyOnn::SPEC, config(128, 384));
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let mut routers: Vec<GaussianMoeRouter> = Vec::new();
    ParamStore::initialise(device, 0, |vb| {
        for (index, level) in spec.levels.iter().enumerate() {
            let (parents, vb) = (spec.parents(index), vb.pp(index));
            routers.push(GaussianMoeRouter::new(d, level.router.dim(), parents, level.choices, &vb)?);
        }
        Ok(())
    })?;
    let x = values(0, &[TOKENS, d], device)?;
    let [gate, up, down] = [(1, [i, d]), (2, [i, d]), (3, [d, i])].map(|(seed, shape)| values(seed, &shape, device));
    let (gate, up, down) = (gate?, up?, down?);
    let log_probs = || routers.iter().map(|router| router.log_probs(&x)).collect::<Result<Vec<_>>>();
    let mlp = || {
        ops::glu_mlp(&x, MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu }, None, None)?;
        Ok(())
    };
    let densities = || log_probs().map(drop);
    let decision = || select(&spec, &log_probs()?, DType::F32).map(drop);
    compare(criterion, device, "router/densities", [Side::new("log_probs", densities), Side::new("mlp", mlp)], None)?;
    compare(criterion, device, "router/decision", [Side::new("select", decision), Side::new("mlp", mlp)], None)
}

fn main() -> Result<()> {
    run(bench)
}
