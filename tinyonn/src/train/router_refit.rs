//! Routers fitted again to what they see once they route.
//!
//! The first fit sees the pseudo-dense pass. Once routed, a layer's input is what the chosen experts of the layers before make it, and drifts
//! from the pseudo-dense one layer by layer (DESIGN §4): each round collects the inputs of a routed pass and fits to those. Labels stay: they
//! say what the dense model's experts are worth, not where routing is at the moment.

use super::Model;
use crate::Result;
use crate::model::TinyOnnForCausalLm;

/// Calls `again(model)` with the routed model as it is in the store, `rounds` times
/// ([`RouterFitConfig::refit_rounds`](super::RouterFitConfig::refit_rounds)); the routers are fitted already. `again` collects inputs through the model
/// ([`RouterInputs::collect`](crate::imaging::RouterInputs::collect) under [`Pass::routed`](crate::decoder::Pass::routed)) and fits to them, to the labels of
/// tasks or of rows: a routed pass keeps the same rows. Routers without a closed form go on from where they are.
///
/// ```
/// use tinyonn::train::{Model, refit};
///
/// /// How often routers would be fitted again.
/// fn rounds(model: Model<'_>) -> tinyonn::Result<usize> {
///     let mut rounds = 0;
///     refit(model, 2, |_| {
///         rounds += 1;
///         Ok(())
///     })?;
///     Ok(rounds)
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// Whatever the model or `again` reports.
pub fn refit(model: Model<'_>, rounds: usize, mut again: impl FnMut(&TinyOnnForCausalLm) -> Result<()>) -> Result<()> {
    let (store, cfg, variant) = model;
    (0..rounds).try_for_each(|_| again(&TinyOnnForCausalLm::new(cfg, variant, &store.frozen())?))
}
