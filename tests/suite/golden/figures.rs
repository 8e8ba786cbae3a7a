//! Figures of a section, and how two of them are compared: by their bits, or within a tolerance.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Lists up to this long are kept whole.
const WHOLE: usize = 24;
/// Values kept of longer ones, evenly spread.
const SAMPLES: usize = 9;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Figure {
    /// Numbers, all of them.
    Numbers(Vec<f64>),
    /// Numbers that are too many to keep.
    Summary(Summary),
    /// What is the same or is not: labels, tokens, partitions.
    Words(Vec<String>),
}

/// A long list of numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summary {
    count: usize,
    /// Of the numbers' bits as f64.
    sha256: String,
    sum: f64,
    abs_sum: f64,
    /// Evenly spread, the first and the last among them.
    samples: Vec<f64>,
}

impl Summary {
    fn new(values: &[f64]) -> Self {
        let mut digest = Sha256::new();
        values.iter().for_each(|value| digest.update(value.to_bits().to_le_bytes()));
        Self {
            count: values.len(),
            sha256: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            sum: values.iter().sum(),
            abs_sum: values.iter().map(|value| value.abs()).sum(),
            samples: (0..SAMPLES).map(|at| values[at * (values.len() - 1) / (SAMPLES - 1)]).collect(),
        }
    }
}

/// The figures of a section, by name, in the order in which they were told.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(pub(super) Vec<(String, Figure)>);

impl Figures {
    pub(super) fn numbers(&mut self, name: impl Into<String>, values: impl IntoIterator<Item = impl Into<f64>>) {
        let values: Vec<f64> = values.into_iter().map(Into::into).collect();
        let name = name.into();
        assert!(!values.is_empty(), "figure `{name}` is empty");
        let not_finite = values.iter().position(|value| !value.is_finite());
        assert!(not_finite.is_none(), "figure `{name}`: its number {not_finite:?} is not finite");
        let short = values.len() <= WHOLE;
        let figure = if short { Figure::Numbers(values) } else { Figure::Summary(Summary::new(&values)) };
        self.push(name, figure);
    }

    pub(super) fn number(&mut self, name: impl Into<String>, value: f64) {
        self.numbers(name, [value]);
    }

    pub(super) fn words(&mut self, name: impl Into<String>, words: impl IntoIterator<Item = String>) {
        self.push(name.into(), Figure::Words(words.into_iter().collect()));
    }

    fn push(&mut self, name: String, figure: Figure) {
        assert!(self.0.iter().all(|(known, _)| *known != name), "figure `{name}` is told twice");
        self.0.push((name, figure));
    }
}

/// How far a number may lie from the expected one: `relative` of its size (the mean size of its list, if that is more), and
/// `absolute`. In a sum of n numbers most of that cancels: it may lie a tenth of `relative` off, and √n times `absolute`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub(super) relative: f64,
    pub(super) absolute: f64,
    /// Why it is as large as it is.
    pub(super) why: &'static str,
}

/// How a figure is compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum By<'a> {
    Bits,
    Tolerance(&'a Tolerance),
}

/// Where `found` is not what is `expected`, in words, one entry a number.
pub(super) fn differences(found: &Figure, expected: &Figure, by: By<'_>) -> Vec<String> {
    match (found, expected) {
        (Figure::Words(found), Figure::Words(expected)) => {
            if found.len() != expected.len() {
                return vec![format!(": found {} words, expected {}", found.len(), expected.len())];
            }
            let pairs = found.iter().zip(expected).enumerate().filter(|(_, (found, expected))| found != expected);
            pairs.map(|(at, (found, expected))| format!("[{at}]: found {found:?}, expected {expected:?}")).collect()
        }
        (Figure::Numbers(found), Figure::Numbers(expected)) => {
            if found.len() != expected.len() {
                return vec![format!(": found {} numbers, expected {}", found.len(), expected.len())];
            }
            let size = expected.iter().map(|x| x.abs()).sum::<f64>() / expected.len().max(1) as f64;
            list("", found, expected, (size, by))
        }
        (Figure::Summary(found), Figure::Summary(expected)) => {
            if found.count != expected.count {
                return vec![format!(": found {} numbers, expected {}", found.count, expected.count)];
            }
            let count = expected.count as f64;
            match by {
                By::Bits if found.sha256 == expected.sha256 => Vec::new(),
                By::Bits => {
                    let mut all = vec![format!(
                        ": of {count} numbers found digest {}, expected {}",
                        found.sha256, expected.sha256
                    )];
                    all.extend(list(" sum", &[found.sum], &[expected.sum], (0.0, by)));
                    all.extend(list(" sample", &found.samples, &expected.samples, (0.0, by)));
                    all
                }
                By::Tolerance(tolerance) => {
                    let (relative, absolute) = (tolerance.relative / 10.0, tolerance.absolute * count.sqrt());
                    let summed = Tolerance { relative, absolute, ..*tolerance };
                    let of_sum = (expected.abs_sum, By::Tolerance(&summed));
                    let mut all = list(" sum", &[found.sum], &[expected.sum], of_sum);
                    all.extend(list(" sum of sizes", &[found.abs_sum], &[expected.abs_sum], of_sum));
                    let size = expected.abs_sum / count;
                    all.extend(list(" sample", &found.samples, &expected.samples, (size, by)));
                    all
                }
            }
        }
        _ => vec![": is not of the kind that is expected".to_owned()],
    }
}

/// Pairs that differ, of a list whose numbers are of about `size`.
fn list(what: &str, found: &[f64], expected: &[f64], (size, by): (f64, By<'_>)) -> Vec<String> {
    let pairs = found.iter().zip(expected).enumerate();
    let differs = |(at, (found, expected)): (usize, (&f64, &f64))| {
        let apart = (found - expected).abs();
        let (within, allowed) = match by {
            By::Bits => (found.to_bits() == expected.to_bits(), "none: equal bits are asked for".to_owned()),
            By::Tolerance(tolerance) => {
                let allowed = tolerance.relative * expected.abs().max(size) + tolerance.absolute;
                (apart <= allowed, format!("{allowed:.2e}"))
            }
        };
        let words =
            format!("{what}[{at}]: found {found:?}, expected {expected:?}, difference {apart:.3e}, allowed {allowed}");
        (!within).then_some(words)
    };
    pairs.filter_map(differs).collect()
}
