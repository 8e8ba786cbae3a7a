//! A declaration in a few words, for tables and logs.

use crate::{
    AttentionSpec, Balance, Covariance, ExpertsAre, Gate, GaussianSpec, KeptPairs, LevelSpec, MoeSpec, Neurons,
    PairIndex, PairsSpec, Pfag, Prefill, Project, Reduce, RoutePer, RouterKind,
};

impl MoeSpec {
    /// The hierarchy: the choices of each level, or the experts of each named group.
    ///
    /// ```
    /// use tinyonn::gallery::{Depth3, Flat100, NamedGroups, OwnGate, TinyOnn};
    ///
    /// assert_eq!(Flat100::SPEC.hierarchy(), "100");
    /// assert_eq!(TinyOnn::SPEC.hierarchy(), "10 × 10");
    /// assert_eq!(Depth3::SPEC.hierarchy(), "[4, 5, 5]");
    /// assert_eq!(NamedGroups::SPEC.hierarchy(), "language 10, arithmetic 6, memory 3");
    /// assert_eq!(OwnGate::SPEC.hierarchy(), "shared 1 always");
    /// ```
    #[must_use]
    pub fn hierarchy(&self) -> String {
        let mut parts = Vec::new();
        let even: Option<Vec<String>> = self.levels.iter().map(|level| single(level).map(|n| n.to_string())).collect();
        match even {
            // Without levels there are always groups alone.
            Some(choices) if choices.is_empty() => {}
            Some(choices) if choices.len() <= 2 => parts.push(choices.join(" × ")),
            Some(choices) => parts.push(format!("[{}]", choices.join(", "))),
            None => {
                for level in self.levels.iter() {
                    let named = level.routers.iter().filter(|run| level.routers.len() > 1 || run.name != level.name);
                    parts.extend(named.map(|run| format!("{} {}", run.name, run.parents * run.choices)));
                }
            }
        }
        parts.extend(self.always.iter().map(|group| format!("{} {} always", group.name, group.experts)));
        parts.join(", ")
    }

    /// The kinds of its routers: one word if all levels and groups agree, else one a level, with the groups' own.
    ///
    /// ```
    /// use tinyonn::gallery::{GroupedGate, Switch, TinyOnn, NamedGroups};
    ///
    /// assert_eq!(Switch::SPEC.router_words(), "linear");
    /// assert_eq!(GroupedGate::SPEC.router_words(), "linear(32)");
    /// assert_eq!(TinyOnn::SPEC.router_words(), "gaussian(64)");
    /// assert_eq!(NamedGroups::SPEC.router_words(), "gaussian(32); gaussian(32), cosine, linear");
    /// ```
    #[must_use]
    pub fn router_words(&self) -> String {
        let of_level =
            |level: &LevelSpec| one_if_equal(level.routers.iter().map(|run| kind(&run.kind)).collect()).join(", ");
        one_if_equal(self.levels.iter().map(of_level).collect()).join("; ")
    }

    /// What decides, how the chosen are combined and weighed, and what else is declared: everything but hierarchy and routers,
    /// without what is as by default.
    ///
    /// ```
    /// use tinyonn::gallery::{LongContext, Nucleus, OwnGate, Smear, TinyOnn};
    ///
    /// assert_eq!(TinyOnn::SPEC.behaviour_words(), "token, concat, unit");
    /// assert_eq!(Smear::SPEC.behaviour_words(), "sequence(64), replicas, merge");
    /// assert_eq!(OwnGate::SPEC.behaviour_words(), "token, concat, unit, neurons by gate");
    /// assert!(LongContext::SPEC.behaviour_words().ends_with("pairs(0.125, components(8), near 32, first 4, by kv_head)"));
    /// assert_eq!(Nucleus::SPEC.behaviour_words(), "token, concat, unit, nucleus(0.4), balance loss(0.01)");
    /// ```
    #[must_use]
    pub fn behaviour_words(&self) -> String {
        let mut words = vec![match self.route_per {
            RoutePer::Token => "token".to_owned(),
            RoutePer::Segment { tokens } => format!("segment({tokens})"),
            RoutePer::Sequence { first } => format!("sequence({first})"),
            RoutePer::Task => "task".to_owned(),
        }];
        words.extend((self.experts_are == ExpertsAre::Replicate).then(|| "replicas".to_owned()));
        words.push(self.combine.word().to_owned());
        // Normalised is what every merge has.
        words.extend((self.gate != Gate::Normalised).then(|| self.gate.word().replace('_', "-")));
        words.extend(match self.neurons {
            Neurons::All => None,
            Neurons::Gate => Some("neurons by gate".to_owned()),
            Neurons::Pruned => Some("a fixed set of neurons".to_owned()),
        });
        words.extend(match &self.attention {
            AttentionSpec::Dense => None,
            AttentionSpec::Pairs(pairs) => Some(pairs_words(pairs)),
        });
        words.extend(self.always_by.map(|by| format!("always by {}", by.word())));
        words.extend(match self.pfag {
            Pfag::Off => None,
            Pfag::Entropy => Some("entropy".to_owned()),
            Pfag::Nucleus { mass } => Some(format!("nucleus({mass})")),
            Pfag::Surprisal => Some("surprisal".to_owned()),
        });
        words.extend(match self.balance {
            Balance::None => None,
            Balance::Loss { coefficient } => Some(format!("balance loss({coefficient})")),
            Balance::Bias { rate } => Some(format!("balance bias({rate})")),
        });
        words.extend((self.z_loss > 0.0).then(|| format!("z-loss {}", self.z_loss)));
        words.extend((self.jitter > 0.0).then(|| format!("jitter {}", self.jitter)));
        words.extend(self.activation.as_ref().map(|activation| format!("activation {activation}")));
        words.join(", ")
    }
}

/// How many keys a query keeps, by what, and whose choice it is.
fn pairs_words(pairs: &PairsSpec) -> String {
    let keep = match pairs.keep {
        KeptPairs::Share(share) => share.to_string(),
        KeptPairs::Keys(keys) => format!("keys({keys})"),
    };
    let prefill = if pairs.prefill == Prefill::Sparse { ", prefill sparse" } else { "" };
    let (near, first, by) = (pairs.near, pairs.first, pairs.by.word());
    format!("pairs({keep}, {}, near {near}, first {first}, by {by}{prefill})", index_words(pairs.index))
}

/// An index, as it is declared.
fn index_words(index: PairIndex) -> String {
    match index {
        PairIndex::Components(r) => format!("components({r})"),
        PairIndex::Directions(r) => format!("directions({r})"),
        PairIndex::Blocks(size) => format!("blocks({size})"),
        PairIndex::Window => "window".to_owned(),
        PairIndex::Exact => "exact".to_owned(),
    }
}

/// The choices of a level of equal routers that stand under no named group.
fn single(level: &LevelSpec) -> Option<usize> {
    if let [run] = &*level.routers { (run.name == level.name).then_some(run.choices) } else { None }
}

fn one_if_equal(mut words: Vec<String>) -> Vec<String> {
    if words.windows(2).all(|pair| pair[0] == pair[1]) {
        words.truncate(1);
    }
    words
}

fn kind(kind: &RouterKind) -> String {
    match kind {
        RouterKind::Gaussian(form) => gaussian(form),
        RouterKind::Linear => "linear".to_owned(),
        RouterKind::LowRank { dim } => format!("linear({dim})"),
        RouterKind::Cosine => "cosine".to_owned(),
        RouterKind::Random => "random".to_owned(),
        RouterKind::Custom(path) => path.to_string(),
    }
}

fn gaussian(form: &GaussianSpec) -> String {
    let mut words = vec![match form.project {
        Project::Learned => form.dim.to_string(),
        Project::Identity => "identity".to_owned(),
        Project::Random => format!("{}, random", form.dim),
    }];
    words.extend((form.reduce == Reduce::Sum).then(|| "sum".to_owned()));
    words.extend((form.covariance != Covariance::Diag).then(|| form.covariance.word().to_owned()));
    format!("gaussian({})", words.join(", "))
}
