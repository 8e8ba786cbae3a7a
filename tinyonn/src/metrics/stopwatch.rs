//! Seconds by stage.

use std::time::{Duration, Instant};

/// Tells how long each stage of a run took.
///
/// ```
/// use tinyonn::metrics::Stopwatch;
///
/// let mut watch = Stopwatch::new();
/// watch.stage("scan");
/// watch.stage("fit");
/// watch.stage("scan");
/// let names: Vec<String> = watch.seconds().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["scan", "fit"]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stopwatch {
    stages: Vec<(String, Duration)>,
    running: Option<(usize, Instant)>,
}

impl Stopwatch {
    /// A stopwatch at rest: time counts from the first stage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the current stage and begins `name`, or goes on with it where it left off.
    pub fn stage(&mut self, name: &str) {
        self.stop();
        let known = self.stages.iter().position(|(stage, _)| stage == name);
        let index = known.unwrap_or_else(|| {
            self.stages.push((name.to_owned(), Duration::ZERO));
            self.stages.len() - 1
        });
        self.running = Some((index, Instant::now()));
    }

    /// Ends the current stage; until the next one, time counts nowhere.
    ///
    /// ```
    /// use tinyonn::metrics::Stopwatch;
    ///
    /// let mut watch = Stopwatch::new();
    /// watch.stage("scan");
    /// watch.stop();
    /// assert_eq!(watch.seconds(), watch.seconds());
    /// ```
    pub fn stop(&mut self) {
        if let Some((index, since)) = self.running.take() {
            self.stages[index].1 += since.elapsed();
        }
    }

    /// Stages and their seconds, in the order in which they first began; the current one up to now.
    pub fn seconds(&self) -> Vec<(String, f64)> {
        let mut watch = self.clone();
        watch.stop();
        watch.stages.into_iter().map(|(name, duration)| (name, duration.as_secs_f64())).collect()
    }
}
