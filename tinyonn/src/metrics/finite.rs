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
    /// Refuses a `value` of `step` that is no finite number, naming the batch that it is of: its task and documents (`task code, documents 3
    /// and 17`). Asked for only where the value is refused.
    pub(crate) fn check(
        &self,
        what: &str,
        value: f64,
        step: u64,
        batch: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let batch = batch().map_or_else(String::new, |batch| format!(", on {batch}"));
        let problem =
            format!("the {what} is {value} at step {step} of {}, at a rate of {:e}{batch}", self.name, self.rate);
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

#[cfg(test)]
mod tests {
    use super::Stage;

    const STAGE: Stage<'static> = Stage { name: "Surprise Min-K", rate_key: "smk.optimizer.rate", rate: 1e-3 };

    #[test]
    fn a_value_that_is_no_number_is_refused_with_the_batch_it_is_of() {
        let batch = || Some("task `code`, documents 3 and 17".to_owned());
        let said = STAGE.check("loss", f64::NAN, 7, batch).map_err(|e| e.to_string());
        let start = "`smk.optimizer.rate`: the loss is NaN at step 7 of Surprise Min-K, at a rate of 1e-3";
        let end = "; lower the rate; if that is no help, check the checkpoint's tensors for values that are not finite";
        assert_eq!(said, Err(format!("{start}, on task `code`, documents 3 and 17{end}")));
        assert_eq!(STAGE.check("loss", f64::NAN, 7, || None).map_err(|e| e.to_string()), Err(format!("{start}{end}")));
    }

    #[test]
    fn a_number_passes_and_nobody_asks_for_its_batch() -> crate::Result<()> {
        let mut asked = false;
        STAGE.check("loss", 2.0, 7, || {
            asked = true;
            None
        })?;
        assert!(!asked);
        STAGE.check("loss", f64::MAX, 7, || None)
    }
}
