mod mine;

use tinyonn::moe;
use tinyonn::phases::{Phase2Config, phase2};

fn main() -> tinyonn::Result<()> {
    let spec = &moe::variant("Mine")?.spec;
    println!("{}: {}, {} of {} experts active", spec.name, spec.hierarchy(), spec.active_experts(), spec.experts());
    let mut config = Phase2Config { variant: "Mine".into(), out: "runs/mine".into(), ..Phase2Config::quick() };
    (config.pretrain.steps, config.smk.steps, config.scan_tokens) = (20, 5, 2048);
    let summary = phase2(&config)?;
    println!("{:.3} nats a token, {:.3} dense", summary.loss.routed_after, summary.loss.dense);
    Ok(())
}
