//! A declaration described: its hierarchy drawn, what it does in sentences, its parameters counted. The documentation of a declared
//! type, in Markdown.

mod drawing;
mod parameters;
mod sentences;

use crate::MoeSpec;

impl MoeSpec {
    /// The description, line by line.
    ///
    /// ```
    /// use tinyonn::gallery::{NamedGroups, TinyOnn};
    ///
    /// assert!(TinyOnn::SPEC.describe().contains(&"```text".to_owned())); // the hierarchy, drawn
    /// assert!(NamedGroups::SPEC.describe_group("memory").is_some_and(|line| line.starts_with("3 experts, ")));
    /// ```
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let mut lines = vec![sentences::heading(self), String::new(), "```text".to_owned()];
        lines.extend(drawing::drawing(self));
        lines.extend(["```".to_owned(), String::new()]);
        lines.extend(sentences::behaviour(self).into_iter().map(|sentence| format!("- {sentence}")));
        lines.push(String::new());
        lines.extend(parameters::table(self));
        lines.extend([String::new(), parameters::bank(self)]);
        lines
    }

    /// A line on the named group, if there is one.
    #[must_use]
    pub fn describe_group(&self, name: &str) -> Option<String> {
        let runs = self.levels.last().into_iter().flat_map(|level| level.routers.iter());
        let routed = runs.filter(|run| run.name == name);
        let routed = routed.map(|run| format!("{}, {}.", experts(run.choices), drawing::decision(self, run)));
        let always = self.always.iter().filter(|group| group.name == name);
        routed.chain(always.map(|group| format!("{}, always active.", experts(group.experts)))).next()
    }
}

/// `1 expert`, `10 experts`
fn experts(count: usize) -> String {
    if count == 1 { "1 expert".to_owned() } else { format!("{count} experts") }
}
