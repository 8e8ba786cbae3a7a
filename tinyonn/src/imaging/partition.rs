//! Partitions: which expert each neuron of a dense MLP belongs to. Storage order never changes, so all are equally lossless.
//!
//! Every strategy is balanced: expert widths differ by at most one neuron, the first experts taking the remainder. The clustered
//! ones group neurons of like *profile*: their integrals over tasks, contrasted and of unit norm (DESIGN §1), top-down: first into
//! groups, then each group into experts, by k-means whose clusters have fixed capacities.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::{Integral, Score};
pub use crate::moe::PartitionStrategy as Partition;
use crate::moe::{ExpertsAre, MoeSpec, expert};
use crate::random::{self, Rng};
use crate::{Error, Result};

impl std::str::FromStr for Partition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "contiguous" => Ok(Self::Contiguous),
            "random" => Ok(Self::Random),
            "activation" => Ok(Self::Activation),
            "sps" => Ok(Self::Sps),
            _ => Err(Error::setting(
                "partition",
                format!("there is no strategy `{text}`"),
                "use contiguous, random, activation or sps",
            )),
        }
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Contiguous => "contiguous",
            Self::Random => "random",
            Self::Activation => "activation",
            Self::Sps => "sps",
        })
    }
}

impl Partition {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Contiguous, Self::Random, Self::Activation, Self::Sps];

    /// The strategy of a run: the one given, else the one that `spec` declares, else `default`.
    ///
    /// # Errors
    /// One that is given for replicas, which share out no neurons.
    pub fn choose(given: Option<Self>, spec: &MoeSpec, default: Self) -> Result<Self> {
        if given.is_some() && spec.experts_are == ExpertsAre::Replicate {
            let problem = format!("the experts of `{}` are replicas, which share out no neurons", spec.name);
            return Err(Error::setting("partition", problem, "leave it out"));
        }
        Ok(given.or(spec.partition).unwrap_or(default))
    }

    /// The score whose profile the strategy clusters, if it does.
    #[must_use]
    pub fn profile(self) -> Option<Score> {
        match self {
            Self::Contiguous | Self::Random => None,
            Self::Activation => Some(Score::Activation),
            Self::Sps => Some(Score::Sps),
        }
    }

    /// The expert of each neuron of each layer, `[layer][i]`, for MLPs of `width` neurons. The clustered strategies read
    /// `integral`, the scan's integral of [`profile`](Self::profile). Replicas have no neurons of their own: no layers.
    ///
    /// # Errors
    /// Fewer neurons than experts; a clustered strategy without an integral, or with one of another shape.
    ///
    /// ```
    /// use tinyonn::imaging::Partition;
    /// use tinyonn::moe::moe;
    ///
    /// #[moe(groups = 2, experts = 2)]
    /// struct Small;
    ///
    /// let units = Partition::Contiguous.assign(&Small::SPEC, (1, 7), None, 0)?;
    /// assert_eq!(units, [[0, 0, 1, 1, 2, 2, 3]]);
    /// assert!(Partition::Activation.assign(&Small::SPEC, (1, 7), None, 0).is_err()); // scan first
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn assign(
        self,
        spec: &MoeSpec,
        (layers, width): (usize, usize),
        integral: Option<&Integral>,
        seed: u64,
    ) -> Result<Vec<Vec<u32>>> {
        expert::check_width(spec, width, 0)?;
        if spec.experts_are == ExpertsAre::Replicate {
            return Ok(Vec::new());
        }
        let profiles = match (self.profile(), integral) {
            (None, _) => None,
            (Some(_), Some(integral)) => Some(integral.contrasted()),
            (Some(_), None) => {
                let problem = format!("`{self}` clusters neurons by what they do on tasks");
                return Err(Error::setting("partition", problem, "scan text first, or use contiguous or random"));
            }
        };
        let of_layer = |layer: usize| {
            let mut rng = random::stream(seed, &format!("partition/{self}/{layer}"));
            let mut order: Vec<usize> = (0..width).collect();
            match &profiles {
                None => {
                    if self == Self::Random {
                        order.shuffle(&mut rng);
                    }
                    Ok(cut(&order, spec.experts()))
                }
                Some(profiles) => {
                    let fits = profiles.neurons.iter().all(|task| task.get(layer).is_some_and(|l| l.len() == width));
                    if !fits {
                        let problem = format!("the scan is not of layer {layer} with {width} neurons");
                        return Err(Error::setting("partition", problem, "scan this model"));
                    }
                    let vector = |i: usize| unit(profiles.neurons.iter().map(|task| task[layer][i]).collect());
                    let vectors: Vec<Vec<f64>> = (0..width).map(vector).collect();
                    Ok(cluster_down(spec, &vectors, &mut rng))
                }
            }
        };
        (0..layers).map(of_layer).collect()
    }
}

/// Widths of `experts` slices of `width` neurons: the first take the remainder.
fn widths(width: usize, experts: usize) -> Vec<usize> {
    (0..experts).map(|expert| width / experts + usize::from(expert < width % experts)).collect()
}

/// Gives runs of `order` to the experts in turn.
fn cut(order: &[usize], experts: usize) -> Vec<u32> {
    let mut owner = vec![0u32; order.len()];
    let mut rest = order.iter();
    for (expert, width) in widths(order.len(), experts).into_iter().enumerate() {
        rest.by_ref().take(width).for_each(|neuron| owner[*neuron] = expert as u32);
    }
    owner
}

pub(super) fn unit(mut v: Vec<f64>) -> Vec<f64> {
    let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        for x in &mut v {
            *x /= norm;
        }
    }
    v
}

/// Splits all neurons among the choices of the first level, each share among those of the next, down to the experts.
fn cluster_down(spec: &MoeSpec, vectors: &[Vec<f64>], rng: &mut Rng) -> Vec<u32> {
    let expert_widths = widths(vectors.len(), spec.experts());
    let room = |experts: std::ops::Range<usize>| expert_widths[experts].iter().sum::<usize>();
    let mut shares: Vec<Vec<usize>> = vec![(0..vectors.len()).collect()];
    let mut always: Vec<Vec<usize>> = Vec::new();
    for (level, declared) in spec.levels.iter().enumerate() {
        let under = spec.experts_under(level);
        let mut next = Vec::with_capacity(under.len());
        for (share, slot) in shares.iter().zip(declared.slots()) {
            let mut capacities: Vec<usize> = slot.nodes.clone().map(|node| room(under[node].clone())).collect();
            if level == 0 {
                // Experts that always take part stand beside the root's choices.
                capacities.extend((spec.routed_experts()..spec.experts()).map(|expert| expert_widths[expert]));
            }
            let mut clusters = balanced_k_means(vectors, share, &capacities, rng);
            always.extend(clusters.split_off(slot.nodes.len()));
            next.extend(clusters);
        }
        shares = next;
    }
    shares.extend(always);
    let mut owner = vec![0u32; vectors.len()];
    for (expert, share) in shares.iter().enumerate() {
        for neuron in share {
            owner[*neuron] = expert as u32;
        }
    }
    owner
}

/// k-means of `members` under fixed capacities: each round gives the closest (member, centre) pairs first.
pub(super) fn balanced_k_means(
    vectors: &[Vec<f64>],
    members: &[usize],
    capacities: &[usize],
    rng: &mut Rng,
) -> Vec<Vec<usize>> {
    const ROUNDS: usize = 20;
    let mut centres = spread_centres(vectors, members, capacities.len(), rng);
    let mut clusters: Vec<Vec<usize>> = Vec::new();
    for _ in 0..ROUNDS {
        let mut pairs: Vec<(f64, usize, usize)> = Vec::with_capacity(members.len() * centres.len());
        for (position, member) in members.iter().enumerate() {
            pairs.extend(
                centres.iter().enumerate().map(|(c, centre)| (distance(&vectors[*member], centre), position, c)),
            );
        }
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let mut assigned = vec![None; members.len()];
        let mut room = capacities.to_vec();
        for (_, position, centre) in pairs {
            if assigned[position].is_none() && room[centre] > 0 {
                assigned[position] = Some(centre);
                room[centre] -= 1;
            }
        }
        let mut next = vec![Vec::new(); centres.len()];
        for (position, centre) in assigned.into_iter().enumerate() {
            next[centre.unwrap_or(0)].push(members[position]);
        }
        if next == clusters {
            break;
        }
        clusters = next;
        for (centre, cluster) in centres.iter_mut().zip(&clusters).filter(|(_, cluster)| !cluster.is_empty()) {
            for (j, x) in centre.iter_mut().enumerate() {
                *x = cluster.iter().map(|member| vectors[*member][j]).sum::<f64>() / cluster.len() as f64;
            }
        }
    }
    clusters
}

/// k-means++ (Arthur and Vassilvitskii, 2007): each next centre is drawn in proportion to its squared distance.
fn spread_centres(vectors: &[Vec<f64>], members: &[usize], count: usize, rng: &mut Rng) -> Vec<Vec<f64>> {
    let mut centres = vec![vectors[members[rng.random_range(0..members.len())]].clone()];
    while centres.len() < count {
        let nearest = |member: &usize| {
            centres.iter().map(|centre| distance(&vectors[*member], centre)).fold(f64::INFINITY, f64::min)
        };
        let weights: Vec<f64> = members.iter().map(nearest).collect();
        let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        centres.push(vectors[members[drawn.unwrap_or(centres.len() % members.len())]].clone());
    }
    centres
}

pub(super) fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}
