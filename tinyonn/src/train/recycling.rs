//! Experts that nobody takes become children of those that too many take, while a model trains (DESIGN §4).
//!
//! A hierarchy is declared, so the number of experts is fixed: an overloaded expert is split only where a dead one gives its place. Every so many steps
//! the load of each expert since the last time is held against the mean of its own router. A dead expert, of at most `dead` × mean, and an
//! overloaded one, of at least `overloaded` × mean, become two halves of what they were: each takes every other neuron of both. Only the partition changes, so
//! that all active not a bit does, and widths, moments and step counts stay. The choice of the router splits with its moments kept (Richardson and Green, 1997),
//! along the axis j of the widest variance: μ_j ± ½ σ_j, σ_j² − ¼ σ_j², and half of the prior each; the dead expert's own is dropped.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{ParamStore, mixture_prefix};
use crate::decoder::{Active, Pass};
use crate::moe::{Combine, Covariance, ExpertsAre, LevelSpec, MoeSpec, RoutePer, RouterKind, RouterSpec};
use crate::ops::host;
use crate::{Error, Result};

/// When experts are recycled.
///
/// ```
/// use tinyonn::gallery::{Smear, TinyOnn};
/// use tinyonn::train::RecycleConfig;
///
/// assert_eq!(RecycleConfig::DEFAULT.every, 0); // never
/// let often = RecycleConfig { every: 50, ..RecycleConfig::DEFAULT };
/// assert!(often.check("smk.recycle", &TinyOnn::SPEC, false).is_ok());
/// assert!(often.check("smk.recycle", &Smear::SPEC, false).is_err()); // replicas would lose their deltas
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecycleConfig {
    /// Steps between two times; 0: never.
    pub every: u64,
    /// An expert is overloaded from so many times the mean load of its router's choices on.
    pub overloaded: f64,
    /// It is dead at so many times that mean, or less.
    pub dead: f64,
}

impl RecycleConfig {
    /// Never; twice the mean and a tenth of it.
    pub const DEFAULT: Self = Self { every: 0, overloaded: 2.0, dead: 0.1 };

    /// Refuses what cannot be done; `key` is where it stands in the settings.
    ///
    /// # Errors
    /// Bounds that do not keep dead and overloaded apart; replicas, whose deltas would be lost; routers that learn, whose moments would be those of
    /// another choice; routers at the last level that are not Gaussian with a variance of their own for each choice and axis; decisions of the task, which no
    /// router makes; experts that are dispatched, by lists that are made once.
    pub fn check(&self, key: &str, spec: &MoeSpec, routers_learn: bool) -> Result<()> {
        if self.every == 0 {
            return Ok(());
        }
        let refuse = |problem: String, remedy: &str| Err(Error::setting(key, problem, remedy));
        if !(self.dead >= 0.0 && self.dead < 1.0 && self.overloaded > 1.0 && self.overloaded.is_finite()) {
            let problem = format!("has dead = {} and overloaded = {}", self.dead, self.overloaded);
            return refuse(problem, "use a dead below 1 and an overloaded above it: both are times the mean load");
        }
        if spec.experts_are == ExpertsAre::Replicate {
            let problem = format!("`{}` has replicas, and a recycled one would lose its delta", spec.name);
            return refuse(problem, "use every = 0, or a variant of slices");
        }
        if spec.route_per == RoutePer::Task {
            let problem = format!("`{}` is routed by its task: no router splits its load", spec.name);
            return refuse(problem, "use every = 0");
        }
        if routers_learn {
            return refuse(
                "routers learn, by moments that a recycled choice has none of".into(),
                "use routers = false",
            );
        }
        let mut runs = spec.levels.last().into_iter().flat_map(|level| level.routers.iter());
        if let Some(run) = runs.find(|run| !splits(&run.kind)) {
            let problem = format!("the `{}_router` of `{}` has no variances to split", run.name, spec.name);
            return refuse(problem, "declare router = gaussian for its last level, or use every = 0");
        }
        if spec.combine == Combine::Dispatch {
            let problem = format!("`{}` is dispatched, by lists of neurons that a GPU is given once", spec.name);
            return refuse(problem, "declare combine = concat, or use every = 0");
        }
        Ok(())
    }
}

impl Default for RecycleConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Whether the Gaussian of one choice can become two.
fn splits(kind: &RouterKind) -> bool {
    matches!(kind, RouterKind::Gaussian(form) if form.covariance == Covariance::Diag)
}

/// What recycling changes of a model.
#[derive(Debug)]
pub(super) struct Recycling<'a> {
    spec: &'a MoeSpec,
    config: RecycleConfig,
    layers: Vec<Changed>,
}

/// Of one layer, by name.
#[derive(Debug)]
struct Changed {
    neuron_expert: (String, Var),
    /// By run of the last level: μ `[P, C, r]`, log σ² `[P, C, r]`, log π `[P, C]`.
    routers: Vec<[(String, Var); 3]>,
}

/// The parameters of a Gaussian router that a choice has once.
const BY_CHOICE: [&str; 3] = ["mean", "log_variance", "log_prior"];

impl<'a> Recycling<'a> {
    /// Over the `layers` of `store`, where `config` asks for it.
    ///
    /// # Errors
    /// A pass that is not routed, in which nobody is dead; a missing parameter.
    pub(super) fn new(
        (store, layers): (&ParamStore, usize),
        spec: &'a MoeSpec,
        config: RecycleConfig,
        pass: &Pass,
    ) -> Result<Option<Self>> {
        if config.every == 0 {
            return Ok(None);
        }
        if !matches!(pass.active, Active::Routed) {
            let problem = "the pass is not routed, so that no router gives an expert its load";
            return Err(Error::setting("smk.recycle", problem, "use every = 0, or a routed pass"));
        }
        let var = |name: String| {
            let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
            let var = store.get(&name).ok_or_else(missing)?.clone();
            Ok::<_, Error>((name, var))
        };
        let of_layer = |layer: usize| {
            let prefix = mixture_prefix(layer);
            let of_run = |run: &RouterSpec| {
                let [mean, variance, prior] = BY_CHOICE.map(|own| var(format!("{prefix}.{}_router.{own}", run.name)));
                Ok([mean?, variance?, prior?])
            };
            let runs = spec.levels.last().into_iter().flat_map(|level| level.routers.iter());
            let routers = runs.map(of_run).collect::<Result<_>>()?;
            Ok::<_, Error>(Changed { neuron_expert: var(format!("{prefix}.neuron_expert"))?, routers })
        };
        Ok(Some(Self { spec, config, layers: (0..layers).map(of_layer).collect::<Result<_>>()? }))
    }

    /// Steps between two times.
    pub(super) fn every(&self) -> u64 {
        self.config.every
    }

    /// What it changes, by name: a part of the training's state.
    pub(super) fn beside(&self) -> impl Iterator<Item = (String, Var)> {
        self.layers.iter().flat_map(|layer| layer.routers.iter().flatten().chain([&layer.neuron_expert])).cloned()
    }

    /// Recycles by the tokens that each expert of each layer was given; how many experts were recycled.
    pub(super) fn apply(&self, load: &[Vec<f64>]) -> Result<u64> {
        let mut count = 0;
        for (layer, load) in self.layers.iter().zip(load) {
            let slots = self.spec.levels.last().into_iter().flat_map(LevelSpec::slots);
            let pairs: Vec<[usize; 2]> = slots
                .flat_map(|slot| {
                    let first = slot.nodes.start;
                    pairs(&load[slot.nodes], &self.config).into_iter().map(move |pair| pair.map(|at| first + at))
                })
                .collect();
            if !pairs.is_empty() {
                count += layer.recycle(self.spec, &pairs)?;
            }
        }
        Ok(count)
    }
}

/// Of the choices of one router with these loads: the busiest overloaded one with the idlest dead one, and so on; ties to the lower index.
fn pairs(load: &[f64], config: &RecycleConfig) -> Vec<[usize; 2]> {
    let mean = load.iter().sum::<f64>() / load.len() as f64;
    let sorted = |picked: &dyn Fn(f64) -> bool| {
        let mut found: Vec<usize> = (0..load.len()).filter(|at| mean > 0.0 && picked(load[*at])).collect();
        found.sort_by(|a, b| load[*a].total_cmp(&load[*b]));
        found
    };
    let mut busy = sorted(&|load| load >= config.overloaded * mean);
    busy.sort_by(|a, b| load[*b].total_cmp(&load[*a]));
    let dead = sorted(&|load| load <= config.dead * mean);
    busy.into_iter().zip(dead).map(|(busy, dead)| [busy, dead]).collect()
}

impl Changed {
    /// Splits the first of each pair into both; how many there were that have neurons to share.
    fn recycle(&self, spec: &MoeSpec, pairs: &[[usize; 2]]) -> Result<u64> {
        let parameters: Vec<&Var> = self.routers.iter().flatten().map(|(_, var)| var).collect();
        let (_, neuron_expert) = &self.neuron_expert;
        let mut values = host::read(&[vec![neuron_expert.as_tensor()], tensors(&parameters)].concat())?.into_iter();
        let mut owners: Vec<u32> = values.next().into_iter().flatten().map(|owner| owner as u32).collect();
        let mut routers: Vec<Vec<f64>> = values.collect();
        let mut count = 0;
        for [busy, dead] in pairs {
            if !exchange(&mut owners, [*busy as u32, *dead as u32]) {
                continue;
            }
            let runs = spec.levels.last().into_iter().flat_map(|level| level.routers.iter());
            let mut first = 0;
            for (run, own) in runs.zip(routers.chunks_exact_mut(BY_CHOICE.len())) {
                let nodes = first..first + run.parents * run.choices;
                if let (true, [mean, variance, prior]) = (nodes.contains(busy), own) {
                    split((mean, variance, prior), [busy - first, dead - first]);
                }
                first = nodes.end;
            }
            count += 1;
        }
        let device = neuron_expert.device();
        neuron_expert.set(&Tensor::new(owners, device)?)?;
        for (var, values) in parameters.into_iter().zip(routers) {
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            var.set(&Tensor::from_vec(values, var.shape(), device)?.to_dtype(var.dtype())?)?;
        }
        Ok(count)
    }
}

fn tensors<'a>(vars: &[&'a Var]) -> Vec<&'a Tensor> {
    vars.iter().map(|var| var.as_tensor()).collect()
}

/// Has two experts exchange every other neuron, as many of the one as of the other; whether there were any.
fn exchange(owners: &mut [u32], pair: [u32; 2]) -> bool {
    let own = |expert: u32| (0..owners.len()).filter(|i| owners[*i] == expert).collect::<Vec<_>>();
    let [busy, dead] = pair.map(own);
    let count = busy.len().min(dead.len()) / 2;
    for at in 0..count {
        owners[busy[2 * at + 1]] = pair[1];
        owners[dead[2 * at]] = pair[0];
    }
    count > 0
}

/// Splits the Gaussian of the first choice into those of both.
fn split((mean, log_variance, log_prior): (&mut [f64], &mut [f64], &mut [f64]), [busy, dead]: [usize; 2]) {
    let width = mean.len() / log_prior.len();
    let row = |choice: usize| choice * width..(choice + 1) * width;
    mean.copy_within(row(busy), dead * width);
    log_variance.copy_within(row(busy), dead * width);
    let widest = (0..width).max_by(|a, b| {
        let of = |axis: &usize| log_variance[busy * width + axis];
        of(a).total_cmp(&of(b)).then(b.cmp(a))
    });
    if let Some(axis) = widest {
        let apart = 0.5 * (0.5 * log_variance[busy * width + axis]).exp();
        for (choice, side) in [(busy, -1.0), (dead, 1.0)] {
            mean[choice * width + axis] += side * apart;
            log_variance[choice * width + axis] += 0.75f64.ln();
        }
    }
    let half = log_prior[busy] - std::f64::consts::LN_2;
    (log_prior[busy], log_prior[dead]) = (half, half);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: RecycleConfig = RecycleConfig { every: 1, ..RecycleConfig::DEFAULT };

    #[test]
    fn the_busiest_is_paired_with_the_idlest_and_nobody_else_is() {
        // Mean 10: overloaded from 20 on, dead up to 1.
        assert_eq!(pairs(&[1.0, 30.0, 0.0, 20.0, 5.0, 4.0], &CONFIG), [[1, 2], [3, 0]]);
        assert_eq!(pairs(&[0.0, 25.0, 0.0, 11.0, 4.0], &CONFIG), [[1, 0]]);
        assert!(pairs(&[0.0, 12.0, 12.0, 12.0], &CONFIG).is_empty());
        assert!(pairs(&[0.0; 4], &CONFIG).is_empty());
    }

    #[test]
    fn an_exchange_keeps_widths_and_refuses_experts_of_one_neuron() {
        let mut owners = [0, 1, 0, 1, 0, 2, 1, 0, 1, 1];
        assert!(exchange(&mut owners, [0, 1]));
        assert_eq!(owners, [0, 0, 1, 1, 0, 2, 0, 1, 1, 1]);
        let mut single = [0, 1, 1, 1];
        assert!(!exchange(&mut single, [1, 0]));
        assert_eq!(single, [0, 1, 1, 1]);
    }

    /// Of the mixture of both children, mean and variance of every axis are the parent's, and so is its mass.
    #[test]
    fn a_split_keeps_the_moments() {
        let (mut mean, mut variance) = (vec![1.0, -2.0, 9.0, 9.0], vec![0.3, 1.2, 5.0, 5.0]);
        let mut prior = vec![0.4f64.ln(), 0.6f64.ln()];
        let (parent_mean, parent_variance) = (mean.clone(), variance.clone());
        split((&mut mean, &mut variance, &mut prior), [0, 1]);
        assert!((prior[0].exp() + prior[1].exp() - 0.4).abs() < 1e-12);
        assert!(mean[1] < mean[3], "the children lie apart along the widest axis");
        for axis in 0..2 {
            let (a, b) = (mean[axis], mean[2 + axis]);
            let centre = f64::midpoint(a, b);
            let spread = f64::midpoint(variance[axis].exp(), variance[2 + axis].exp()) + (a - b) * (a - b) / 4.0;
            assert!((centre - parent_mean[axis]).abs() < 1e-12 && (spread - parent_variance[axis].exp()).abs() < 1e-12);
        }
    }
}
