//! Whether a declaration can be run: what the macro refuses at compile time, of one that a program or a file made.

use std::collections::BTreeSet;

use super::{
    Balance, Combine, ExpertsAre, Gate, GaussianSpec, LevelSpec, MoeSpec, Pfag, RoutePer, RouterKind, RouterSpec,
};
use crate::{Error, Result};

/// Levels of a hierarchy, at most.
const DEPTH: usize = 4;
/// Experts, at most: no MLP is wider.
const MOST: usize = 1 << 24;

/// What is wrong, and the remedy.
type Refusal = (String, &'static str);

fn refuse(problem: impl Into<String>, remedy: &'static str) -> std::result::Result<(), Refusal> {
    Err((problem.into(), remedy))
}

impl MoeSpec {
    /// Whether the declaration can be run.
    ///
    /// # Errors
    /// The variant, what does not fit, and the remedy.
    pub fn validate(&self) -> Result<()> {
        let checks = [Self::check_hierarchy, Self::check_experts, Self::check_numbers, Self::check_task];
        let refused = |(problem, remedy)| Error::variant(self.name.clone(), problem, remedy);
        checks.iter().try_for_each(|check| check(self).map_err(refused))
    }

    fn check_hierarchy(&self) -> std::result::Result<(), Refusal> {
        let depth = self.levels.len();
        if depth == 0 {
            return refuse("it has no level", "declare groups and experts");
        }
        if depth > DEPTH {
            return refuse(format!("its hierarchy has {depth} levels"), "declare 1 to 4");
        }
        let mut nodes = 1;
        let mut names = BTreeSet::new();
        for level in self.levels.iter() {
            level.routers.iter().try_for_each(check_router)?;
            if level.parents() != nodes {
                let problem = format!("level `{}` has {} routers for {nodes} nodes", level.name, level.parents());
                return refuse(problem, "declare one for each node of the level before");
            }
            if let Some(run) = level.routers.iter().find(|run| !names.insert(run.name.clone())) {
                return refuse(format!("two routers are called `{}_router` in a checkpoint", run.name), "rename one");
            }
            nodes = LevelSpec::nodes(level);
            if nodes > MOST {
                return refuse(format!("level `{}` has {nodes} nodes", level.name), "declare fewer");
            }
        }
        let mut names = BTreeSet::new();
        for group in self.always.iter() {
            if group.experts == 0 || group.experts > MOST {
                let problem = format!("group `{}`, which always takes part, has {} experts", group.name, group.experts);
                return refuse(problem, "use 1 or more, and no more than an MLP has neurons");
            }
            if !names.insert(&group.name) {
                return refuse(format!("two groups that always take part are called `{}`", group.name), "rename one");
            }
        }
        Ok(())
    }

    /// What experts are, with how they are combined and weighed.
    fn check_experts(&self) -> std::result::Result<(), Refusal> {
        let replicas = self.experts_are == ExpertsAre::Replicate;
        match (replicas, self.combine, self.gate) {
            (false, Combine::Merge, _) => {
                refuse("slices of one MLP cannot be merged", "use combine = concat or dispatch")
            }
            (true, Combine::Concat, _) => {
                refuse("replicas are not slices of one bank", "use combine = merge or dispatch")
            }
            (true, _, gate) if gate != Gate::Normalised || !self.always.is_empty() => {
                refuse("the weights of replicas must add up to one", "use Gate::Normalised, and no group `always`")
            }
            (true, ..) if self.partition.is_some() => {
                refuse("replicas are whole MLPs: no neurons are shared out", "declare no partition")
            }
            (false, _, Gate::Normalised) => {
                refuse("weights that add up to one shrink what slices add up to", "use Gate::Unit or Gate::Scaled")
            }
            _ => Ok(()),
        }
    }

    fn check_numbers(&self) -> std::result::Result<(), Refusal> {
        let coefficient = match self.balance {
            Balance::None => 0.0,
            Balance::Loss { coefficient } => coefficient,
            Balance::Bias { rate } => rate,
        };
        for (what, value) in [("balance", coefficient), ("z_loss", self.z_loss), ("jitter", self.jitter)] {
            if !value.is_finite() || value < 0.0 {
                return refuse(format!("{what} = {value} is no size"), "use a finite number, 0 or more");
            }
        }
        if self.jitter >= 1.0 {
            return refuse(format!("jitter = {} can turn an input around", self.jitter), "use less than 1");
        }
        match self.pfag {
            Pfag::Nucleus { mass } if !(mass > 0.0 && mass <= 1.0) => {
                return refuse(format!("nucleus({mass}) is no probability"), "use more than 0, and at most 1");
            }
            _ => {}
        }
        match self.route_per {
            RoutePer::Segment { tokens: 0 } | RoutePer::Sequence { first: 0 } => {
                refuse("a decision reads 0 tokens", "use 1 or more")
            }
            _ => Ok(()),
        }
    }

    /// Under `route_per = task` no router is asked for its scores.
    fn check_task(&self) -> std::result::Result<(), Refusal> {
        let weighted = self.experts_are == ExpertsAre::Slice && self.gate != Gate::Unit;
        let asks = weighted
            || self.pfag != Pfag::Off
            || self.balance != Balance::None
            || self.z_loss > 0.0
            || self.jitter > 0.0;
        if self.route_per == RoutePer::Task && asks {
            let problem =
                "gate, pfag, balance, z_loss and jitter need the scores of routers, and `route_per = task` asks none";
            return refuse(problem, "leave them out, or declare `route_per = sequence`");
        }
        Ok(())
    }
}

fn check_router(run: &RouterSpec) -> std::result::Result<(), Refusal> {
    if run.parents == 0 || run.parents > MOST || run.choices > MOST {
        let problem = format!("{} of `{}_router` over {} choices cannot be", run.parents, run.name, run.choices);
        return refuse(problem, "use 1 or more, and no more experts than an MLP has neurons");
    }
    if run.choices == 0 || run.top_k == 0 {
        return refuse(format!("`{}_router` has no choices or takes none", run.name), "use 1 or more");
    }
    if run.top_k > run.choices {
        let problem = format!("top_k = {} exceeds the {} choices of `{}_router`", run.top_k, run.choices, run.name);
        return refuse(problem, "take at most all of them");
    }
    if let RouterKind::Gaussian(GaussianSpec { dim: 0, .. }) = run.kind {
        return refuse(format!("`{}_router` looks at 0 dimensions", run.name), "use 1 or more");
    }
    Ok(())
}
