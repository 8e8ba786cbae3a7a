//! The tree of a hierarchy: a line a level, and one for each named group.

use crate::errors::source;
use crate::keywords::{Covariance, Keyword, Project, Reduce};
use crate::variant::{Gaussian, Level, Pfag, Router, Run, Variant};

pub(super) fn drawing(variant: &Variant) -> Vec<String> {
    let mut lines = vec![variant.name.to_string()];
    let always: Vec<String> =
        variant.always.iter().map(|group| format!("{}: {} × expert, always", group.name, group.experts)).collect();
    lines.extend(branches(variant, &variant.levels, !always.is_empty()));
    lines.extend(children(always.into_iter(), false));
    lines
}

/// The levels from one on, `more` if something follows beside them.
fn branches(variant: &Variant, levels: &[Level], more: bool) -> Vec<String> {
    let Some((Level { name, runs }, below)) = levels.split_first() else { return Vec::new() };
    let line = |run: &Run| format!("{} × {name}: {}", run.choices, decision(variant, run));
    if variant.groups.is_empty() || *name == "group" {
        let mut lines: Vec<String> = children(runs.iter().map(line), more).collect();
        let indent = if more { "│  " } else { "   " };
        lines.extend(branches(variant, below, false).into_iter().map(|line| format!("{indent}{line}")));
        return lines;
    }
    children(runs.iter().map(|run| format!("{}: {}", run.name, line(run))), more).collect()
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
pub(super) fn decision(variant: &Variant, run: &Run) -> String {
    let bound = if let Pfag::Off = variant.behaviour.pfag { "takes" } else { "takes at most" };
    format!("{} {bound} {}", router(&run.router), run.top_k)
}

/// A router as it would be written, without what goes without saying.
fn router(router: &Router) -> String {
    let Gaussian { dim, reduce, covariance, project } = match router {
        Router::Gaussian(form) => form,
        Router::Linear => return "linear".to_owned(),
        Router::Cosine => return "cosine".to_owned(),
        Router::Random => return "random".to_owned(),
        Router::Custom(path) => return source(path),
    };
    let mut said = Vec::new();
    if *project != Project::Identity {
        said.push(format!("dim = {dim}"));
    }
    if *reduce != Reduce::Mean {
        said.push(format!("reduce = {}", reduce.word()));
    }
    if *covariance != Covariance::Diag {
        said.push(format!("covariance = {}", covariance.word()));
    }
    if *project != Project::Learned {
        said.push(format!("project = {}", project.word()));
    }
    format!("gaussian({})", said.join(", "))
}
