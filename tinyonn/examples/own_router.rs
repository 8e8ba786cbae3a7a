//! A router of your own beside the library's: how often each finds the label that it was fitted to.
//!
//!     cargo run --release --example own_router

use std::error::Error;

use tinyonn::candle_core::{DType, Tensor};
use tinyonn::candle_nn::{Init, VarBuilder};
use tinyonn::metrics::Stopwatch;
use tinyonn::moe::{Router, RouterShape, moe};
use tinyonn::phases::{DenseShape, Prepared, RunConfig};

/// ℓ_c = ⟨p_c, x⟩ − ½ ‖p_c‖²: the choice whose prototype p_c lies nearest.
#[derive(Debug)]
pub struct Nearest {
    /// p `[P·C, d]`.
    prototypes: Tensor,
    shape: RouterShape,
}

impl Router for Nearest {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> tinyonn::Result<Self> {
        // Scores are f32, whatever the model computes in.
        let vb = vb.clone().set_dtype(DType::F32);
        let spread = Init::Randn { mean: 0.0, stdev: 0.02 };
        let prototypes = vb.get_with_hints((shape.parents * shape.choices, shape.hidden), "prototypes", spread)?;
        Ok(Self { prototypes, shape })
    }

    fn logits(&self, x_td: &Tensor) -> tinyonn::Result<Tensor> {
        let norms = (self.prototypes.sqr()?.sum(1)? * 0.5)?;
        let logits_tc = x_td.matmul(&self.prototypes.t()?)?.broadcast_sub(&norms)?;
        Ok(logits_tc.reshape(((), self.shape.parents, self.shape.choices))?)
    }
}

/// Routed by prototypes.
#[moe(groups = 2, experts = 4, router = Nearest, top_k = [1, 2])]
pub struct ByPrototypes;

/// The same hierarchy, routed by Gaussians.
#[moe(groups = 2, experts = 4, router = gaussian(dim = 16), top_k = [1, 2])]
pub struct ByGaussians;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    for variant in ["ByPrototypes", "ByGaussians"] {
        // The dense model is pretrained once, and found in the cache by the second.
        let (out, cache) = (dir.path().join(variant), dir.path().join("cache"));
        let mut config = RunConfig { variant: variant.into(), out, cache, ..RunConfig::quick() };
        config.dense = DenseShape { hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, ..config.dense };
        (config.scan_tokens, config.test_tokens) = (1024, 512);
        (config.pretrain.steps, config.router.steps) = (40, 60);

        let mut watch = Stopwatch::new();
        let prepared = Prepared::new(&config, &mut watch, None)?;
        let run = prepared.run(&config);
        let found = run.phase1(&mut watch)?;
        assert!(found.lossless.bit_equal);
        let accuracy = found.own_accuracy(&run.variant.spec);
        assert!(accuracy.mean(1) > accuracy.chance(1));
        println!(
            "{variant:<12} finds {:.1} % of the experts (chance {:.1} %); routed {:.3} nats a token",
            100.0 * accuracy.mean(1),
            100.0 * accuracy.chance(1),
            found.before.routed.mean
        );
    }
    Ok(())
}
