//! One measurement: the named values of a step of a stage.

use crate::{Error, Result};

/// The keys a record uses itself; no metric may take them.
pub(super) const RESERVED: [&str; 2] = ["step", "stage"];

/// The values that one step of one stage has left behind.
///
/// ```
/// use tinyonn::metrics::{Record, series};
///
/// let record = |step, loss| Record { step, stage: "smk".into(), values: vec![("loss".into(), loss)] };
/// let log = [record(0, 2.5), record(1, 2.25)];
/// assert_eq!((log[1].value("loss"), log[1].value("rate")), (Some(2.25), None));
/// assert_eq!(series(&log, "smk", "loss"), [(0.0, 2.5), (1.0, 2.25)]);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The step, counted from the start of the stage.
    pub step: u64,
    /// The stage: `pretrain`, `smk`, …
    pub stage: String,
    /// Names and values, in the order in which they were logged.
    pub values: Vec<(String, f64)>,
}

impl Record {
    /// The value called `name`, if this step logged it.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }
}

/// The curve of one value: `(step, value)` of every record of `stage` that has `name`, in the order of the log.
pub fn series(records: &[Record], stage: &str, name: &str) -> Vec<(f64, f64)> {
    let of_stage = records.iter().filter(|record| record.stage == stage);
    of_stage.filter_map(|record| Some((record.step as f64, record.value(name)?))).collect()
}

/// Refuses what a line of JSON cannot hold or could not be read back from: values that are not finite, names used twice.
pub(super) fn check(step: u64, stage: &str, values: &[(&str, f64)]) -> Result<()> {
    for (i, (name, value)) in values.iter().enumerate() {
        if !value.is_finite() {
            let problem = format!("is {value} at step {step} of stage `{stage}`");
            return Err(Error::setting(*name, problem, "lower the learning rate, or look for a division by zero"));
        }
        if RESERVED.contains(name) {
            return Err(Error::setting(*name, "every record has a key of this name", "give the metric another name"));
        }
        if values[..i].iter().any(|(earlier, _)| earlier == name) {
            let problem = format!("logged twice at step {step} of stage `{stage}`");
            return Err(Error::setting(*name, problem, "log each metric once a step"));
        }
    }
    Ok(())
}
