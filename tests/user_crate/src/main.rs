mod mine;

use tinyonn::moe;
use tinyonn::phases::{DenseShape, RunConfig, phase2};

fn main() -> tinyonn::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let spec = &moe::variant("Mine")?.spec;
    println!("{}: {}, {} of {} experts active", spec.name, spec.hierarchy(), spec.active_experts(), spec.experts());
    let mut config = RunConfig { variant: "Mine".into(), out: "runs/mine".into(), ..RunConfig::quick() };
    config.dense = DenseShape { hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, ..config.dense };
    (config.scan_tokens, config.test_tokens) = (1024, 512);
    (config.pretrain.steps, config.router.steps, config.smk.steps) = (20, 5, 5);
    let summary = phase2(&config, None)?;
    println!("{:.3} nats a token, {:.3} dense", summary.smk.routed, summary.phase1.loss.dense);
    Ok(())
}
