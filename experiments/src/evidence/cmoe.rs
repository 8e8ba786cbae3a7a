//! Experts carved without training, after CMoE (Pei et al., 2025): a token's marks are the ten neurons of largest |h|; the neurons that are marked most often
//! are always taken; the others are clustered by their marks into experts of equal size; an expert's router is its representative, the neuron next to its
//! centre, of whose |h| the largest are taken.
//!
//! The share of the operations, routers included, is met by how many neurons are always taken: n of these, k of E experts of (I − n)/E neurons,
//! and two rows of each representative, n + k (I − n)/E + 2 E/3 = share · I.

use candle_core::{DType, Device, Tensor};
use rand::seq::SliceRandom as _;
use tinyonn::{Result, random};

use super::choice::Choice;

/// Marks of a token.
const MARKS: usize = 10;
/// Rounds of the clustering.
const ROUNDS: usize = 10;

/// How many neurons are always taken, how many experts there are beside them, and how many of these a token takes.
fn sizes(width: usize, experts: usize, share: f64) -> (usize, usize, usize) {
    let active = (share * experts as f64).round() as usize;
    let shared = active.div_ceil(2).clamp(1, experts - 1);
    let routed = experts - shared;
    let most = active.saturating_sub(shared).clamp(1, routed - 1);
    let part = most as f64 / routed as f64;
    let always = (share * width as f64 - 2.0 / 3.0 * routed as f64 - part * width as f64) / (1.0 - part);
    (always.round().clamp(0.0, (width - routed) as f64) as usize, routed, most)
}

/// Carves a layer from the hidden values of some tokens, `[n, I]`.
pub(crate) fn carve(hidden_ni: &Tensor, (experts, share): (usize, f64), seed: u64, device: &Device) -> Result<Choice> {
    let (n, width) = hidden_ni.dims2()?;
    let values = hidden_ni.to_dtype(DType::F32)?.abs()?.to_vec2::<f32>()?;
    let mut marks = vec![0f32; width * n];
    for (token, row) in values.iter().enumerate() {
        let mut order: Vec<usize> = (0..width).collect();
        let most = MARKS.min(width);
        order.select_nth_unstable_by(most - 1, |a, b| row[*b].total_cmp(&row[*a]));
        order[..most].iter().for_each(|neuron| marks[neuron * n + token] = 1.0);
    }
    let (always, routed, most) = sizes(width, experts, share);
    let mut order: Vec<usize> = (0..width).collect();
    let rate = |neuron: &usize| marks[neuron * n..][..n].iter().sum::<f32>();
    order.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then(a.cmp(b)));
    let (fixed, others) = order.split_at(always);
    let points: Vec<f32> = others.iter().flat_map(|neuron| &marks[neuron * n..][..n]).copied().collect();
    let points = Tensor::from_vec(points, (others.len(), n), device)?;
    let (owner, nearest) = balanced(&points, routed, seed)?;
    let mut always_i = vec![0f32; width];
    fixed.iter().for_each(|neuron| always_i[*neuron] = 1.0);
    let mut owned_ei = vec![0f32; routed * width];
    others.iter().zip(owner).for_each(|(neuron, expert)| owned_ei[expert * width + neuron] = 1.0);
    let representatives: Vec<u32> = nearest.into_iter().map(|at| others[at] as u32).collect();
    Ok(Choice::Experts {
        always_i: Tensor::from_vec(always_i, width, device)?,
        representatives_e: Tensor::from_vec(representatives, routed, device)?,
        owned_ei: Tensor::from_vec(owned_ei, (routed, width), device)?,
        most,
    })
}

/// The cluster of each of the points `[m, n]`, equal in size to one, and of each cluster the point next to its centre.
fn balanced(points: &Tensor, clusters: usize, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let m = points.dim(0)?;
    let mut first: Vec<u32> = (0..m as u32).collect();
    first.shuffle(&mut random::stream(seed, "cmoe"));
    first.truncate(clusters);
    let mut centres = points.index_select(&Tensor::from_vec(first, clusters, points.device())?, 0)?;
    let (mut owner, mut distances) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // ‖x − c‖² less ‖x‖², which is the same for all centres.
        let cross = (points.matmul(&centres.t()?)? * -2.0)?;
        distances = cross.broadcast_add(&centres.sqr()?.sum(1)?)?.to_vec2::<f32>()?;
        let now = assigned(&distances, clusters);
        if now == owner {
            break;
        }
        owner = now;
        let mut weights = vec![0f32; clusters * m];
        let mut counts = vec![0f32; clusters];
        owner.iter().for_each(|cluster| counts[*cluster] += 1.0);
        owner.iter().enumerate().for_each(|(at, cluster)| weights[cluster * m + at] = 1.0 / counts[*cluster]);
        centres = Tensor::from_vec(weights, (clusters, m), points.device())?.matmul(points)?;
    }
    let norms = points.sqr()?.sum(1)?.to_vec1::<f32>()?;
    let nearest = |cluster: usize| {
        let own = (0..m).filter(|at| owner[*at] == cluster);
        own.min_by(|a, b| (norms[*a] + distances[*a][cluster]).total_cmp(&(norms[*b] + distances[*b][cluster])))
    };
    let nearest = (0..clusters).map(|cluster| nearest(cluster).unwrap_or(0)).collect();
    Ok((owner, nearest))
}

/// The closest pairs of point and centre first, as long as a cluster has room.
fn assigned(distances: &[Vec<f32>], clusters: usize) -> Vec<usize> {
    let m = distances.len();
    let mut pairs: Vec<(usize, usize)> =
        (0..m).flat_map(|at| (0..clusters).map(move |cluster| (at, cluster))).collect();
    // Only differences between centres say where a point belongs.
    let least: Vec<f32> = distances.iter().map(|row| row.iter().copied().fold(f32::INFINITY, f32::min)).collect();
    let excess = |(at, cluster): &(usize, usize)| distances[*at][*cluster] - least[*at];
    pairs.sort_by(|a, b| excess(a).total_cmp(&excess(b)).then(a.cmp(b)));
    let mut room: Vec<usize> =
        (0..clusters).map(|cluster| m / clusters + usize::from(cluster < m % clusters)).collect();
    let mut owner = vec![usize::MAX; m];
    for (at, cluster) in pairs {
        if owner[at] == usize::MAX && room[cluster] > 0 {
            owner[at] = cluster;
            room[cluster] -= 1;
        }
    }
    owner
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    fn the_share_of_the_operations_is_met(
        #[values(0.25, 0.33, 0.5, 0.75)] share: f64,
        #[values(16, 32)] experts: usize,
    ) {
        let width = 1536.0;
        let (always, routed, most) = sizes(1536, experts, share);
        let taken = always as f64 + most as f64 * (width - always as f64) / routed as f64 + 2.0 / 3.0 * routed as f64;
        // Half a neuron is rounded away.
        assert!((taken / width - share).abs() < 1e-3, "{}", taken / width);
        assert!(always > 0 && most < routed);
    }

    #[test]
    fn clusters_are_of_equal_size() {
        let distances: Vec<Vec<f32>> = (0..10).map(|at| vec![0.0, at as f32, 3.0]).collect();
        let owner = assigned(&distances, 3);
        let counts = [0, 1, 2].map(|cluster| owner.iter().filter(|own| **own == cluster).count());
        assert_eq!(counts, [4, 3, 3]);
    }
}
