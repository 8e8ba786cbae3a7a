//! Routers fitted again to what they see once they route.
//!
//! The first fit sees the pseudo-dense pass. Once routed, a layer's input is what the chosen experts of the layers before make it, and drifts
//! from the pseudo-dense one layer by layer (DESIGN §4): each round collects the inputs of a routed pass and fits to those. Labels stay: they
//! say what the dense model's experts are worth, not where routing is at the moment.

use candle_core::DType;

use super::{Model, RouterFitConfig, RouterFitter};
use crate::Result;
use crate::imaging::Labels;
use crate::model::TinyOnnForCausalLm;

/// Repeats a fit `config.refit_rounds` times; the routers in the store are fitted already. `routed(model)` collects inputs through the routed model
/// ([`RouterInputs::collect`](crate::imaging::RouterInputs::collect) under [`RouteCtx::routed`](crate::qwen3::RouteCtx::routed)). Routers without a closed form
/// go on from where they are.
///
/// # Errors
/// Whatever the model, `routed` or the fit reports.
pub fn refit(
    model: Model<'_>,
    labels: &Labels,
    config: &RouterFitConfig,
    seed: u64,
    mut routed: impl FnMut(&TinyOnnForCausalLm) -> Result<RouterFitter>,
) -> Result<()> {
    let (store, cfg, variant) = model;
    for _ in 0..config.refit_rounds {
        let sees = TinyOnnForCausalLm::new(cfg, variant, &store.builder(DType::F32, |_| false))?;
        routed(&sees)?.fit(model, labels, config, seed)?;
    }
    Ok(())
}
