//! The documentation of an expanded variant: its hierarchy drawn, its parameters counted, and what it does in words.

mod drawing;
mod parameters;
mod words;

use crate::variant::Variant;

/// Lines to follow the user's own, each with the space that `///` would leave.
pub(crate) fn of(variant: &Variant) -> Vec<String> {
    let mut lines = vec![words::heading(variant), String::new(), "```text".to_owned()];
    lines.extend(drawing::drawing(variant));
    lines.extend(["```".to_owned(), String::new()]);
    lines.extend(words::behaviour(variant).into_iter().map(|sentence| format!("- {sentence}")));
    lines.push(String::new());
    lines.extend(parameters::table(variant));
    lines.push(String::new());
    lines.push(parameters::bank(variant));
    lines.into_iter().map(|line| if line.is_empty() { line } else { format!(" {line}") }).collect()
}

/// A line on the group of that name.
pub(crate) fn of_group(variant: &Variant, name: &str) -> String {
    let run = variant.levels.last().into_iter().flat_map(|level| &level.runs).find(|run| run.name == name);
    let always = variant.always.iter().find(|group| group.name == name);
    match (run, always) {
        (Some(run), _) => format!(" {}, {}.", experts(run.choices), drawing::decision(variant, run)),
        (None, Some(group)) => format!(" {}, always active.", experts(group.experts)),
        (None, None) => String::new(),
    }
}

/// `1 expert`, `10 experts`
fn experts(count: usize) -> String {
    if count == 1 { "1 expert".to_owned() } else { format!("{count} experts") }
}
