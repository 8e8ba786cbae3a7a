//! A progress bar for whoever watches, and silence in logs and pipes.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str = "{prefix} {wide_bar} {pos}/{len} {msg} [{elapsed} < {eta}]";

/// A bar on standard error; not a byte is written where that is no terminal. It finishes when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `len` steps under the name `label`.
    pub fn new(len: u64, label: &str) -> Self {
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(len), target).with_prefix(label.to_owned());
        // The template is a constant; were it ever malformed, indicatif's own bar would still do.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Moves the bar to `pos` steps done.
    pub fn set(&self, pos: u64) {
        self.bar.set_position(pos);
    }

    /// The steps done so far.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Shows `message` beside the count: the loss, say.
    pub fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Fills the bar and leaves it on the screen.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

impl Drop for Progress {
    /// A bar that was not finished is left where it stands: it shows how far a failed run came.
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.abandon();
        }
    }
}
