//! A stage whose values have left the numbers stops there, and says what to do.

use crate::{Error, Result};

/// A training stage, as its errors name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage<'a> {
    /// What is trained: `pretrain`, `smk`, a router's path.
    pub(crate) name: &'a str,
    /// The key of its learning rate.
    pub(crate) rate_key: &'a str,
    /// Its learning rate.
    pub(crate) rate: f64,
}

impl Stage<'_> {
    /// Refuses a `value` of `step` that is no finite number.
    pub(crate) fn check(&self, what: &str, value: f64, step: u64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let problem = format!("the {what} is {value} at step {step} of {}, at a rate of {:e}", self.name, self.rate);
        let remedy =
            "lower the rate; if that is no help, check the checkpoint's tensors for values that are not finite";
        Err(Error::setting(self.rate_key, problem, remedy))
    }
}

/// Refuses a loss of `task` in `stage` that is no finite number: nothing was trained there.
pub(crate) fn check_loss(stage: &str, task: &str, loss: f64) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    let problem = format!("the loss on task `{task}` is {loss}");
    let remedy = "check the model's tensors for values that are not finite, or lower the rate they were trained at";
    Err(Error::setting(stage, problem, remedy))
}
