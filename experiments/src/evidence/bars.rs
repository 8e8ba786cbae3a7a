//! The bars that were set before anything was run, and how far each is reached.

use tinyonn::metrics::Interval;

use super::compared::{part_of_rise, rise};
use super::{Cell, CellRecord, EvidenceConfig, EvidenceOutcome, Method};

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// At most.
    Most(f64),
    /// At least.
    Least(f64),
    /// Below zero up to the upper end of its interval, and at most so much.
    Surely(f64),
}

impl Bound {
    fn words(self) -> String {
        match self {
            Self::Most(most) => format!("≤ {most}"),
            Self::Least(least) => format!("≥ {least}"),
            Self::Surely(most) if most < 0.0 => format!("< 0 surely, ≤ {most}"),
            Self::Surely(_) => "< 0 surely".into(),
        }
    }

    fn met(self, found: Interval) -> bool {
        match self {
            Self::Most(most) => found.mean <= most,
            Self::Least(least) => found.mean >= least,
            Self::Surely(most) => found.high < 0.0 && found.mean <= most,
        }
    }
}

/// What is measured for a bar.
#[derive(Clone, Copy, Debug)]
enum Figure {
    Ratio,
    Kept,
    KeptWithoutFloor,
    AheadOf(Method),
    UnseenOfPruned,
    MlpTime,
}

/// A bar: what at which share, in closed form and behind distillation.
pub(crate) struct Bar {
    what: &'static str,
    percent: u32,
    figure: Figure,
    bounds: [Option<Bound>; 2],
}

/// All of them.
pub(crate) fn bars() -> Vec<Bar> {
    let bar = |what, percent, figure, bounds| Bar { what, percent, figure, bounds };
    let (most, least, surely) = (|x| Some(Bound::Most(x)), |x| Some(Bound::Least(x)), |x| Some(Bound::Surely(x)));
    let mut bars = vec![
        bar("perplexity ÷ the dense model's", 75, Figure::Ratio, [most(1.04), most(1.01)]),
        bar("(accuracy − floor) kept", 75, Figure::Kept, [least(0.9), least(0.95)]),
        bar("perplexity ÷ the dense model's", 50, Figure::Ratio, [most(1.22), most(1.07)]),
        bar("(accuracy − floor) kept", 50, Figure::Kept, [least(0.65), least(0.8)]),
        bar("accuracy kept", 50, Figure::KeptWithoutFloor, [None, least(0.9)]),
    ];
    for percent in [25, 33, 50, 75] {
        let after = if percent == 50 { -0.1 } else { 0.0 };
        bars.push(bar("nats above pruning", percent, Figure::AheadOf(Method::Pruned), [surely(0.0), surely(after)]));
    }
    for percent in [25, 33, 50, 75] {
        let bounds = [most(0.6), most(0.6)];
        bars.push(bar("kinds never calibrated on: rise ÷ pruning's", percent, Figure::UnseenOfPruned, bounds));
    }
    for percent in [25, 33, 50, 75] {
        let cmoe = Figure::AheadOf(Method::Cmoe { experts: 16 });
        bars.push(bar("nats above carved experts", percent, cmoe, [surely(0.0), None]));
    }
    for (percent, bound) in [(50, 0.65), (75, 0.85)] {
        let what = "MLP's time for a token ÷ the dense MLP's, on a processor";
        bars.push(bar(what, percent, Figure::MlpTime, [most(bound), None]));
    }
    bars
}

impl Bar {
    /// The leading cells of its row.
    pub(crate) fn leading(&self) -> Vec<String> {
        vec![self.what.into(), format!("{} %", self.percent)]
    }

    /// Its row: in closed form the bound and what was found, the same behind distillation.
    pub(crate) fn row(&self, outcome: &EvidenceOutcome, config: &EvidenceConfig) -> Vec<String> {
        let mut row = self.leading();
        for (bound, steps) in self.bounds.into_iter().zip([0, config.distil.steps]) {
            row.push(bound.map_or_else(|| "–".into(), Bound::words));
            let cell = Cell { steps, ..Cell::of(Method::OwnGate, self.percent, config.seed) };
            let own = bound.and_then(|bound| Some((bound, outcome.of(&cell)?)));
            let found = own.and_then(|(bound, own)| Some((bound, self.found(outcome, own, config.seed)?)));
            row.push(found.map_or_else(|| "–".into(), |(bound, found)| told(bound, found)));
        }
        row
    }

    fn found(&self, outcome: &EvidenceOutcome, own: &CellRecord, seed: u64) -> Option<Interval> {
        let dense = outcome.dense(&own.cell)?;
        match self.figure {
            Figure::Ratio => outcome.ratio(own),
            Figure::Kept => outcome.kept(own),
            Figure::KeptWithoutFloor => outcome.accuracy_kept(own),
            Figure::AheadOf(method) => {
                let other = outcome.of(&Cell { method, ..own.cell })?;
                rise(&own.test, &other.test, seed)
            }
            Figure::MlpTime => Some(outcome.speed(&own.cell)?.mlp),
            Figure::UnseenOfPruned => {
                part_of_rise(&own.unseen, &outcome.pruned(&own.cell)?.unseen, &dense.unseen, seed)
            }
        }
    }

    /// Whether it is reached in closed form and behind distillation, where it was measured.
    pub(crate) fn reached(&self, outcome: &EvidenceOutcome, config: &EvidenceConfig) -> [Option<bool>; 2] {
        let of = |(bound, steps): (Option<Bound>, u64)| {
            let cell = Cell { steps, ..Cell::of(Method::OwnGate, self.percent, config.seed) };
            Some(bound?.met(self.found(outcome, outcome.of(&cell)?, config.seed)?))
        };
        let [closed, distilled] = self.bounds;
        [of((closed, 0)), of((distilled, config.distil.steps))]
    }
}

fn told(bound: Bound, found: Interval) -> String {
    let verdict = if bound.met(found) { "reached" } else { "not reached" };
    format!("{:.3} [{:.3}, {:.3}], {verdict}", found.mean, found.low, found.high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Bound::Most(1.0), (0.9, 0.8, 1.1), true)]
    #[case(Bound::Least(1.0), (0.9, 0.8, 1.1), false)]
    #[case(Bound::Surely(0.0), (-0.1, -0.2, 0.1), false)]
    #[case(Bound::Surely(-0.1), (-0.05, -0.06, -0.04), false)]
    #[case(Bound::Surely(-0.1), (-0.2, -0.3, -0.1), true)]
    fn a_bound_is_met(#[case] bound: Bound, #[case] (mean, low, high): (f64, f64, f64), #[case] met: bool) {
        assert_eq!(bound.met(Interval { mean, low, high }), met);
    }
}
