//! How far a stage is: one line that is drawn over and over for whoever watches, a line now and then in logs and pipes.

use std::io::{IsTerminal, stderr};
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::pace::{Pace, duration, values as in_words};

const TEMPLATE: &str = "{prefix} {wide_bar} {pos}/{len} {msg}{pace} [{elapsed}]";
/// Between two lines in a log.
const EVERY: Duration = Duration::from_secs(30);

/// A stage's progress on standard error: on a terminal a bar with step, last values, tokens a second, the time that is left and memory; elsewhere (nohup,
/// Slurm, a pipe) a plain line of the same at its beginning, at its end and every half minute between. It ends when dropped.
///
/// ```
/// use tinyonn::metrics::Progress;
///
/// let progress = Progress::new(100, "smk");
/// for step in 0..100 {
///     let tokens = 8 * 128; // of this step
///     if step % 10 == 0 {
///         progress.update(step + 1, &[("loss", 2.5)], tokens);
///     } else {
///         progress.update(step + 1, &[], tokens); // the last values stay
///     }
/// }
/// assert_eq!(progress.position(), 100);
/// progress.finish();
/// ```
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    pace: Arc<Pace>,
    /// Where nobody watches.
    lines: Option<Lines>,
}

/// When the next line is due.
#[derive(Debug)]
struct Lines {
    every: Duration,
    /// In milliseconds since the stage began.
    due: AtomicU64,
}

impl Lines {
    fn every(every: Duration) -> Self {
        Self { every, due: AtomicU64::new(every.as_millis() as u64) }
    }

    /// Whether a line is due `after` the beginning; of several threads that ask, one is told so.
    fn take(&self, after: Duration) -> bool {
        let (now, due) = (after.as_millis() as u64, self.due.load(Ordering::Relaxed));
        let next = now.saturating_add(self.every.as_millis() as u64);
        now >= due && self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Progress {
    /// Begins a stage of `len` steps under the name `label`.
    pub fn new(len: u64, label: &str) -> Self {
        Self::resumed(0, len, label)
    }

    /// As [`Progress::new`], for a stage that goes on behind `start` steps that were done before: they count as done, not as quick.
    ///
    /// ```
    /// use tinyonn::metrics::Progress;
    ///
    /// let progress = Progress::resumed(40, 100, "smk").with_lines_every(std::time::Duration::from_secs(60));
    /// assert_eq!(progress.position(), 40);
    /// progress.message("loss 2.125");
    /// progress.device_memory(3 << 30);
    /// progress.set(41);
    /// assert_eq!(progress.position(), 41);
    /// ```
    pub fn resumed(start: u64, len: u64, label: &str) -> Self {
        let watched = stderr().is_terminal();
        let target = if watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(len), target).with_prefix(label.to_owned()).with_position(start);
        let pace = Arc::new(Pace::new(start));
        // The template is a constant; were it ever malformed, indicatif's own bar would still do.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            let shown = pace.clone();
            // Called when the line is drawn, at most twenty times a second, however short a step is.
            let words = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let words = shown.words(state.pos(), state.len().unwrap_or(0)).join(", ");
                let _ = out.write_str(&words);
            };
            bar.set_style(style.with_key("pace", words));
        }
        let progress = Self { bar, pace, lines: (!watched).then(|| Lines::every(EVERY)) };
        progress.say(|| format!("begins at {start}/{len}"));
        progress
    }

    /// The same with a line `every` so often where nobody watches, for tests.
    #[must_use]
    pub fn with_lines_every(mut self, every: Duration) -> Self {
        self.lines = self.lines.take().map(|_| Lines::every(every));
        self
    }

    /// `step` steps are done, the last of them over `tokens` tokens. `values` are shown until others come; none are given at steps whose
    /// values were not read, as reading them makes a GPU wait.
    pub fn update(&self, step: u64, values: &[(&str, f64)], tokens: u64) {
        self.pace.add_tokens(tokens);
        if !values.is_empty() {
            self.message(in_words(values));
        }
        self.set(step);
    }

    /// Moves the bar to `pos` steps done.
    pub fn set(&self, pos: u64) {
        self.bar.set_position(pos);
        if self.lines.as_ref().is_some_and(|lines| lines.take(self.pace.began.elapsed())) {
            self.say(|| self.figures(format!("{pos}/{}", self.len())));
        }
    }

    /// The steps done so far.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Shows `message` beside the count: the loss, say.
    pub fn message(&self, message: impl Into<String>) {
        let message = message.into();
        self.bar.set_message(if message.is_empty() { message } else { message + ", " });
    }

    /// Shows that so many bytes are in use on the device, beside those of this process.
    pub fn device_memory(&self, bytes: u64) {
        self.pace.set_device(bytes);
    }

    /// Fills the bar and leaves it on the screen.
    pub fn finish(&self) {
        if self.bar.is_finished() {
            return;
        }
        self.bar.finish();
        self.say(|| self.figures(format!("done, {len}/{len} in {}", self.elapsed(), len = self.len())));
    }

    fn len(&self) -> u64 {
        self.bar.length().unwrap_or(0)
    }

    fn elapsed(&self) -> String {
        duration(self.pace.began.elapsed())
    }

    fn figures(&self, first: String) -> String {
        let message = self.bar.message();
        let shown = [first, message.trim_end_matches(", ").to_owned()].into_iter().filter(|word| !word.is_empty());
        shown.chain(self.pace.words(self.position(), self.len())).collect::<Vec<_>>().join(", ")
    }

    /// Writes a line where nobody watches.
    fn say(&self, line: impl FnOnce() -> String) {
        if self.lines.is_some() {
            let line = format!("{}: {}", self.bar.prefix(), line());
            // `eprintln!`, which the test harness captures, panics if whoever read standard error has left: no reason to end a run.
            let _ = catch_unwind(|| eprintln!("{line}"));
        }
    }
}

impl Drop for Progress {
    /// A bar that was not finished is left where it stands: it shows how far a failed run came.
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.abandon();
            self.say(|| {
                self.figures(format!("stopped at {}/{} after {}", self.position(), self.len(), self.elapsed()))
            });
        }
    }
}
