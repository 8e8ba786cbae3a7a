//! k-means whose clusters have given sizes.
//!
//! Minimises Σ_m ‖x_m − c(m)‖² over assignments in which cluster c has exactly its capacity: each round gives the closest (member,
//! centre) pairs first, then moves every centre to the mean of its members. ‖x − c‖² = ‖x‖² + ‖c‖² − 2 x·c, so that a round is
//! one product. On one thread: who clusters many layers does so side by side, and the outcome knows nothing of threads.
//!
//! Legend: n points, m members, k clusters, d dimensions.

use rand::Rng as _;
use tinyonn_linalg::product_transposed;

use crate::random::Rng;

/// Rounds at most; real layers move few neurons after the first ten.
const ROUNDS: usize = 20;

/// Points `[n, d]`, a row each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Points {
    d: usize,
    values: Vec<f64>,
}

impl Points {
    /// Rows of `d` numbers, as they follow each other.
    pub(super) fn new(values: Vec<f64>, d: usize) -> Self {
        Self { d, values }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.values.len() / self.d.max(1)
    }

    /// One of them.
    pub(super) fn row(&self, at: usize) -> &[f64] {
        &self.values[at * self.d..][..self.d]
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        (0..self.len()).map(|at| self.row(at))
    }

    pub(super) fn select(&self, rows: &[usize]) -> Self {
        Self { d: self.d, values: rows.iter().flat_map(|at| self.row(*at)).copied().collect() }
    }

    /// The mean of some of them; zeros where there are none.
    pub(super) fn mean(&self, rows: &[usize]) -> Vec<f64> {
        let mut mean = vec![0.0; self.d];
        rows.iter().for_each(|at| mean.iter_mut().zip(self.row(*at)).for_each(|(sum, x)| *sum += x));
        mean.iter_mut().for_each(|sum| *sum /= rows.len().max(1) as f64);
        mean
    }

    /// Each without its own mean.
    pub(super) fn centred(mut self) -> Self {
        for point in self.values.chunks_exact_mut(self.d.max(1)) {
            let mean = point.iter().sum::<f64>() / point.len() as f64;
            point.iter_mut().for_each(|x| *x -= mean);
        }
        self
    }

    /// Each divided by its norm; one of zeros stays.
    pub(super) fn of_unit_norm(mut self) -> Self {
        for point in self.values.chunks_exact_mut(self.d.max(1)) {
            let norm = norm_squared(point).sqrt();
            if norm > 0.0 {
                point.iter_mut().for_each(|x| *x /= norm);
            }
        }
        self
    }
}

/// ‖x‖².
fn norm_squared(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// Splits `members` of `points` into clusters of the sizes `capacities`, which add up to their number. Ties go to
/// the earlier member, then to the earlier cluster.
pub(super) fn balanced_k_means(
    points: &Points,
    members: &[usize],
    capacities: &[usize],
    rng: &mut Rng,
) -> Vec<Vec<usize>> {
    if let [_] = capacities {
        return vec![members.to_vec()];
    }
    let points = points.select(members);
    let squared_m: Vec<f64> = points.rows().map(norm_squared).collect();
    let mut centres = spread_centres(&points, &squared_m, capacities.len(), rng);
    let mut clusters: Vec<Vec<usize>> = Vec::new();
    for _ in 0..ROUNDS {
        let next = closest_first(&distances(&points, &squared_m, &centres), capacities);
        if next == clusters {
            break;
        }
        clusters = next;
        for (centre, cluster) in
            centres.values.chunks_exact_mut(points.d.max(1)).zip(&clusters).filter(|(_, c)| !c.is_empty())
        {
            centre.copy_from_slice(&points.mean(cluster));
        }
    }
    clusters.iter().map(|cluster| cluster.iter().map(|member| members[*member]).collect()).collect()
}

/// ‖x_m − c_k‖² `[m, k]`.
fn distances(points: &Points, squared_m: &[f64], centres: &Points) -> Vec<f64> {
    let squared_k: Vec<f64> = centres.rows().map(norm_squared).collect();
    let shape = (points.len(), points.d, centres.len());
    let mut distances_mk = product_transposed(&points.values, &centres.values, shape);
    for (row, x2) in distances_mk.chunks_exact_mut(squared_k.len().max(1)).zip(squared_m) {
        row.iter_mut().zip(&squared_k).for_each(|(value, c2)| *value = (x2 + c2 - 2.0 * *value).max(0.0));
    }
    distances_mk
}

/// The members of each cluster, ascending.
fn closest_first(distances_mk: &[f64], capacities: &[usize]) -> Vec<Vec<usize>> {
    let rows = distances_mk.chunks_exact(capacities.len());
    let members = rows.len();
    let mut pairs: Vec<(f64, u32, u32)> = rows
        .enumerate()
        .flat_map(|(member, row)| row.iter().enumerate().map(move |(k, x)| (*x, member as u32, k as u32)))
        .collect();
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut assigned = vec![false; members];
    let mut clusters: Vec<Vec<usize>> = capacities.iter().map(|capacity| Vec::with_capacity(*capacity)).collect();
    for (_, member, k) in pairs {
        let (member, k) = (member as usize, k as usize);
        if !assigned[member] && clusters[k].len() < capacities[k] {
            assigned[member] = true;
            clusters[k].push(member);
        }
    }
    clusters.iter_mut().for_each(|cluster| cluster.sort_unstable());
    clusters
}

/// k-means++ (Arthur and Vassilvitskii, 2007): each next centre is drawn in proportion to its squared distance.
fn spread_centres(points: &Points, squared_m: &[f64], count: usize, rng: &mut Rng) -> Points {
    let members = points.len();
    let mut chosen = vec![rng.random_range(0..members)];
    let mut nearest = vec![f64::INFINITY; members];
    while chosen.len() < count {
        let newest = points.select(&chosen[chosen.len() - 1..]);
        let to_newest = distances(points, squared_m, &newest);
        nearest.iter_mut().zip(&to_newest).for_each(|(nearest, distance)| *nearest = nearest.min(*distance));
        let mut left = rng.random::<f64>() * nearest.iter().sum::<f64>();
        let drawn = nearest.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        chosen.push(drawn.unwrap_or(chosen.len() % members));
    }
    points.select(&chosen)
}
