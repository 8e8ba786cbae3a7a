//! The claim, tested: ∫SPS knows each task's optimal path. It holds where labels by ∫SPS have a lower held-out loss, paired by seed and document, than the same
//! labels dealt to other tasks, than labels by activation, and than labels by first-order Taylor, signed and by magnitude (DESIGN §3).

use super::outcome::{Finished, Outcome, Via};
use super::{Cell, CompareConfig};
use crate::frontier::times;
use tinyonn::imaging::{How, LabelSource, Score};
use tinyonn::metrics::{Interval, mean_interval};
use tinyonn::ops::GradSite;

/// What ∫SPS must beat.
pub const RIVALS: [LabelSource; 4] = [
    LabelSource::By(Score::Sps, How::Permuted),
    LabelSource::By(Score::Activation, How::Best),
    LabelSource::By(Score::Taylor, How::Best),
    LabelSource::By(Score::TaylorMagnitude, How::Best),
];

/// ∫SPS against its rivals in one setting.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The text.
    pub corpus: String,
    /// The cell of ∫SPS.
    pub cell: Cell,
    /// L(∫SPS) − L(rival), nats a token, in the order of [`RIVALS`].
    pub against: Vec<Difference>,
}

/// A difference of two losses in nats a token, paired by seed and document.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Over the documents of all seeds: how sure it is of these models.
    pub interval: Interval,
    /// Each seed's own.
    pub by_seed: Vec<f64>,
}

impl Difference {
    /// Over seeds: how sure it is of other models made alike. None of a single seed.
    #[must_use]
    pub fn over_models(&self) -> Option<Interval> {
        mean_interval(&self.by_seed)
    }

    /// Below zero with 95 % confidence, over documents and over models.
    #[must_use]
    pub fn is_below(&self) -> bool {
        self.interval.high < 0.0 && self.over_models().is_some_and(|models| models.high < 0.0)
    }

    /// Above zero with 95 % confidence, over documents and over models.
    #[must_use]
    pub fn is_above(&self) -> bool {
        self.interval.low > 0.0 && self.over_models().is_some_and(|models| models.low > 0.0)
    }
}

impl Trial {
    /// Whether ∫SPS is better than all rivals.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.against.iter().all(Difference::is_below)
    }

    /// Whether ∫SPS is worse than one of them.
    #[must_use]
    pub fn is_refuted(&self) -> bool {
        self.against.iter().any(Difference::is_above)
    }
}

impl Outcome {
    /// Every setting that has labels by ∫SPS and by all rivals; along paths, no router between. Where surprise is measured at the
    /// MLP's output, all units have the same, and ∫SPS is activation: that control is no setting.
    #[must_use]
    pub fn trials(&self, config: &CompareConfig) -> Vec<Trial> {
        let cells: Vec<Cell> = config.cells();
        let settings = || cells.iter().filter(|cell| is_asked(cell));
        let of = |corpus: &(String, Vec<Finished>), cell: &Cell| {
            let against = RIVALS.iter().map(|rival| {
                let rival = Cell { labels: *rival, ..cell.clone() }.canonical();
                let (a, b) = ((cell, Via::Paths), (&rival, Via::Paths));
                let by_seed = self.paired_by_seed(&corpus.1, a, b)?;
                Some(Difference { interval: self.paired(&corpus.1, a, b)?, by_seed })
            });
            let against = against.collect::<Option<Vec<_>>>()?;
            Some(Trial { corpus: corpus.0.clone(), cell: cell.clone(), against })
        };
        self.corpora.iter().flat_map(|corpus| settings().filter_map(move |cell| of(corpus, cell))).collect()
    }
}

pub(super) fn is_asked(cell: &Cell) -> bool {
    cell.labels == LabelSource::SPS && !cell.routed && cell.grad_site != GradSite::Output
}

/// What the trials say, in sentences: whether the claim held, where, by how much.
#[must_use]
pub fn verdict(trials: &[Trial]) -> Vec<String> {
    let held: Vec<&Trial> = trials.iter().filter(|trial| trial.holds()).collect();
    let answer = match (held.len(), trials.len()) {
        (_, 0) => {
            let rivals = RIVALS.map(|rival| format!("`{rival}`")).join(", ");
            format!("Nothing was compared: the grid has no setting with `sps` and all of {rivals}, not routed.")
        }
        (some, all) => {
            let refuted = trials.iter().filter(|trial| trial.is_refuted()).count();
            let count = match some {
                0 => "none".into(),
                some if some == all => "all".into(),
                some => some.to_string(),
            };
            let left = all - some - refuted;
            format!("The claim held in {count} of {}: refuted in {refuted}, undecided in {left}.", settings(all))
        }
    };
    let mut said = vec![
        answer,
        "The claim: labels by ∫SPS = z(activation) − z(surprise) find each task's optimal computation path. It holds where their held-out loss is \
         lower, paired by seed and document, with 95 % confidence over documents and over models, than that of the same paths dealt to other tasks, of labels by activation \
         alone, and of labels by first-order Taylor, signed or by magnitude, all without a router between; it is refuted where it is higher than one of theirs. A setting is a text, a partition of neurons \
         into experts, a number of active experts, a form of the image, and whether labels are contrasted (by what sets a task apart). Intervals over documents speak of these models, those over models (Student's t over seeds) of others made alike; \
         neither is corrected for the number of settings or of rivals. A document that several seeds test counts once a seed, and settings \
         share cells of rivals: neither is independent."
            .to_owned(),
    ];
    for (at, rival) in RIVALS.iter().enumerate() {
        let deltas: Vec<&Difference> = trials.iter().map(|trial| &trial.against[at]).collect();
        let better = deltas.iter().filter(|delta| delta.is_below()).count();
        let worse = deltas.iter().filter(|delta| delta.is_above()).count();
        let least = deltas.iter().map(|delta| delta.interval.mean).fold(f64::INFINITY, f64::min);
        let most = deltas.iter().map(|delta| delta.interval.mean).fold(f64::NEG_INFINITY, f64::max);
        if !deltas.is_empty() {
            said.push(format!(
                "Against `{rival}`: better in {better} of {}, worse in {worse}, undecided in {}; the difference in nats a token runs from \
                 {least:+.3} to {most:+.3} (below zero: ∫SPS is better).",
                settings(deltas.len()),
                deltas.len() - better - worse,
            ));
        }
    }
    if !held.is_empty() {
        let place = |trial: &&Trial| {
            let Cell { partition, top_k, .. } = &trial.cell;
            format!(
                "{} text, `{partition}` partition, k = {}, image `{}`",
                trial.corpus,
                times(top_k),
                trial.cell.image_in_words()
            )
        };
        said.push(format!("It held here: {}.", held.iter().map(place).collect::<Vec<_>>().join("; ")));
    }
    said
}

pub(super) fn settings(count: usize) -> String {
    if count == 1 { "one setting".into() } else { format!("{count} settings") }
}
