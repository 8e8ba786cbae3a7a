//! The rules of a declaration: what the macro refuses where it is written, and the library when a program or a file made it, in the same
//! words. All that is wrong is found at once.
//!
//! ```
//! use tinyonn::moe::{At, LevelSpec, MoeSpec, Part, RouterKind, RouterSpec, Violation};
//!
//! let run = RouterSpec::new("expert", 1, 10, 12, RouterKind::Linear);
//! let level = LevelSpec { name: "expert".into(), routers: vec![run].into() };
//! let spec = MoeSpec { name: "TooMany".into(), levels: vec![level].into(), ..MoeSpec::PLAIN };
//! let found: Vec<Violation> = spec.validate();
//! assert_eq!(found[0].at, At::Run { level: 0, run: 0, part: Part::TopK });
//! assert!(found[0].to_string().contains("12 exceeds the 10 experts"), "{}", found[0]);
//! assert_eq!(tinyonn_spec::MOST, 1 << 24); // of anything that is counted
//! ```

mod attention;
mod behaviour;
mod hierarchy;

use std::fmt;

use crate::MoeSpec;

/// Experts, and any other number that is counted: no MLP is wider.
pub const MOST: usize = 1 << 24;

/// What is wrong with a declaration, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What of the declaration is wrong.
    pub at: At,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// Something that is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The hierarchy as a whole: its depth, the number of its experts.
    Hierarchy,
    /// Of a level, by its index, a run of routers, by its own.
    Run {
        /// The level.
        level: usize,
        /// The run.
        run: usize,
        /// What of it.
        part: Part,
    },
    /// A group that always takes part, by its index.
    Always {
        /// The group.
        group: usize,
        /// What of it.
        part: Part,
    },
    /// A setting, by its name, that has no place beside others.
    Setting(&'static str),
    /// The value of a setting.
    Value(&'static str),
    /// Of the value of a setting, its argument of this name.
    Argument(&'static str, &'static str),
}

/// What is declared of a run of routers, or of a group that always takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its name.
    Name,
    /// How many choices, or experts, there are.
    Size,
    /// How many of them are taken.
    TopK,
    /// What decides: a kind of router, or that the group always takes part.
    Kind,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

impl MoeSpec {
    /// Every rule that the declaration breaks; none if it can be run.
    #[must_use]
    pub fn validate(&self) -> Vec<Violation> {
        let mut found = Found::default();
        hierarchy::check(self, &mut found);
        behaviour::check(self, &mut found);
        attention::check(self, &mut found);
        found.0
    }
}

/// What was found so far.
#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, at: At, problem: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Violation { at, problem: problem.into(), remedy: remedy.into() });
    }

    /// A number that `name` says must be one or more.
    fn count(&mut self, at: At, name: &str, value: usize) {
        match value {
            0 => self.add(at, format!("`{name}` is 0"), "use 1 or more"),
            1..=MOST => (),
            _ => self.add(at, format!("`{name}` is {value}"), format!("use {MOST} or less")),
        }
    }
}
