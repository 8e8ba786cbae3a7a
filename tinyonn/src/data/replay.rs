//! Token sets put together: several side by side, and one with rows of older text among its own (replay).

use super::pack::{NO_DOCUMENT, READ_ONLY, TaskTokens, TokenSet};
use crate::{Error, Result};

impl TokenSet {
    /// The tasks of this set and, behind them, those of `other`, in one set.
    ///
    /// ```
    /// use tinyonn::data::{TaskTokens, TokenSet};
    ///
    /// let set = |name: &str| TokenSet {
    ///     tasks: vec![TaskTokens { name: name.into(), tokens: vec![1, 2, 0], documents: vec![0; 3] }],
    ///     documents: vec![format!("{name}/a")],
    ///     eos: 0,
    /// };
    /// let both = set("old").beside(&set("new"));
    /// assert_eq!((both.tasks.len(), both.tasks[1].documents[0]), (2, 1));
    /// assert_eq!(both.only(1)?.tasks[0].name, "new");
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn beside(&self, other: &Self) -> Self {
        let first = self.documents.len() as u32;
        let mut joined = self.clone();
        joined.documents.extend(other.documents.iter().cloned());
        joined.tasks.extend(other.tasks.iter().map(|task| TaskTokens {
            documents: task.documents.iter().map(|owner| numbered_from(first, *owner)).collect(),
            ..task.clone()
        }));
        joined
    }

    /// The task number `task` alone.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn only(&self, task: usize) -> Result<Self> {
        let none = || {
            let problem = format!("there is no task number {task}");
            Error::setting("task", problem, format!("use a number below {}", self.tasks.len()))
        };
        let own = self.tasks.get(task).ok_or_else(none)?.clone();
        Ok(Self { tasks: vec![own], documents: self.documents.clone(), eos: self.eos })
    }

    /// This set's first task with rows of `old` text among its own: of every `one_in` rows of `length` positions one is old. The tasks of `old` take
    /// turns, their rows evenly spread. Where one row meets another's text, the token across the seam is read and not predicted.
    ///
    /// ```
    /// use tinyonn::data::{NO_DOCUMENT, TaskTokens, TokenSet};
    /// let set = |name: &str, first: u32| TokenSet {
    ///     tasks: vec![TaskTokens { name: name.into(), tokens: (first..first + 9).collect(), documents: vec![0; 9] }],
    ///     documents: vec![format!("{name}/a")],
    ///     eos: 0,
    /// };
    /// let mixed = set("new", 100).with_replay(&set("old", 200), 3, 2)?;
    /// assert_eq!(mixed.tasks[0].tokens, [100, 101, 102, 103, 200, 201, 104, 105, 106, 107, 108]);
    /// assert_eq!(mixed.tasks[0].documents[4..7], [NO_DOCUMENT, 1, NO_DOCUMENT]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// `one_in` below 2; a set without a full row; old text with a task that has none.
    pub fn with_replay(&self, old: &Self, one_in: usize, length: usize) -> Result<Self> {
        if one_in < 2 {
            let problem = format!("one row in {one_in} would be old text, and none new");
            return Err(Error::setting("replay", problem, "use 2 or more"));
        }
        let short = |set: &Self| set.tasks.iter().all(|task| task.full_rows(length) == 0);
        if length == 0
            || short(self)
            || old.tasks.is_empty()
            || old.tasks.iter().any(|task| task.full_rows(length) == 0)
        {
            let problem = format!("new or old text has no row of {length} tokens and its target");
            return Err(Error::setting("length", problem, "use less, or give more text"));
        }
        let new = &self.tasks[0];
        let rows = new.full_rows(length);
        let replayed = rows.div_ceil(one_in - 1) - 1;
        let (first, mut seam) = (self.documents.len() as u32, false);
        let mut mixed = TaskTokens::empty(&new.name);
        for row in 0..rows {
            mixed.push_row(new, row * length, length, (0, seam));
            seam = false;
            if (row + 1) % (one_in - 1) == 0 && row + 1 < rows {
                let at = row / (one_in - 1);
                let task = &old.tasks[at % old.tasks.len()];
                // The visits of each task are spread over all of its rows.
                let visits = replayed.div_ceil(old.tasks.len()).max(1);
                let from = (at / old.tasks.len()) * task.full_rows(length) / visits;
                mixed.push_row(task, from * length, length, (first, true));
                seam = true;
            }
        }
        // The target of the last position.
        mixed.push_row(new, rows * length, 1, (0, seam));
        let documents = self.documents.iter().chain(&old.documents).cloned().collect();
        Ok(Self { tasks: vec![mixed], documents, eos: self.eos })
    }
}

impl TaskTokens {
    /// Adds `length` tokens of `task`, whose documents are numbered from `first`; behind a seam the first one is nobody's.
    fn push_row(&mut self, task: &Self, from: usize, length: usize, (first, seam): (u32, bool)) {
        let start = self.documents.len();
        self.tokens.extend_from_slice(&task.tokens[from..from + length]);
        self.documents.extend(task.documents[from..from + length].iter().map(|owner| numbered_from(first, *owner)));
        if seam {
            self.documents[start] = NO_DOCUMENT;
        }
    }
}

/// The owner of a token whose documents are numbered from `first` now.
fn numbered_from(first: u32, owner: u32) -> u32 {
    if owner == NO_DOCUMENT { owner } else { ((owner & !READ_ONLY) + first) | (owner & READ_ONLY) }
}
