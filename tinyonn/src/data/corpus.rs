//! Text by task: what every later stage reads, and the fingerprint that names it in every result.

use crate::files::Digest;

/// One text that is never divided between splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// A name unique in its task: a relative path, with a part or line number where a file holds several documents.
    pub id: String,
    /// The text.
    pub text: String,
}

/// The documents of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The name that appears in labels, metrics and pictures.
    pub name: String,
    /// In the order of their ids when read from files.
    pub documents: Vec<Document>,
}

impl Task {
    /// Bytes of text.
    pub fn bytes(&self) -> usize {
        self.documents.iter().map(|document| document.text.len()).sum()
    }
}

/// The tasks of one run, in the order that numbers them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Corpus {
    /// Task `t` of this list is task number `t` everywhere.
    pub tasks: Vec<Task>,
}

impl Corpus {
    /// Bytes of text over all tasks.
    pub fn bytes(&self) -> usize {
        self.tasks.iter().map(Task::bytes).sum()
    }

    /// The names of the tasks, in order.
    pub fn task_names(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.name.clone()).collect()
    }

    /// SHA-256 (hexadecimal) over task names, document ids and texts. Every string and list is preceded by its length,
    /// so that moving a character from one field to the next changes the sum; no absolute path enters it.
    ///
    /// ```
    /// use tinyonn::data::{Corpus, Document, Task};
    /// let corpus = |id: &str, text: &str| Corpus {
    ///     tasks: vec![Task {
    ///         name: "t".into(),
    ///         documents: vec![Document { id: id.into(), text: text.into() }],
    ///     }],
    /// };
    /// assert_eq!(corpus("a", "bc").sha256(), corpus("a", "bc").sha256());
    /// assert_ne!(corpus("a", "bc").sha256(), corpus("ab", "c").sha256());
    /// ```
    pub fn sha256(&self) -> String {
        let mut digest = Digest::new();
        digest.number(self.tasks.len() as u64);
        for task in &self.tasks {
            digest.text(&task.name);
            digest.number(task.documents.len() as u64);
            for document in &task.documents {
                digest.text(&document.id);
                digest.text(&document.text);
            }
        }
        digest.hex()
    }
}
