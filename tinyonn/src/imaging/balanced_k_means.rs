//! k-means whose clusters have given sizes.
//!
//! Minimises Σ_m ‖x_m − c(m)‖² over assignments in which cluster c has exactly its capacity: each round gives the closest (member,
//! centre) pairs first, then moves every centre to the mean of its members. ‖x − c‖² = ‖x‖² + ‖c‖² − 2 x·c, so that a round is
//! one product. On one thread: who clusters many layers does so side by side, and the outcome knows nothing of threads.
//!
//! Legend: n points, m members, k clusters, d dimensions; points stand in columns.

use nalgebra::DMatrix;
use rand::Rng as _;

use crate::random::Rng;

/// Rounds at most; real layers move few neurons after the first ten.
const ROUNDS: usize = 20;

/// Splits `members`, columns of `points_dn`, into clusters of the sizes `capacities`, which add up to their number. Ties go to
/// the earlier member, then to the earlier cluster.
pub(super) fn balanced_k_means(
    points_dn: &DMatrix<f64>,
    members: &[usize],
    capacities: &[usize],
    rng: &mut Rng,
) -> Vec<Vec<usize>> {
    if let [_] = capacities {
        return vec![members.to_vec()];
    }
    let points_dm = points_dn.select_columns(members);
    let squared_m: Vec<f64> = points_dm.column_iter().map(|point| point.norm_squared()).collect();
    let mut centres_dk = spread_centres(&points_dm, &squared_m, capacities.len(), rng);
    let mut clusters: Vec<Vec<usize>> = Vec::new();
    for _ in 0..ROUNDS {
        let next = closest_first(&distances(&points_dm, &squared_m, &centres_dk), capacities);
        if next == clusters {
            break;
        }
        clusters = next;
        for (mut centre, cluster) in centres_dk.column_iter_mut().zip(&clusters).filter(|(_, c)| !c.is_empty()) {
            centre.fill(0.0);
            cluster.iter().for_each(|member| centre += points_dm.column(*member));
            centre /= cluster.len() as f64;
        }
    }
    clusters.iter().map(|cluster| cluster.iter().map(|member| members[*member]).collect()).collect()
}

/// ‖x_m − c_k‖² `[k, m]`.
fn distances(points_dm: &DMatrix<f64>, squared_m: &[f64], centres_dk: &DMatrix<f64>) -> DMatrix<f64> {
    let squared_k: Vec<f64> = centres_dk.column_iter().map(|centre| centre.norm_squared()).collect();
    let mut distances_km = centres_dk.transpose() * points_dm;
    for (mut column, x2) in distances_km.column_iter_mut().zip(squared_m) {
        column.iter_mut().zip(&squared_k).for_each(|(value, c2)| *value = (x2 + c2 - 2.0 * *value).max(0.0));
    }
    distances_km
}

/// The members of each cluster, ascending.
fn closest_first(distances_km: &DMatrix<f64>, capacities: &[usize]) -> Vec<Vec<usize>> {
    let pairs = distances_km.column_iter().enumerate();
    let mut pairs: Vec<(f64, u32, u32)> = pairs
        .flat_map(|(member, column)| {
            let of_member = |(k, distance): (usize, &f64)| (*distance, member as u32, k as u32);
            column.iter().enumerate().map(of_member).collect::<Vec<_>>()
        })
        .collect();
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut assigned = vec![false; distances_km.ncols()];
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
fn spread_centres(points_dm: &DMatrix<f64>, squared_m: &[f64], count: usize, rng: &mut Rng) -> DMatrix<f64> {
    let members = points_dm.ncols();
    let mut chosen = vec![rng.random_range(0..members)];
    let mut nearest = vec![f64::INFINITY; members];
    while chosen.len() < count {
        let newest = points_dm.select_columns(&chosen[chosen.len() - 1..]);
        let to_newest = distances(points_dm, squared_m, &newest);
        nearest.iter_mut().zip(to_newest.iter()).for_each(|(nearest, distance)| *nearest = nearest.min(*distance));
        let mut left = rng.random::<f64>() * nearest.iter().sum::<f64>();
        let drawn = nearest.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        chosen.push(drawn.unwrap_or(chosen.len() % members));
    }
    points_dm.select_columns(&chosen)
}

/// Each column divided by its norm; one of zeros stays.
pub(super) fn unit_columns(mut points_dn: DMatrix<f64>) -> DMatrix<f64> {
    for mut point in points_dn.column_iter_mut() {
        let norm = point.norm();
        if norm > 0.0 {
            point /= norm;
        }
    }
    points_dn
}
