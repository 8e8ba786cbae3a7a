//! Labels that use all choices: at each router, each choice is taken by about as many tasks (`balance = sinkhorn`).
//!
//! Of a router with C choices that T tasks pass, S[t, c] the score of choice c on task t: entropic optimal transport (Cuturi, 2013)
//! finds prices v with P[t, c] = exp((S[t, c] + v_c)/τ − u_t), Σ_c P[t, c] = 1, Σ_t P[t, c] = T / C. A task then takes the best by
//! S[t, c] + v_c instead of S[t, c]: a choice that everybody wants becomes dear. Where choices are even at these scores, the prices
//! are equal and change nothing. τ is [`TEMPERATURE`] of the deviation of the scores from their mean over choices, so that their unit
//! does not matter. A path takes k choices, a plan of k times the mass: the k dearest bids of its row.
//!
//! Downwards, level by level: the tasks that a router sees are those whose balanced path leads to it. Deterministic; in logarithms, f64.

use serde::{Deserialize, Serialize};

use crate::moe::MoeSpec;

/// Whether labels share the experts out evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelBalance {
    /// Each task takes its best, whoever else does.
    #[default]
    None,
    /// Each choice of a router is taken by about as many tasks (Sinkhorn and Knopp, 1967).
    Sinkhorn,
}

/// τ over the deviation of a router's scores: low enough that plans are nearly whole numbers, high enough to settle in [`ROUNDS`].
const TEMPERATURE: f64 = 0.05;
/// Rounds at most.
const ROUNDS: usize = 500;
/// A plan is even when no choice is off its share by more than this part of it.
const EVEN: f64 = 1e-3;

/// Adds the prices to the scores `[task][level][node]` of one layer; a path takes `widths[level][router]` choices.
pub(super) fn even(spec: &MoeSpec, widths: &[Vec<usize>], scores: &mut [Vec<Vec<f64>>]) {
    let mut passing: Vec<Vec<usize>> = vec![(0..scores.len()).collect()];
    for (level, declared) in spec.levels.iter().enumerate() {
        let mut next = vec![Vec::new(); declared.nodes()];
        for ((tasks, slot), width) in passing.iter().zip(declared.slots()).zip(&widths[level]) {
            let own: Vec<&[f64]> = tasks.iter().map(|task| &scores[*task][level][slot.nodes.clone()]).collect();
            let prices = prices(&own);
            for task in tasks {
                let own = &mut scores[*task][level][slot.nodes.clone()];
                own.iter_mut().zip(&prices).for_each(|(score, price)| *score += price);
                let mut order: Vec<usize> = (0..own.len()).collect();
                order.sort_by(|a, b| own[*b].total_cmp(&own[*a]).then(a.cmp(b)));
                order[..*width].iter().for_each(|choice| next[slot.nodes.start + choice].push(*task));
            }
        }
        passing = next;
    }
}

/// v_c of the scores `[t][c]` of one router; zeros where nothing is to be shared out.
fn prices(scores: &[&[f64]]) -> Vec<f64> {
    let (tasks, choices) = (scores.len(), scores.first().map_or(0, |row| row.len()));
    let mut prices = vec![0.0; choices];
    let temperature = TEMPERATURE * deviation(scores);
    if tasks < 2 || choices < 2 || temperature <= 0.0 {
        return prices;
    }
    let share = tasks as f64 / choices as f64;
    for _ in 0..ROUNDS {
        // Rows to one under the prices, then each choice's mass.
        let mut mass = vec![0.0; choices];
        for row in scores {
            let bids: Vec<f64> = row.iter().zip(&prices).map(|(s, v)| (s + v) / temperature).collect();
            let most = bids.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = bids.iter().map(|bid| (bid - most).exp()).sum();
            mass.iter_mut().zip(&bids).for_each(|(mass, bid)| *mass += (bid - most).exp() / sum);
        }
        if mass.iter().all(|mass| (mass - share).abs() <= EVEN * share) {
            break;
        }
        // A choice that nobody bids for has a mass that underflows.
        let smallest = share * 1e-12;
        prices
            .iter_mut()
            .zip(&mass)
            .for_each(|(price, mass)| *price -= temperature * (mass.max(smallest) / share).ln());
    }
    prices
}

/// The root mean square of what is left of the scores without each task's mean.
fn deviation(scores: &[&[f64]]) -> f64 {
    let squares = |row: &&[f64]| {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        row.iter().map(|score| (score - mean) * (score - mean)).sum::<f64>()
    };
    let count: usize = scores.iter().map(|row| row.len()).sum();
    (scores.iter().map(squares).sum::<f64>() / count.max(1) as f64).sqrt()
}
