//! Labels that use all choices: at each router, each choice is taken by about as many tasks (`balance = sinkhorn`).
//!
//! Of a router with C choices that T tasks pass, S[t, c] the score of choice c on task t: entropic optimal transport (Cuturi, 2013)
//! finds prices v with P[t, c] = exp((S[t, c] + v_c)/τ − u_t), Σ_c P[t, c] = 1, Σ_t P[t, c] = T / C, and each task takes the best by
//! S[t, c] + v_c: a choice that everybody wants becomes dear. As τ → 0 that is the assignment of the largest total score among the even
//! ones, so where the tasks' own best are even already they are kept. A path of k choices takes k such passes: in the
//! j-th, choices that a task has taken are closed to it, and Σ_t P[t, c] is what choice c lacks of j T / C.
//!
//! τ falls by halves from σ to σ/64, each step starting from the prices of the one before, σ the deviation of S without its means over
//! tasks and over choices: neither a score's unit nor its general level matters. Tasks whose scores are all alike (σ = 0) cannot
//! be told apart, and keep their common best. Downwards level by level: the tasks that a router sees are those whose balanced path
//! leads to it. Deterministic; f64, in logarithms.
//!
//! Tokens, of which there are many, are balanced by the prices of a sample of them: a token takes the best by S + v, and what is even for
//! the sample is nearly so for all.

use serde::{Deserialize, Serialize};

use crate::moe::{MoeSpec, select};

/// Whether labels share the experts out evenly.
///
/// ```
/// use tinyonn::imaging::{Integral, LabelBalance, Labels};
/// use tinyonn::moe::moe;
///
/// #[moe(levels = [2], top_k = 1)]
/// struct Contested;
///
/// // Both tasks do best by the first expert; the second task loses less by taking the other.
/// let integral = Integral { neurons: vec![vec![vec![0.9, 0.0]], vec![vec![0.5, 0.4]]] };
/// let of = |balance| Labels::balanced(&integral, &[vec![0, 1]], &Contested::SPEC, balance).paths.experts;
/// assert_eq!(of(LabelBalance::None), [[[0]], [[0]]]);
/// assert_eq!(of(LabelBalance::Sinkhorn), [[[0]], [[1]]]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LabelBalance {
    /// Each task takes its best, whoever else does.
    #[default]
    None,
    /// Each choice of a router is taken by about as many tasks (Sinkhorn and Knopp, 1967).
    Sinkhorn,
}

/// Times that τ is halved from σ.
const HALVINGS: i32 = 6;
/// Rounds at each τ, at most.
const ROUNDS: usize = 200;
/// A plan is even when no choice is off its target by more than this part of an even share.
const EVEN: f64 = 1e-3;
/// Deviations at or below this part of the scores' size are rounding.
const ROUNDING: f64 = 1e-9;

/// What the choices of one layer's routers cost, so that all are taken about as often.
///
/// ```
/// use tinyonn::decoder::FeedForward;
/// use tinyonn::imaging::{Prices, RowLabels, TokenPass, TokenScore, token_labels, token_prices};
///
/// /// Labels of tokens that share the experts out about evenly.
/// fn balanced<F: FeedForward>(pass: &TokenPass<'_, F>, by: TokenScore<'_>) -> tinyonn::Result<Vec<RowLabels>> {
///     let prices: Vec<Prices> = token_prices(pass, TokenScore { prices: None, ..by })?;
///     token_labels(pass, TokenScore { prices: Some(&prices), ..by })
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// `[level][router][pass][choice]`; no pass of a router that nobody came to.
    levels: Vec<Vec<Vec<Vec<f64>>>>,
}

impl Prices {
    /// Those of the scores `[task or token][level][node]` of one layer.
    pub(super) fn of(spec: &MoeSpec, mut scores: Vec<Vec<Vec<f64>>>) -> Self {
        even(spec, &select::path_widths(spec), &mut scores)
    }

    /// Replaces the scores `[level][node]` of one token by marks, as [`even`] does. A router without prices takes its best.
    pub(super) fn mark(&self, spec: &MoeSpec, widths: &[Vec<usize>], scores: &mut [Vec<f64>]) {
        for ((declared, routers), (scores, widths)) in
            spec.levels.iter().zip(&self.levels).zip(scores.iter_mut().zip(widths))
        {
            for ((slot, passes), width) in declared.slots().zip(routers).zip(widths) {
                let free = vec![0.0; slot.nodes.len()];
                let own = &mut scores[slot.nodes];
                let taken: Vec<usize> =
                    (0..(*width).min(own.len())).map(|pass| take(own, passes.get(pass).unwrap_or(&free))).collect();
                own.fill(0.0);
                taken.into_iter().for_each(|choice| own[choice] = 1.0);
            }
        }
    }
}

/// The best choice by score and price, which is closed from then on.
fn take(scores: &mut [f64], prices: &[f64]) -> usize {
    let bid = |choice: usize| scores[choice] + prices[choice];
    let best = (1..scores.len()).fold(0, |best, choice| if bid(choice) > bid(best) { choice } else { best });
    scores[best] = f64::NEG_INFINITY;
    best
}

/// Replaces the scores `[task][level][node]` of one layer by marks, 1 for what a task takes and 0; a path takes
/// `widths[level][router]` choices.
pub(super) fn even(spec: &MoeSpec, widths: &[Vec<usize>], scores: &mut [Vec<Vec<f64>>]) -> Prices {
    let mut passing: Vec<Vec<usize>> = vec![(0..scores.len()).collect()];
    let mut levels = Vec::with_capacity(spec.levels.len());
    for (level, declared) in spec.levels.iter().enumerate() {
        let mut next = vec![Vec::new(); declared.nodes()];
        let mut routers = Vec::with_capacity(passing.len());
        for ((tasks, slot), width) in passing.iter().zip(declared.slots()).zip(&widths[level]) {
            let own: Vec<Vec<f64>> =
                tasks.iter().map(|task| scores[*task][level][slot.nodes.clone()].to_vec()).collect();
            let (taken, prices) = assign(own, *width);
            routers.push(prices);
            for (task, taken) in tasks.iter().zip(taken) {
                let marks = &mut scores[*task][level][slot.nodes.clone()];
                marks.fill(0.0);
                for choice in taken {
                    marks[choice] = 1.0;
                    next[slot.nodes.start + choice].push(*task);
                }
            }
        }
        passing = next;
        levels.push(routers);
    }
    Prices { levels }
}

/// The `width` choices of each task, from the scores `[t][c]` of one router, and the prices of each pass.
fn assign(mut scores: Vec<Vec<f64>>, width: usize) -> (Vec<Vec<usize>>, Vec<Vec<f64>>) {
    let (tasks, choices) = (scores.len() as f64, scores.first().map_or(0, Vec::len));
    let deviation = deviation(&scores);
    let mut taken = vec![Vec::with_capacity(width); scores.len()];
    let mut used = vec![0.0; choices];
    let mut of_pass = Vec::with_capacity(width);
    for pass in 1..=width.min(choices) {
        let share = tasks / choices as f64;
        let lacks: Vec<f64> = used.iter().map(|used| (pass as f64 * share - used).max(1e-6 * share)).collect();
        let scale = tasks / lacks.iter().sum::<f64>();
        let targets: Vec<f64> = lacks.iter().map(|lack| lack * scale).collect();
        let prices = prices(&scores, &targets, deviation);
        for (row, taken) in scores.iter_mut().zip(&mut taken) {
            let best = take(row, &prices);
            used[best] += 1.0;
            taken.push(best);
        }
        of_pass.push(prices);
    }
    (taken, of_pass)
}

/// v_c of the scores `[t][c]` of one router, −∞ where a choice is closed; zeros where the tasks are all alike.
fn prices(scores: &[Vec<f64>], targets: &[f64], deviation: f64) -> Vec<f64> {
    let mut prices = vec![0.0; targets.len()];
    if deviation <= 0.0 {
        return prices;
    }
    let share = scores.len() as f64 / targets.len() as f64;
    for halving in 0..=HALVINGS {
        let temperature = deviation * 0.5f64.powi(halving);
        for _ in 0..ROUNDS {
            let mass = masses(scores, &prices, temperature);
            if mass.iter().zip(targets).all(|(mass, target)| (mass - target).abs() <= EVEN * share) {
                break;
            }
            for ((price, mass), target) in prices.iter_mut().zip(&mass).zip(targets) {
                // A choice that nobody bids for has a mass that underflows.
                *price -= temperature * (mass.max(1e-12 * target) / target).ln();
            }
        }
    }
    prices
}

/// Σ_t P[t, c], the rows of P adding up to one.
fn masses(scores: &[Vec<f64>], prices: &[f64], temperature: f64) -> Vec<f64> {
    let mut masses = vec![0.0; prices.len()];
    for row in scores {
        let bids: Vec<f64> = row.iter().zip(prices).map(|(s, v)| (s + v) / temperature).collect();
        let most = bids.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = bids.iter().map(|bid| (bid - most).exp()).sum();
        masses.iter_mut().zip(&bids).for_each(|(mass, bid)| *mass += (bid - most).exp() / sum);
    }
    masses
}

/// σ: the root mean square of S[t, c] − S[t, ·] − S[·, c] + S[·, ·]; 0 where that is rounding.
fn deviation(scores: &[Vec<f64>]) -> f64 {
    let (tasks, choices) = (scores.len(), scores.first().map_or(0, Vec::len));
    let count = (tasks * choices).max(1) as f64;
    let of_task: Vec<f64> = scores.iter().map(|row| row.iter().sum::<f64>() / choices as f64).collect();
    let of_choice: Vec<f64> =
        (0..choices).map(|choice| scores.iter().map(|row| row[choice]).sum::<f64>() / tasks as f64).collect();
    let mean = of_task.iter().sum::<f64>() / tasks.max(1) as f64;
    let (mut squares, mut whole) = (0.0, 0.0);
    for (row, of_task) in scores.iter().zip(&of_task) {
        for (score, of_choice) in row.iter().zip(&of_choice) {
            squares += (score - of_task - of_choice + mean).powi(2);
            whole += score * score;
        }
    }
    let [deviation, size] = [squares, whole].map(|sum: f64| (sum / count).sqrt());
    if deviation <= ROUNDING * size { 0.0 } else { deviation }
}
