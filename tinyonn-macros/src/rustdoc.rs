//! The documentation of an expanded variant: its hierarchy drawn, and its arithmetic.

use crate::validate::{Level, RoutePer, Router, Variant};

/// Lines to follow the user's own, each with the space that `///` would leave.
pub(crate) fn of(variant: &Variant) -> Vec<String> {
    let mut lines = vec![heading(variant), String::new(), "```text".to_owned()];
    lines.extend(drawing(variant));
    lines.extend(["```".to_owned(), String::new()]);
    lines.push("| level | routers | choices of each | taken | router parameters |".to_owned());
    lines.push("|---|---|---|---|---|".to_owned());
    lines.extend(variant.levels.iter().enumerate().map(|(index, level)| row(variant, index, level)));
    lines.push(String::new());
    lines.push(arithmetic(variant));
    lines.into_iter().map(|line| if line.is_empty() { line } else { format!(" {line}") }).collect()
}

fn heading(variant: &Variant) -> String {
    let (all, active) = (variant.experts(), variant.active_experts());
    let per = match variant.route_per {
        RoutePer::Token => "each token decides for itself".to_owned(),
        RoutePer::Sequence { first: 1 } => "a sequence decides once, by its first token".to_owned(),
        RoutePer::Sequence { first } => format!("a sequence decides once, by its first {first} tokens"),
    };
    let experts = if all == 1 { "1 expert".to_owned() } else { format!("{all} experts") };
    let share = trimmed(100.0 * active as f64 / all as f64);
    format!("{experts}, {active} active ({share} %); physical decision depth {}; {per}.", variant.levels.len())
}

/// The tree, a level a line.
fn drawing(variant: &Variant) -> Vec<String> {
    let mut lines = vec![variant.name.to_string()];
    for (depth, level) in variant.levels.iter().enumerate() {
        let Level { name, choices, top_k, router } = level;
        let Router::Gaussian { dim } = router;
        let indent = "   ".repeat(depth);
        lines.push(format!("{indent}└─ {choices} × {name}: gaussian(dim = {dim}) takes {top_k}"));
    }
    lines
}

fn row(variant: &Variant, index: usize, level: &Level) -> String {
    let Level { name, choices, top_k, router } = level;
    let parents = variant.parents(index);
    let all = parents * choices;
    let Router::Gaussian { dim } = router;
    format!("| {name} | {parents} | {choices} | {top_k} | r·d + 2·{all}·r + {}, r = min({dim}, d) |", all + 1)
}

fn arithmetic(variant: &Variant) -> String {
    format!(
        "For hidden width d and MLP width I (at least {}), a layer holds the 3·d·I weights of the dense MLP, and the routers.",
        variant.experts()
    )
}

/// At most one decimal, none if it is zero.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
