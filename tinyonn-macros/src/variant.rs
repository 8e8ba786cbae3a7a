//! A declaration that makes sense: what `validate` leaves and `expand` writes out.

use syn::{Attribute, Ident, Path, Visibility};

use crate::keywords::{Combine, Covariance, ExpertsAre, Gate, PartitionStrategy, Project, Reduce};

/// Width of a Gaussian router's projection unless said otherwise.
pub(crate) const DIM: usize = 64;
/// Tokens that a sequence is judged by unless said otherwise.
pub(crate) const FIRST: usize = 64;

/// A mixture of experts.
pub(crate) struct Variant {
    /// The user's documentation and other attributes.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) name: Ident,
    /// From the root to the experts.
    pub(crate) levels: Vec<Level>,
    /// Groups that no router chooses.
    pub(crate) always: Vec<Always>,
    /// The variants of the enum that declared the groups; none on a struct.
    pub(crate) groups: Vec<GroupName>,
    pub(crate) behaviour: Behaviour,
}

/// What is said of the variant as a whole.
pub(crate) struct Behaviour {
    pub(crate) experts_are: ExpertsAre,
    pub(crate) combine: Combine,
    /// `None`: the weights of replicas, their normalised probabilities.
    pub(crate) gate: Option<Gate>,
    /// `None` leaves it to the program.
    pub(crate) partition: Option<PartitionStrategy>,
    /// `None` is the model's own.
    pub(crate) activation: Option<Activation>,
    pub(crate) route_per: RoutePer,
    pub(crate) pfag: Pfag,
    pub(crate) balance: Balance,
    pub(crate) z_loss: f64,
    pub(crate) jitter: f64,
}

/// One level of decisions.
pub(crate) struct Level {
    /// What a choice is called.
    pub(crate) name: &'static str,
    /// Its routers in the order of the nodes they stand under.
    pub(crate) runs: Vec<Run>,
}

/// Equal routers under neighbouring nodes: one field of the module.
pub(crate) struct Run {
    /// Its level's name, or the name of the group it stands in.
    pub(crate) name: String,
    pub(crate) parents: usize,
    pub(crate) choices: usize,
    pub(crate) top_k: usize,
    pub(crate) router: Router,
}

/// A group whose experts take part in every decision.
pub(crate) struct Always {
    pub(crate) name: String,
    pub(crate) experts: usize,
}

/// A variant of the enum that names the groups.
pub(crate) struct GroupName {
    /// The user's documentation and other attributes.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) ident: Ident,
    pub(crate) name: String,
}

/// What a router computes.
#[derive(Clone)]
pub(crate) enum Router {
    Gaussian(Gaussian),
    Linear,
    Cosine,
    Random,
    /// A type of the user's.
    Custom(Path),
}

/// The form of Gaussian routers.
#[derive(Clone, Copy)]
pub(crate) struct Gaussian {
    pub(crate) dim: usize,
    pub(crate) reduce: Reduce,
    pub(crate) covariance: Covariance,
    pub(crate) project: Project,
}

/// What `gaussian` alone means.
pub(crate) const GAUSSIAN: Gaussian =
    Gaussian { dim: DIM, reduce: Reduce::Mean, covariance: Covariance::Diag, project: Project::Learned };

/// What stands between the MLP's products.
pub(crate) enum Activation {
    /// `silu` or `gelu`.
    Known(&'static str),
    /// A type of the user's.
    Custom(Path),
}

/// What shares a decision.
#[derive(Clone, Copy)]
pub(crate) enum RoutePer {
    Token,
    Segment { tokens: usize },
    Sequence { first: usize },
    Task,
}

/// How many choices a router takes, where that depends on its input.
#[derive(Clone, Copy)]
pub(crate) enum Pfag {
    Off,
    Entropy,
    Nucleus { mass: f64 },
    Surprisal,
}

/// How load is kept even while routers learn.
#[derive(Clone, Copy)]
pub(crate) enum Balance {
    None,
    Loss { coefficient: f64 },
    Bias { rate: f64 },
}

impl Variant {
    /// Experts in all.
    pub(crate) fn experts(&self) -> usize {
        let routed: usize =
            self.levels.last().map_or(0, |level| level.runs.iter().map(|run| run.parents * run.choices).sum());
        routed + self.always_experts()
    }

    /// Experts that take part in every decision.
    pub(crate) fn always_experts(&self) -> usize {
        self.always.iter().map(|group| group.experts).sum()
    }

    /// The most experts that a decision takes: of named groups, the ones that take most.
    pub(crate) fn active_experts(&self) -> usize {
        let mut active = 1;
        for level in &self.levels {
            let mut taken: Vec<usize> = level.runs.iter().map(|run| run.top_k).collect();
            taken.sort_unstable_by(|a, b| b.cmp(a));
            // Routers of a run are equal; of several runs, `active` ones stand under chosen nodes.
            active = if taken.len() == 1 { active * taken[0] } else { taken.iter().take(active).sum() };
        }
        active + self.always_experts()
    }
}

impl Activation {
    /// As in `hidden_act`.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Known(word) => (*word).to_owned(),
            Self::Custom(path) => path.segments.last().map_or(String::new(), |last| snake_case(&last.ident)),
        }
    }
}

/// `WrittenWords` to `written_words`.
pub(crate) fn snake_case(ident: &Ident) -> String {
    let written = ident.to_string();
    let letters: Vec<char> = written.trim_start_matches("r#").chars().collect();
    let mut name = String::new();
    for (i, letter) in letters.iter().enumerate() {
        let starts_word = letter.is_uppercase()
            && i > 0
            && letters[i - 1] != '_'
            && (!letters[i - 1].is_uppercase() || letters.get(i + 1).is_some_and(|next| next.is_lowercase()));
        name.extend(starts_word.then_some('_'));
        name.extend(letter.to_lowercase());
    }
    name
}
