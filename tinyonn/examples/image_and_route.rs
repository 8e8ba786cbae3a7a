//! Pretrains a small model, images it, takes it apart, and fits routers to the image: the first phase, a stage at a time.
//!
//!     cargo run --release --example image_and_route

use std::error::Error;

use tinyonn::decoder::Pass;
use tinyonn::metrics::Stopwatch;
use tinyonn::moe::moe;
use tinyonn::phases::{DenseShape, Prepared, RunConfig};

/// Two groups of four experts; a token takes one group, and two experts of it.
#[moe(groups = 2, experts = 4, router = gaussian(dim = 16), top_k = [1, 2])]
pub struct Small;

fn main() -> Result<(), Box<dyn Error>> {
    // Without `data` the text is this workspace's own, and generated tasks.
    let dir = tempfile::tempdir()?;
    let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
    let mut config = RunConfig { variant: "Small".into(), out, cache, ..RunConfig::quick() };
    config.dense = DenseShape { hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, ..config.dense };
    (config.scan_tokens, config.test_tokens) = (1024, 512);
    (config.pretrain.steps, config.router.steps) = (40, 20);

    let mut watch = Stopwatch::new();
    let prepared = Prepared::new(&config, &mut watch, None)?;
    let run = prepared.run(&config);
    let found = run.phase1(&mut watch)?;
    assert!(found.lossless.bit_equal);

    println!("∫SPS of the eight experts of layer 0, and the path that it gives each task:");
    for ((task, image), path) in run.tokens.train.tasks.iter().zip(found.image(&run)).zip(&found.labels.paths.experts) {
        let of_layer: Vec<String> = image[0].iter().map(|value| format!("{value:+.2}")).collect();
        println!("{:<10} {}  {:?}", task.name, of_layer.join(" "), path[0]);
    }
    let accuracy = found.own_accuracy(&run.variant.spec);
    println!(
        "routers find {:.1} % of the groups (chance {:.1} %)",
        100.0 * accuracy.mean(0),
        100.0 * accuracy.chance(0)
    );
    let model = run.model(&found.store)?;
    let all = run.evaluate(model.lm(), &Pass::all())?;
    println!("all active {:.3}, routed {:.3} nats a token", all.mean, found.before.routed.mean);
    Ok(())
}
