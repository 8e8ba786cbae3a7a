//! Axes: where the ticks go, what they say, and how a value becomes a place.

use super::number::{fixed, significant};

/// No axis asks for as many.
const MOST_TICKS: f64 = 100.0;

/// A value axis drawn from `start` to `end` on paper.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    start: f64,
    end: f64,
    step: f64,
}

impl Axis {
    /// A linear axis that holds `low..=high` and ends on ticks, about `count` of them.
    pub(super) fn linear(low: f64, high: f64, count: usize, (start, end): (f64, f64)) -> Self {
        let (low, high) = widen(low, high);
        let step = nice_step((high - low) / count.max(1) as f64);
        let (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        Self { low, high, log: false, start, end, step }
    }

    /// A linear axis that holds `low..=high` and ends on ticks: of five to nine steps the fewest that leave little paper empty.
    pub(super) fn filled(low: f64, high: f64, ends: (f64, f64)) -> Self {
        let share = |axis: &Self| (high - low) / (axis.high - axis.low);
        let axes = [5, 7, 9].map(|count| Self::linear(low, high, count, ends));
        let least = axes.iter().map(share).fold(0.0, f64::max).min(0.75);
        let first = axes.iter().position(|axis| share(axis) >= least).unwrap_or(0);
        axes.into_iter().nth(first).unwrap_or_else(|| Self::linear(low, high, 5, ends))
    }

    /// A linear axis of exactly `low..=high`, with about `count` ticks inside.
    pub(super) fn exact(low: f64, high: f64, count: usize, (start, end): (f64, f64)) -> Self {
        let (low, high) = widen(low, high);
        Self { low, high, log: false, start, end, step: nice_step((high - low) / count.max(1) as f64) }
    }

    /// The same axis with ticks at whole numbers alone: of layers or steps there are no halves.
    pub(super) fn whole(self) -> Self {
        Self { step: self.step.max(1.0), ..self }
    }

    /// A logarithmic axis of exactly `low..=high`, both positive.
    pub(super) fn log(low: f64, high: f64, (start, end): (f64, f64)) -> Self {
        let high = if high > low { high } else { low * 10.0 };
        Self { low: low.log10(), high: high.log10(), log: true, start, end, step: 1.0 }
    }

    /// Where `value` lies on paper; a logarithmic axis has no place for what is not positive.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// Ticks as places and labels, ascending.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let values = if self.log { self.log_values() } else { self.linear_values() };
        let largest = values.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
        values.into_iter().map(|v| (self.place(v), self.label(v, largest))).collect()
    }

    fn linear_values(&self) -> Vec<f64> {
        let first = (self.low / self.step - 1e-9).ceil();
        let last = (self.high / self.step + 1e-9).floor();
        // Near the ends of what f64 holds a step may be none, or a range no number.
        let count = last - first;
        if count.is_nan() || count > MOST_TICKS {
            return vec![self.low, self.high];
        }
        (first as i64..=last as i64).map(|k| k as f64 * self.step).collect()
    }

    /// Powers of ten, with 2 and 5 between them while there is room.
    fn log_values(&self) -> Vec<f64> {
        let decades = self.high - self.low;
        let between: &[f64] = if decades <= 4.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        // Powers of ten thin out so that no axis has more than about eight.
        let stride = (decades / 8.0).ceil().max(1.0) as usize;
        let exponents = (self.low.floor() as i32..=self.high.ceil() as i32).step_by(stride);
        let values = exponents.flat_map(|e| between.iter().map(move |m| m * 10_f64.powi(e)));
        values.filter(|v| (self.low - 1e-9..=self.high + 1e-9).contains(&v.log10())).collect()
    }

    fn label(&self, value: f64, largest: f64) -> String {
        let unit = if self.log { value } else { largest };
        let (divisor, suffix) = match unit {
            u if u >= 1e9 => (1e9, "G"),
            u if u >= 1e6 => (1e6, "M"),
            u if u >= 1e4 => (1e3, "k"),
            _ => (1.0, ""),
        };
        if value == 0.0 {
            return "0".into();
        }
        if self.log || !(1e-3..1e12).contains(&largest) {
            return significant(value / divisor, 3) + suffix;
        }
        fixed(value / divisor, step_decimals(self.step / divisor)) + suffix
    }
}

/// A range that can be divided by: an empty one gets room around it.
fn widen(low: f64, high: f64) -> (f64, f64) {
    /// Below this, f64 has no digits left to divide.
    const NOTHING: f64 = 1e-290;
    if high - low > (f64::EPSILON * high.abs().max(low.abs())).max(NOTHING) {
        return (low, high);
    }
    let room = if low.abs() < NOTHING { 1.0 } else { low.abs() * 0.1 };
    (low - room, low + room)
}

/// The smallest of 1, 2, 5 × 10ᵏ that is no smaller than `raw`.
fn nice_step(raw: f64) -> f64 {
    let decade = 10_f64.powf(raw.log10().floor());
    let multiple = [1.0, 2.0, 5.0].into_iter().find(|m| m * decade >= raw * (1.0 - 1e-9)).unwrap_or(10.0);
    multiple * decade
}

fn step_decimals(step: f64) -> usize {
    (0..9).find(|&d| (step * 10_f64.powi(d) - (step * 10_f64.powi(d)).round()).abs() < 1e-6).unwrap_or(9) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[rstest]
    #[case(2.13, 3.57, &["2.0", "2.5", "3.0", "3.5", "4.0"])]
    #[case(0.0, 20_000.0, &["0", "5k", "10k", "15k", "20k"])]
    #[case(-0.3, 0.4, &["−0.4", "−0.2", "0", "0.2", "0.4"])]
    #[case(0.0, 3e-5, &["0", "1e−5", "2e−5", "3e−5"])]
    fn linear_ticks_are_round_numbers(#[case] low: f64, #[case] high: f64, #[case] expected: &[&str]) {
        assert_eq!(labels(&Axis::linear(low, high, 4, (0.0, 100.0))), expected);
    }

    #[rstest]
    #[case(1.0, 1000.0, &["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000"])]
    #[case(1.0, 1e5, &["1", "10", "100", "1000", "10k", "100k"])]
    fn log_ticks_are_powers(#[case] low: f64, #[case] high: f64, #[case] expected: &[&str]) {
        assert_eq!(labels(&Axis::log(low, high, (0.0, 100.0))), expected);
    }

    #[rstest]
    #[case(0.0, 0.0)]
    #[case(5.0, 5.0)]
    #[case(-2.0, -2.0)]
    #[case(1e300, 1e300)]
    #[case(0.0, 5e-324)]
    #[case(-5e-324, 1e-310)]
    fn a_single_value_still_has_a_place(#[case] low: f64, #[case] high: f64) {
        let axis = Axis::linear(low, high, 5, (0.0, 100.0));
        assert!((0.0..=100.0).contains(&axis.place(low)));
        assert!(!axis.ticks().is_empty());
    }

    #[rstest]
    #[case(2.13, 3.57)]
    #[case(-0.01, 1.02)]
    #[case(0.0, 1.0)]
    #[case(2.1, 8.2)]
    #[case(5.0, 5.0)]
    fn a_filled_axis_wastes_little(#[case] low: f64, #[case] high: f64) {
        let axis = Axis::filled(low, high, (0.0, 100.0));
        assert!(axis.place(low) >= -1e-9 && axis.place(high) <= 100.0 + 1e-9);
        assert!(low == high || axis.place(high) - axis.place(low) > 68.0);
    }

    #[test]
    fn ends_lie_on_the_paper_asked_for() {
        let axis = Axis::exact(3.0, 7.0, 4, (50.0, 10.0));
        assert!((axis.place(3.0) - 50.0).abs() < 1e-9 && (axis.place(7.0) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn whole_numbers_have_no_halves_between_them() {
        let layers = Axis::exact(0.0, 3.0, 8, (0.0, 1.0));
        assert!(labels(&layers).contains(&"0.5".to_owned()));
        assert_eq!(labels(&layers.whole()), ["0", "1", "2", "3"]);
        let steps = Axis::exact(0.0, 220.0, 8, (0.0, 1.0));
        assert_eq!(labels(&steps.clone().whole()), labels(&steps));
    }
}
