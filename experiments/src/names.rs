//! How the groups and experts of a hierarchy are called in tables and pictures.

use tinyonn::moe::MoeSpec;

/// `3` of a numbered group, `3:1` of its experts, the name of a named one.
pub(crate) fn node_name(spec: &MoeSpec, level: usize, node: usize) -> String {
    if level == 0 {
        let name = spec.node_name(0, node);
        return name.strip_prefix(&format!("{} ", spec.levels[0].name)).map_or(name.clone(), str::to_owned);
    }
    let of = spec.levels[level].slots().position(|slot| slot.nodes.contains(&node)).unwrap_or(0);
    let first = spec.levels[level].slots().nth(of).map_or(0, |slot| slot.nodes.start);
    format!("{}:{}", node_name(spec, level - 1, of), node - first)
}

/// A name for each expert, by its group: `3:1`, which reads as no number.
#[cfg(feature = "pictures")]
pub(crate) fn group_columns(spec: &MoeSpec) -> (Vec<String>, Option<Vec<(String, usize)>>) {
    let mut groups: Vec<(String, usize)> = spec
        .experts_under(0)
        .into_iter()
        .enumerate()
        .map(|(group, experts)| (spec.node_name(0, group), experts.len()))
        .collect();
    groups.extend(spec.always.iter().map(|group| (group.name.to_string(), group.experts)));
    let of_group =
        |(group, (_, width)): (usize, &(String, usize))| (0..*width).map(move |e| format!("{group}:{e}")).collect();
    let columns = groups.iter().enumerate().flat_map::<Vec<String>, _>(of_group).collect();
    (columns, Some(groups))
}
