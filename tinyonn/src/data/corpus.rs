//! Text by task: what every later stage reads, and the fingerprint that names it in every result.

use sha2::{Digest, Sha256};

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
        use std::fmt::Write as _;

        let mut hash = Sha256::new();
        let length = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_le_bytes());
        let string = |hash: &mut Sha256, s: &str| {
            length(hash, s.len());
            hash.update(s.as_bytes());
        };
        length(&mut hash, self.tasks.len());
        for task in &self.tasks {
            string(&mut hash, &task.name);
            length(&mut hash, task.documents.len());
            for document in &task.documents {
                string(&mut hash, &document.id);
                string(&mut hash, &document.text);
            }
        }
        hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}
