//! Looks at held-out text while a model trains: the loss of each is logged, and the weights of the least one are kept.

use super::evaluate::{EvaluateOptions, evaluate};
use super::{TrainState, Verdict};
use crate::data::TokenSet;
use crate::decoder::{CausalLm, FeedForward, Pass};
use crate::metrics::MetricsLog;
use crate::{Error, Result};

/// What is looked at, and how often.
///
/// ```
/// use tinyonn::decoder::FeedForward;
/// use tinyonn::metrics::MetricsLog;
/// use tinyonn::train::{HeldOut, TrainState, Verdict};
///
/// /// A look at held-out text, if one is due; whether the training goes on.
/// fn look<F: FeedForward>(held: &HeldOut<'_, F>, log: &mut MetricsLog, state: &mut TrainState) -> tinyonn::Result<bool> {
///     if held.every() == 0 || state.step % held.every() != 0 {
///         return Ok(true);
///     }
///     Ok(matches!(held.look(log, state)?, Verdict::GoOn))
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct HeldOut<'a, F> {
    model: &'a CausalLm<F>,
    /// The text and the steps between two looks at it; `None`: there are none.
    looks: Option<(&'a TokenSet, u64)>,
    read: (EvaluateOptions, Pass),
    stage: &'static str,
}

impl<'a, F: FeedForward> HeldOut<'a, F> {
    /// Looks at `set` `every` so many steps of `stage` (0: never), reading it as `read` says.
    ///
    /// ```
    /// use tinyonn::data::TokenSet;
    /// use tinyonn::decoder::{CausalLm, FeedForward, Pass};
    /// use tinyonn::train::HeldOut;
    /// use tinyonn::train::evaluate::EvaluateOptions;
    ///
    /// /// A look at `set` every 50 steps, everything active.
    /// fn held<'a, F: FeedForward>(model: &'a CausalLm<F>, set: &'a TokenSet) -> tinyonn::Result<HeldOut<'a, F>> {
    ///     HeldOut::new("smk", model, (Some(set), 50), (EvaluateOptions { length: 128, batch: 8, skip: 0 }, Pass::all()))
    /// }
    /// ```
    ///
    /// # Errors
    /// Looks are asked for, and there is no text.
    pub fn new(
        stage: &'static str,
        model: &'a CausalLm<F>,
        (set, every): (Option<&'a TokenSet>, u64),
        read: (EvaluateOptions, Pass),
    ) -> Result<Self> {
        let looks = match set {
            _ if every == 0 => None,
            Some(set) => Some((set, every)),
            None => {
                let problem = "looks at held-out text, and there is none";
                return Err(Error::setting(format!("{stage}.look"), problem, "give a held-out set, or use 0"));
            }
        };
        Ok(Self { model, looks, read, stage })
    }

    /// Steps between looks; 0: there are none.
    #[must_use]
    pub fn every(&self) -> u64 {
        self.looks.map_or(0, |(_, every)| every)
    }

    /// One look, behind the last step that `state` took.
    ///
    /// # Errors
    /// What the model or the log reports.
    pub fn look(&self, log: &mut MetricsLog, state: &mut TrainState) -> Result<Verdict> {
        if let Some((set, _)) = self.looks {
            let (options, pass) = &self.read;
            let device = state.finite().device().clone();
            let loss = evaluate(self.model, set, *options, pass, &device)?.mean;
            log.log(state.step.saturating_sub(1), self.stage, &[("held_out_loss", loss)])?;
            state.keep_if_best(loss)?;
        }
        Ok(Verdict::GoOn)
    }
}
