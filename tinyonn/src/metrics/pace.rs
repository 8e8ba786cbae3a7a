//! How fast a stage goes, in words.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::resident_bytes;

/// What a stage has done since this process began it. Written at every step, without a lock.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) began: Instant,
    /// The step it began at.
    start: u64,
    tokens: AtomicU64,
    /// Bytes in use on the device; 0 if nobody said.
    device: AtomicU64,
}

impl Pace {
    pub(super) fn new(start: u64) -> Self {
        Self { began: Instant::now(), start, tokens: AtomicU64::new(0), device: AtomicU64::new(0) }
    }

    pub(super) fn add_tokens(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    pub(super) fn set_device(&self, bytes: u64) {
        self.device.store(bytes, Ordering::Relaxed);
    }

    /// `1204 tokens/s, 2 min 10 s left, 1.2 GiB`: what is known of it, at step `position` of `total`.
    pub(super) fn words(&self, position: u64, total: u64) -> Vec<String> {
        let seconds = self.began.elapsed().as_secs_f64();
        let mut words = Vec::with_capacity(4);
        let tokens = self.tokens.load(Ordering::Relaxed);
        if tokens > 0 && seconds > 0.0 {
            words.push(format!("{:.0} tokens/s", tokens as f64 / seconds));
        }
        // The mean over this process's own steps: those before a resume took it no time.
        let done = position.saturating_sub(self.start);
        if done > 0 && position < total {
            let left = seconds / done as f64 * (total - position) as f64;
            words.push(format!("{} left", duration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))));
        }
        words.extend(resident_bytes().map(size));
        match self.device.load(Ordering::Relaxed) {
            0 => {}
            bytes => words.push(format!("{} on the device", size(bytes))),
        }
        words
    }
}

/// `3 h 05 min`, `2 min 10 s`, `4 s`, `0.3 s`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0..=9) => format!("{:.1} s", duration.as_secs_f64()),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// `1.2 GiB`, or `310 MiB`.
///
/// ```
/// use tinyonn::metrics::size;
/// assert_eq!((size(310 << 20).as_str(), size(5 << 30).as_str()), ("310 MiB", "5.0 GiB"));
/// ```
#[must_use]
pub fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// `loss 2.125, rate 3.00e-4`.
pub(super) fn values(values: &[(&str, f64)]) -> String {
    let one = |(name, value): &(&str, f64)| match value.abs() {
        size if size == 0.0 || (1e-2..1e5).contains(&size) || !size.is_finite() => format!("{name} {value:.3}"),
        _ => format!("{name} {value:.2e}"),
    };
    values.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{duration, size, values};

    #[test]
    fn durations_have_two_units_at_most() {
        let said = |seconds: f64| duration(Duration::from_secs_f64(seconds));
        assert_eq!(
            [0.26, 9.96, 10.0, 70.0, 11_105.0].map(said),
            ["0.3 s", "10.0 s", "10 s", "1 min 10 s", "3 h 05 min"]
        );
    }

    #[test]
    fn sizes_and_values_are_short() {
        assert_eq!([310 << 20, 1229 << 20].map(size), ["310 MiB", "1.2 GiB"]);
        let of = [("loss", 2.125), ("rate", 3e-4), ("dead", 0.0), ("norm", f64::NAN), ("big", 2.5e6)];
        assert_eq!(values(&of), "loss 2.125, rate 3.00e-4, dead 0.000, norm NaN, big 2.50e6");
    }
}
