//! How many parameters a variant's routers and experts have, for any hidden width d and MLP width I.

use crate::{Covariance, ExpertsAre, GaussianSpec, MoeSpec, Project, RouterKind, RouterSpec};

/// A line for each run of routers.
pub(super) fn table(spec: &MoeSpec) -> Vec<String> {
    let mut lines = vec![
        "| routers | in number | choices of each | taken | parameters |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    let runs = spec.levels.iter().flat_map(|level| level.routers.iter());
    lines.extend(runs.map(|run| {
        let RouterSpec { name, parents, choices, top_k, .. } = run;
        format!("| `{name}_router` | {parents} | {choices} | {top_k} | {} |", formula(run))
    }));
    lines
}

/// The parameters of P routers with C choices each, N = P·C.
fn formula(RouterSpec { parents, choices, kind, .. }: &RouterSpec) -> String {
    let n = parents * choices;
    match kind {
        RouterKind::Gaussian(form) => gaussian(form, *parents, n),
        RouterKind::Linear => format!("{n}·d + {n}"),
        RouterKind::LowRank { dim } => format!("{n}·r + {n}, and r·d of the layer, r = min({dim}, d)"),
        RouterKind::Cosine => format!("{n}·d + 1"),
        RouterKind::Random => format!("{n}·d, none trained"),
        RouterKind::Custom(_) => "its own".to_owned(),
    }
}

/// P `[r, d]`, μ `[N, r]`, log σ², log π `[N]` and s, and `[r, r]` of each router with a full Σ.
fn gaussian(GaussianSpec { dim, covariance, project, .. }: &GaussianSpec, parents: usize, n: usize) -> String {
    let r = if *project == Project::Identity { "d" } else { "r" };
    // Variances that vary with the dimension count with the means, others with the priors.
    let (wide, narrow) = match covariance {
        Covariance::Diag => (2 * n, n + 1),
        Covariance::Shared | Covariance::SharedFull => (n + parents, n + 1),
        Covariance::Isotropic => (n, 2 * n + 1),
    };
    let full = if *covariance == Covariance::SharedFull { format!("{parents}·{r}² + ") } else { String::new() };
    let own = format!("{full}{wide}·{r} + {narrow}");
    match project {
        Project::Identity => own,
        Project::Learned => format!("r·d + {own}, r = min({dim}, d)"),
        Project::Random => format!("r·d + {own}, r = min({dim}, d), of which r·d are not trained"),
    }
}

/// What the experts hold.
pub(super) fn bank(spec: &MoeSpec) -> String {
    let routers = "and the parameters of the routers";
    match spec.experts_are {
        ExpertsAre::Slice => format!(
            "For hidden width d and MLP width I (at least {}), a layer holds the 3·d·I weights of the dense MLP, {routers}.",
            spec.experts()
        ),
        ExpertsAre::Replicate => format!(
            "For hidden width d and MLP width I, a layer holds the 3·d·I weights of the dense MLP, 3·d·I more for each expert \
             that has learnt, {routers}."
        ),
    }
}
