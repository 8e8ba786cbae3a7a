//! How many experts there are, how many are taken, and which are under which node.
//!
//! ```
//! use tinyonn::gallery::{DeepSeek, GroupedGate, NamedGroups, Smear, TinyOnn};
//!
//! // Four groups of sixteen, of which two groups and three experts of each are taken, and two that all tokens share.
//! let spec = DeepSeek::SPEC;
//! assert_eq!((spec.experts(), spec.routed_experts(), spec.always_experts(), spec.active_experts()), (66, 64, 2, 8));
//! assert_eq!((TinyOnn::SPEC.active_share(), Smear::SPEC.active_share()), (0.64, 1.0)); // merged, replicas cost one MLP
//! assert_eq!(spec.experts_under(0)[1], 16..32);
//! assert_eq!((spec.node_of_experts(0)[20], spec.group_of_experts()[65]), (1, 4)); // behind the routed groups those that always take part
//! assert_eq!((TinyOnn::SPEC.projection_width(1000), TinyOnn::SPEC.projection_width(32)), (64, 32));
//! assert_eq!((GroupedGate::SPEC.shared_projection(576), TinyOnn::SPEC.shared_projection(576)), (Some(("expert", 32)), None));
//! assert_eq!(GroupedGate::SPEC.router_operations(576), Some(32 * (576 + 128)));
//! assert_eq!((Smear::SPEC.open_positions(), TinyOnn::SPEC.open_positions()), (64, 0));
//! assert_eq!((NamedGroups::SPEC.node_name(0, 1), TinyOnn::SPEC.node_name(0, 1)), ("arithmetic".into(), "group 1".into()));
//! ```

use std::ops::Range;

use crate::{
    Combine, Covariance, ExpertsAre, LevelSpec, MoeSpec, Project, RoutePer, RouterKind, RouterSlot, RouterSpec,
};

impl MoeSpec {
    /// Experts in all, N: those that routers choose from, then those that always take part.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.routed_experts() + self.always_experts()
    }

    /// Experts that routers choose from.
    #[must_use]
    pub fn routed_experts(&self) -> usize {
        self.levels.last().map_or(0, LevelSpec::nodes)
    }

    /// Experts that always take part.
    #[must_use]
    pub fn always_experts(&self) -> usize {
        self.always.iter().map(|group| group.experts).sum()
    }

    /// The most experts that a decision of fixed `top_k` takes, those that always take part among them.
    #[must_use]
    pub fn active_experts(&self) -> usize {
        let mut below = vec![1; self.routed_experts()];
        for level in self.levels.iter().rev() {
            let most = |slot: RouterSlot| {
                let mut under = below[slot.nodes].to_vec();
                under.sort_unstable_by(|a, b| b.cmp(a));
                under.iter().take(slot.top_k).sum()
            };
            below = level.slots().map(most).collect();
        }
        below.iter().sum::<usize>() + self.always_experts()
    }

    /// Neurons that a decision of fixed `top_k` computes, relative to the dense MLP's, experts being equally wide: the largest
    /// share of slices that are taken; 1 for merged replicas; for dispatched ones their number.
    #[must_use]
    pub fn active_share(&self) -> f64 {
        let active = self.active_experts() as f64;
        match (self.experts_are, self.combine) {
            (ExpertsAre::Slice, _) => active / self.experts().max(1) as f64,
            (ExpertsAre::Replicate, Combine::Dispatch) => active,
            (ExpertsAre::Replicate, _) => 1.0,
        }
    }

    /// The routed experts under each node of a level.
    #[must_use]
    pub fn experts_under(&self, level: usize) -> Vec<Range<usize>> {
        let mut under: Vec<Range<usize>> = (0..self.routed_experts()).map(|expert| expert..expert + 1).collect();
        for below in self.levels[level + 1..].iter().rev() {
            let span = |slot: RouterSlot| under[slot.nodes.start].start..under[slot.nodes.end - 1].end;
            under = below.slots().map(span).collect();
        }
        under
    }

    /// The node of a level that each routed expert is under.
    #[must_use]
    pub fn node_of_experts(&self, level: usize) -> Vec<usize> {
        let nodes = self.experts_under(level).into_iter().enumerate();
        nodes.flat_map(|(node, experts)| std::iter::repeat_n(node, experts.len())).collect()
    }

    /// The group of each expert: the node of the first level that it is under; behind those stand the groups that always take part.
    #[must_use]
    pub fn group_of_experts(&self) -> Vec<usize> {
        let mut groups = if self.levels.is_empty() { Vec::new() } else { self.node_of_experts(0) };
        let first = self.levels.first().map_or(0, LevelSpec::nodes);
        let always = self.always.iter().enumerate();
        groups.extend(always.flat_map(|(at, group)| std::iter::repeat_n(first + at, group.experts)));
        groups
    }

    /// The projection that all routers of kind `linear(dim = r)` of a layer read, where there are any: the name of the run of routers that holds it, the first
    /// of them, and r, at most `hidden`.
    #[must_use]
    pub fn shared_projection(&self, hidden: usize) -> Option<(&str, usize)> {
        let mut runs = self.levels.iter().flat_map(|level| level.routers.iter());
        runs.find_map(|run| Some((run.name.as_ref(), run.kind.projects_to(hidden)?)))
    }

    /// The width of the widest projection that is fitted, at most `hidden`; 1 if none is.
    #[must_use]
    pub fn projection_width(&self, hidden: usize) -> usize {
        let runs = self.levels.iter().flat_map(|level| level.routers.iter());
        let width = |run: &RouterSpec| match &run.kind {
            RouterKind::Gaussian(form) if form.project == Project::Learned => Some(form.dim.min(hidden)),
            kind @ RouterKind::LowRank { .. } => kind.projects_to(hidden),
            _ => None,
        };
        runs.filter_map(width).max().unwrap_or(1)
    }

    /// Multiply-adds of all routers of a layer for a token of width `hidden`; `None` where one is of a type of the user's.
    #[must_use]
    pub fn router_operations(&self, hidden: usize) -> Option<usize> {
        let of_run = |run: &RouterSpec| {
            let nodes = run.parents * run.choices;
            match &run.kind {
                RouterKind::Linear | RouterKind::Cosine | RouterKind::Random => Some(nodes * hidden),
                kind @ RouterKind::LowRank { .. } => kind.projects_to(hidden).map(|r| r * (hidden + nodes)),
                RouterKind::Gaussian(form) => {
                    let r = form.width(hidden);
                    let full = if form.covariance == Covariance::SharedFull { run.parents * r * r } else { 0 };
                    Some(full + 2 * nodes * r + if form.project == Project::Identity { 0 } else { r * hidden })
                }
                RouterKind::Custom(_) => None,
            }
        };
        self.levels.iter().flat_map(|level| level.routers.iter()).map(of_run).sum()
    }

    /// Positions at the start of a sequence that run all active, whatever the routers would choose; 0 for token and task.
    #[must_use]
    pub fn open_positions(&self) -> usize {
        match self.route_per {
            RoutePer::Token | RoutePer::Task => 0,
            RoutePer::Segment { tokens } => tokens,
            RoutePer::Sequence { first } => first,
        }
    }

    /// What a node is called: the name of its group where that has one, else its level's name and its number.
    #[must_use]
    pub fn node_name(&self, level: usize, node: usize) -> String {
        // Routers over a named group are called by it, others like their level.
        let below = self.levels.get(level + 1);
        match below.and_then(|below| below.routers.get(node).filter(|run| run.name != below.name)) {
            Some(run) => run.name.to_string(),
            None => format!("{} {node}", self.levels[level].name),
        }
    }
}
