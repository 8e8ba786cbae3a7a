//! What a decision costs: two levels of Gaussian routers and the selection, for each of 1024 tokens, relative to the MLP
//! that they decide for (forward only).

use benches::{Side, compare, config, run, values};
use candle_core::Device;
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::gallery::TinyOnn;
use tinyonn::moe::{GaussianMoeRouter, Router, RouterShape, Selection, select};
use tinyonn::ops::{self, MlpWeights, Silu};

const TOKENS: usize = 1024;

fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let (spec, cfg) = (TinyOnn::SPEC, config(128, 384));
    let (d, i) = (cfg.hidden_size, cfg.intermediate_size);
    let mut routers: Vec<GaussianMoeRouter> = Vec::new();
    ParamStore::initialise(device, 0, |vb| {
        for (index, level) in spec.levels.iter().enumerate() {
            let run = &level.routers[0];
            let shape = RouterShape { hidden: d, parents: run.parents, choices: run.choices };
            routers.push(GaussianMoeRouter::new(shape, &vb.pp(index))?);
        }
        Ok(())
    })?;
    let x = values(0, &[TOKENS, d], device)?;
    let [gate, up, down] = [(1, [i, d]), (2, [i, d]), (3, [d, i])].map(|(seed, shape)| values(seed, &shape, device));
    let (gate, up, down) = (gate?, up?, down?);
    let flat = |router: &GaussianMoeRouter| Ok(router.logits(&x)?.flatten_from(1)?);
    let logits = || routers.iter().map(flat).collect::<Result<Vec<_>>>();
    let mlp = || {
        ops::glu_mlp(&x, MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu }, None, None)?;
        Ok(())
    };
    let densities = || logits().map(drop);
    let decision = || select(&spec, &logits()?, Selection::default()).map(drop);
    compare(criterion, device, "router/densities", [Side::new("logits", densities), Side::new("mlp", mlp)], None)?;
    compare(criterion, device, "router/decision", [Side::new("select", decision), Side::new("mlp", mlp)], None)
}

fn main() -> Result<()> {
    run(bench)
}
