//! The bars that were set before anything was run, and what stands beside the library's choices.

use tinyonn::metrics::Interval;
use tinyonn::moe::{PairsBy, Prefill};

use super::grid::AS_EIGHT_BITS;
use super::tables::within;
use super::{AttentionConfig, AttentionOutcome, Cell, Method};

/// The rows of the trial that are measured anew.
const TRIAL: [Method; 2] = [Method::Components { r: 8, by: PairsBy::Head }, MAIN];
/// What the library makes whose heads share the rows that they read.
const OWN: [Method; 3] = [MAIN, Method::Components { r: 8, by: PairsBy::KvHead }, Method::BlockMeans { size: 8 }];
/// What others are held against.
const MAIN: Method = Method::Directions { r: 16, by: PairsBy::KvHead };
/// These.
const RIVALS: [Method; 6] = [
    Method::Window,
    Method::MinMax { size: 16 },
    Method::BlockMeans { size: 16 },
    Method::Sparq { r: 8, mean_value: true },
    Method::HeavyHitters,
    Method::EightBits,
];
/// The share at which bars are set.
const SHARE: f64 = 0.125;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Text,
    Facts,
}

/// A bar.
pub(super) struct Bar {
    figure: Figure,
    length: usize,
    prefill: Prefill,
}

/// All of them.
pub(super) fn bars(config: &AttentionConfig) -> Vec<Bar> {
    let figures = [Figure::Text, Figure::Facts];
    let of_length = |length: usize| {
        let both = move |figure| [Prefill::Sparse, Prefill::Dense].map(|prefill| Bar { figure, length, prefill });
        figures.into_iter().flat_map(both)
    };
    config.texts.iter().flat_map(|texts| of_length(texts.length)).collect()
}

impl Bar {
    /// The leading cells of its row.
    pub(super) fn leading(&self) -> Vec<String> {
        let what = match self.figure {
            Figure::Text => "text, nats a token above dense",
            Figure::Facts => "facts, nats a digit above dense",
        };
        vec![what.into(), self.length.to_string(), self.prefill.word().into()]
    }

    /// Its row.
    pub(super) fn row(&self, outcome: &AttentionOutcome) -> Vec<String> {
        let mut row = self.leading();
        let trial: Vec<Option<Interval>> = TRIAL.iter().map(|method| self.found(*method, outcome)).collect();
        row.push(trial.iter().map(|found| within(*found)).collect::<Vec<_>>().join("; "));
        let better = trial.into_iter().flatten().map(|found| found.mean).min_by(f64::total_cmp);
        let aim = if self.figure == Figure::Text { 0.7 } else { 0.5 };
        let most = |times: f64| better.map_or_else(|| "–".to_owned(), |rise| format!("≤ {:.3}", times * rise));
        row.extend([most(1.1), most(aim)]);
        let own = OWN.iter().filter_map(|method| Some((method, self.found(*method, outcome)?)));
        match (own.min_by(|a, b| a.1.mean.total_cmp(&b.1.mean)), better) {
            (Some((method, found)), Some(rise)) => {
                let verdict = match found.mean {
                    own if own <= aim * rise => "the aim is reached",
                    own if own <= 1.1 * rise => "reached",
                    _ => "not reached",
                };
                row.extend([format!("{}, {verdict}", within(Some(found))), method.name()]);
            }
            _ => row.extend(["–".to_owned(), "–".to_owned()]),
        }
        row
    }

    fn found(&self, method: Method, outcome: &AttentionOutcome) -> Option<Interval> {
        let own = outcome.of(&Cell { method, share: SHARE, prefill: self.prefill, length: self.length })?;
        match self.figure {
            Figure::Text => outcome.text_rise(own),
            Figure::Facts => outcome.facts_rise(own),
        }
    }
}

/// Another method beside the main directions.
pub(super) struct Rival {
    method: Method,
    share: f64,
    length: usize,
}

/// All of them.
pub(super) fn rivals(config: &AttentionConfig) -> Vec<Rival> {
    let mut rivals = Vec::new();
    for texts in &config.texts {
        for method in RIVALS {
            let shares = if method.has_shares() { config.shares.clone() } else { vec![AS_EIGHT_BITS] };
            rivals.extend(shares.into_iter().map(|share| Rival { method, share, length: texts.length }));
        }
    }
    rivals
}

impl Rival {
    /// The leading cells of its row.
    pub(super) fn leading(&self) -> Vec<String> {
        vec![self.length.to_string(), self.method.name(), format!("{} %", 100.0 * self.share)]
    }

    /// Its row.
    pub(super) fn row(&self, outcome: &AttentionOutcome) -> Vec<String> {
        let found = self.less(outcome);
        let mut row = self.leading();
        row.extend(found.map(within));
        let ahead = match found {
            [Some(text), Some(facts)] => match (text.high < 0.0, facts.high < 0.0) {
                (true, true) => "on both",
                (true, false) => "on text",
                (false, true) => "on facts",
                (false, false) => "no",
            },
            _ => "–",
        };
        row.push(ahead.into());
        row
    }

    /// How far the main directions lie above it, on text and on facts.
    fn less(&self, outcome: &AttentionOutcome) -> [Option<Interval>; 2] {
        let of = |method: Method, share: f64| {
            outcome.of(&Cell { method, share, prefill: Prefill::Sparse, length: self.length })
        };
        let other = of(self.method, if self.method.has_shares() { self.share } else { 1.0 });
        let (Some(own), Some(other)) = (of(MAIN, self.share), other) else { return [None, None] };
        [outcome.text_above(own, other), outcome.facts_above(own, other)]
    }
}
