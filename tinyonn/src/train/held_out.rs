//! Looks at held-out text while a model trains: the loss of each is logged, and the weights of the least one are kept.

use super::evaluate::{EvaluateOptions, evaluate};
use super::{TrainState, Verdict};
use crate::data::TokenSet;
use crate::metrics::MetricsLog;
use crate::qwen3::{FeedForward, Pass, Qwen3ForCausalLm};
use crate::{Error, Result};

/// What is looked at, and how often.
pub struct HeldOut<'a, F> {
    model: &'a Qwen3ForCausalLm<F>,
    set: &'a TokenSet,
    every: u64,
    read: (EvaluateOptions, Pass),
    stage: &'static str,
}

impl<'a, F: FeedForward> HeldOut<'a, F> {
    /// Looks at `set` `every` so many steps of `stage`, reading it as `read` says; `None` where that is never (0).
    ///
    /// # Errors
    /// Looks are asked for, and there is no text.
    pub fn new(
        stage: &'static str,
        model: &'a Qwen3ForCausalLm<F>,
        (set, every): (Option<&'a TokenSet>, u64),
        read: (EvaluateOptions, Pass),
    ) -> Result<Option<Self>> {
        let missing = || {
            let problem = "looks at held-out text, and there is none";
            Error::setting(format!("{stage}.look"), problem, "give a held-out set, or use 0")
        };
        let of = |set| Self { model, set, every, read, stage };
        if every == 0 { Ok(None) } else { set.map(of).ok_or_else(missing).map(Some) }
    }

    /// Steps between looks.
    #[must_use]
    pub fn every(&self) -> u64 {
        self.every
    }

    /// One look, behind the last step that `state` took.
    ///
    /// # Errors
    /// What the model or the log reports.
    pub fn look(&self, log: &mut MetricsLog, state: &mut TrainState) -> Result<Verdict> {
        let (options, pass) = &self.read;
        let device = state.finite().device().clone();
        let loss = evaluate(self.model, self.set, *options, pass, &device)?.mean;
        log.log(state.step.saturating_sub(1), self.stage, &[("held_out_loss", loss)])?;
        state.keep_if_best(loss)?;
        Ok(Verdict::GoOn)
    }
}
