//! The tree of a hierarchy: a line a level, and one for each named group.

use crate::{Covariance, GaussianSpec, LevelSpec, MoeSpec, Pfag, Project, Reduce, RouterKind, RouterSpec};

pub(super) fn drawing(spec: &MoeSpec) -> Vec<String> {
    let mut lines = vec![spec.name.to_string()];
    let always = spec.always.iter().map(|group| format!("{}: {} × expert, always", group.name, group.experts));
    lines.extend(branches(spec, &spec.levels, !spec.always.is_empty()));
    lines.extend(children(always, false));
    lines
}

/// The levels from one on, `more` if something follows beside them.
fn branches(spec: &MoeSpec, levels: &[LevelSpec], more: bool) -> Vec<String> {
    let Some((level, below)) = levels.split_first() else { return Vec::new() };
    let line = |run: &RouterSpec| {
        let group = if run.name == level.name { String::new() } else { format!("{}: ", run.name) };
        format!("{group}{} × {}: {}", run.choices, level.name, decision(spec, run))
    };
    let mut lines: Vec<String> = children(level.routers.iter().map(line), more).collect();
    let indent = if more { "│  " } else { "   " };
    lines.extend(branches(spec, below, false).into_iter().map(|line| format!("{indent}{line}")));
    lines
}

/// Lines with the strokes of a tree, the last of them a corner unless there is `more`.
fn children(lines: impl Iterator<Item = String>, more: bool) -> impl Iterator<Item = String> {
    let mut lines = lines.peekable();
    std::iter::from_fn(move || {
        let line = lines.next()?;
        let stroke = if more || lines.peek().is_some() { "├─" } else { "└─" };
        Some(format!("{stroke} {line}"))
    })
}

/// What decides, and how many it takes.
pub(super) fn decision(spec: &MoeSpec, run: &RouterSpec) -> String {
    let bound = if spec.pfag == Pfag::Off { "takes" } else { "takes at most" };
    format!("{} {bound} {}", written(&run.kind), run.top_k)
}

/// A router as it would be written, without what goes without saying.
fn written(kind: &RouterKind) -> String {
    let GaussianSpec { dim, reduce, covariance, project } = match kind {
        RouterKind::Gaussian(form) => form,
        RouterKind::Linear => return "linear".to_owned(),
        RouterKind::LowRank { dim } => return format!("linear(dim = {dim})"),
        RouterKind::Cosine => return "cosine".to_owned(),
        RouterKind::Random => return "random".to_owned(),
        RouterKind::Custom(path) => return path.to_string(),
    };
    let mut said = Vec::new();
    said.extend((*project != Project::Identity).then(|| format!("dim = {dim}")));
    said.extend((*reduce != Reduce::Mean).then(|| format!("reduce = {}", reduce.word())));
    said.extend((*covariance != Covariance::Diag).then(|| format!("covariance = {}", covariance.word())));
    said.extend((*project != Project::Learned).then(|| format!("project = {}", project.word())));
    format!("gaussian({})", said.join(", "))
}
