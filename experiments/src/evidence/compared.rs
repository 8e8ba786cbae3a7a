//! Cells held against one another in pairs: documents of a kind and items of a benchmark are drawn with replacement, each with what both cells say of it.

use rand::Rng as _;
use tinyonn::metrics::Interval;
use tinyonn::random;

use super::{KindLosses, TaskAnswers};

/// Draws.
const DRAWS: usize = 1000;
/// Draws left out at either end: 2.5 %.
const TAIL: usize = DRAWS / 40;

/// A figure of the groups' sums, and where it lies with 95 % confidence where the rows of each group are drawn anew.
fn drawn<const K: usize>(groups: &[Vec<[f64; K]>], seed: u64, figure: impl Fn(&[[f64; K]]) -> f64) -> Interval {
    let add = |mut sum: [f64; K], row: &[f64; K]| {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        sum
    };
    let whole: Vec<[f64; K]> = groups.iter().map(|rows| rows.iter().fold([0.0; K], add)).collect();
    let mean = figure(&whole);
    let mut rng = random::stream(seed, "evidence");
    let mut figures: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let of = |rows: &Vec<[f64; K]>| {
                (0..rows.len()).fold([0.0; K], |sum, _| add(sum, &rows[rng.random_range(0..rows.len())]))
            };
            figure(&groups.iter().map(of).collect::<Vec<_>>())
        })
        .collect();
    figures.sort_unstable_by(f64::total_cmp);
    Interval { mean, low: figures[TAIL - 1].min(mean), high: figures[DRAWS - TAIL].max(mean) }
}

/// Of each document of a kind Σ of the losses of some cells, and its tokens.
type Documents<const K: usize> = Vec<([f64; K], f64)>;

/// By kind; `None` where cells were read on other text.
fn paired<const K: usize>(kinds: [&[KindLosses]; K]) -> Option<Vec<Documents<K>>> {
    let first = kinds[0];
    let alike = |other: &&[KindLosses]| {
        let same = |(a, b): (&KindLosses, &KindLosses)| {
            a.kind == b.kind && a.documents.iter().map(|own| own.1).eq(b.documents.iter().map(|own| own.1))
        };
        first.len() == other.len() && first.iter().zip(*other).all(same)
    };
    if first.is_empty() || !kinds.iter().all(alike) {
        return None;
    }
    let of_kind = |kind: usize| {
        let documents = 0..first[kind].documents.len();
        documents.map(|at| (kinds.map(|kinds| kinds[kind].documents[at].0), first[kind].documents[at].1)).collect()
    };
    Some((0..first.len()).map(of_kind).collect())
}

/// The mean over kinds of how much the loss of `one` lies above that of `other`, nats a token.
pub(crate) fn rise(one: &[KindLosses], other: &[KindLosses], seed: u64) -> Option<Interval> {
    let groups: Vec<Vec<[f64; 2]>> = paired([one, other])?
        .into_iter()
        .map(|documents| documents.into_iter().map(|([one, other], tokens)| [one - other, tokens]).collect())
        .collect();
    Some(drawn(&groups, seed, |sums| mean(sums.iter().map(|[sum, tokens]| sum / tokens))))
}

/// The mean over kinds of nats a token; `None` of no text.
pub(crate) fn mean_of_kinds(kinds: &[KindLosses], seed: u64) -> Option<Interval> {
    let of_kind = |kind: &KindLosses| kind.documents.iter().map(|(sum, tokens)| [*sum, *tokens]).collect();
    let groups: Vec<Vec<[f64; 2]>> = kinds.iter().map(of_kind).collect();
    (!groups.is_empty()).then(|| drawn(&groups, seed, |sums| mean(sums.iter().map(|[sum, tokens]| sum / tokens))))
}

/// exp of [`rise`].
pub(crate) fn perplexity_ratio(one: &[KindLosses], other: &[KindLosses], seed: u64) -> Option<Interval> {
    let rise = rise(one, other, seed)?;
    Some(Interval { mean: rise.mean.exp(), low: rise.low.exp(), high: rise.high.exp() })
}

/// How much the loss of `one` rises above that of `dense`, as a part of how much that of `other` does; means over kinds.
pub(crate) fn part_of_rise(
    one: &[KindLosses],
    other: &[KindLosses],
    dense: &[KindLosses],
    seed: u64,
) -> Option<Interval> {
    let groups: Vec<Vec<[f64; 3]>> = paired([one, other, dense])?
        .into_iter()
        .map(|documents| {
            documents.into_iter().map(|([one, other, dense], tokens)| [one - dense, other - dense, tokens]).collect()
        })
        .collect();
    let of = |sums: &[[f64; 3]], at: usize| mean(sums.iter().map(|sums| sums[at] / sums[2]));
    Some(drawn(&groups, seed, |sums| of(sums, 0) / of(sums, 1)))
}

/// Of the benchmarks that carry signal: Σ (accuracy − floor) as a part of the dense model's, or with `floors` false Σ accuracy.
pub(crate) fn kept(one: &[TaskAnswers], dense: &[TaskAnswers], floors: bool, seed: u64) -> Option<Interval> {
    let (mut groups, mut levels) = (Vec::<Vec<[f64; 3]>>::new(), Vec::new());
    for (own, first) in one.iter().zip(dense) {
        if own.figures.items_sha256 != first.figures.items_sha256 {
            return None;
        }
        if first.figures.signal {
            let right = |right: bool| f64::from(u8::from(right));
            groups.push(own.right.iter().zip(&first.right).map(|(a, b)| [right(*a), right(*b), 1.0]).collect());
            levels.push(if floors { first.figures.floor } else { 0.0 });
        }
    }
    let above = |sums: &[[f64; 3]], at: usize| {
        sums.iter().zip(&levels).map(|(sums, floor)| sums[at] / sums[2] - floor).sum::<f64>()
    };
    (!groups.is_empty()).then(|| drawn(&groups, seed, |sums| above(sums, 0) / above(sums, 1)))
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal but for roundings of some additions.
    fn about(found: Option<Interval>, expected: f64) -> bool {
        found.is_some_and(|found| (found.mean - expected).abs() < 1e-12)
    }

    fn kinds(of: &[&[f64]]) -> Vec<KindLosses> {
        let kind = |(at, sums): (usize, &&[f64])| KindLosses {
            kind: format!("kind {at}"),
            documents: sums.iter().map(|sum| (*sum, 2.0)).collect(),
        };
        of.iter().enumerate().map(kind).collect()
    }

    #[test]
    fn kinds_count_alike_and_pairs_leave_out_what_both_share() {
        let (one, other) = (kinds(&[&[5.0, 9.0, 4.0], &[3.0]]), kinds(&[&[4.0, 8.0, 3.0], &[0.0]]));
        // Every document of a kind is as much dearer: one nat of two tokens, three nats of two.
        let found = rise(&one, &other, 0).map(|found| [found.mean, found.low, found.high]);
        assert_eq!(found, Some([1.0; 3]));
        assert!(about(perplexity_ratio(&one, &other, 0), 1f64.exp()));
        let dense = kinds(&[&[2.0, 6.0, 1.0], &[0.0]]);
        // (3/2 + 3/2) / 2 of (2/2 + 0) / 2.
        assert!(about(part_of_rise(&one, &other, &dense, 0), 3.0));
    }

    #[test]
    fn other_text_is_not_compared() {
        assert!(rise(&kinds(&[&[1.0]]), &kinds(&[&[1.0, 2.0]]), 0).is_none());
        assert!(rise(&[], &[], 0).is_none());
    }
}
