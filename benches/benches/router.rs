//! What a decision costs: two levels of Gaussian routers and the selection, relative to the MLP that they decide for (forward only), in
//! the small model that is pretrained by default and at the width of Qwen3-1.7B.

use benches::{Side, compare, config, run, values};
use candle_core::Device;
use criterion::Criterion;
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::gallery::TinyOnn;
use tinyonn::moe::{GaussianMoeRouter, Router, RouterShape, Selection, select};
use tinyonn::ops::{MlpWeights, Silu, glu_mlp};

/// Name, d, I, tokens, and the share of the MLP's time that a decision should stay under.
const CASES: [(&str, usize, usize, usize, Option<f64>); 2] =
    [("router", 128, 384, 1024, None), ("router-2048", 2048, 6144, 256, Some(0.1))];

fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    CASES.into_iter().try_for_each(|case| decide(criterion, device, case))
}

fn decide(
    criterion: &mut Criterion,
    device: &Device,
    (name, d, i, tokens, target): (&str, usize, usize, usize, Option<f64>),
) -> Result<()> {
    let (spec, cfg) = (TinyOnn::SPEC, config(d, i));
    let mut routers: Vec<GaussianMoeRouter> = Vec::new();
    ParamStore::initialise(device, 0, |vb| {
        for (index, level) in spec.levels.iter().enumerate() {
            let run = &level.routers[0];
            let shape = RouterShape { hidden: cfg.hidden_size, parents: run.parents, choices: run.choices };
            routers.push(GaussianMoeRouter::new(shape, &vb.pp(index))?);
        }
        Ok(())
    })?;
    let x = values(0, &[tokens, d], device)?;
    let [gate, up, down] = [(1, [i, d]), (2, [i, d]), (3, [i, d])].map(|(seed, shape)| values(seed, &shape, device));
    let (gate, up, down) = (gate?, up?, down?);
    let flat = |router: &GaussianMoeRouter| Ok(router.logits(&x)?.flatten_from(1)?);
    let logits = || routers.iter().map(flat).collect::<Result<Vec<_>>>();
    let mlp = || {
        glu_mlp::forward(&x, MlpWeights { gate: &gate, up: &up, down: &down, activation: &Silu }, None)?;
        Ok(())
    };
    let densities = || logits().map(drop);
    let decision = || select(&spec, &logits()?, Selection::default()).map(drop);
    let sides = [Side::new("logits", densities), Side::new("mlp", mlp)];
    compare(criterion, device, &format!("{name}/densities"), sides, None)?;
    let sides = [Side::new("select", decision), Side::new("mlp", mlp)];
    compare(criterion, device, &format!("{name}/decision"), sides, target)
}

fn main() -> Result<()> {
    run(bench)
}
