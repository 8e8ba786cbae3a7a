//! Text by task: what every later stage reads, and the fingerprint that names it in every result.

use super::Documents;
use super::copies::first_copies;
use crate::Result;
use crate::files::Digest;

/// One text that is never divided between splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// A name unique in its task: a relative path, with a part or line number where a file holds several documents.
    pub id: String,
    /// The text; of a conversation its messages, as JSON.
    pub text: String,
    /// Whether it is a conversation, which a model's template makes text of.
    pub conversation: bool,
}

impl Document {
    /// A text.
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { id: id.into(), text: text.into(), conversation: false }
    }
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

    /// For each document the first that has the same text, by its place: itself, where there is none before. What is drawn over documents takes copies together.
    #[must_use]
    pub fn first_copies(&self) -> Vec<usize> {
        first_copies(&self.documents)
    }
}

/// The tasks of one run, in the order that numbers them.
///
/// ```
/// use tinyonn::data::{Corpus, Document, Task};
///
/// let documents = ["bread", "water", "bread"].map(|text| Document::new(text, text)).to_vec();
/// let task = Task { name: "food".into(), documents };
/// assert_eq!((task.bytes(), task.first_copies()), (15, vec![0, 1, 0])); // the third says what the first says
/// let corpus = Corpus { tasks: vec![task] };
/// assert_eq!((corpus.bytes(), corpus.task_names()), (15, vec!["food".to_owned()]));
/// ```
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
    ///         documents: vec![Document::new(id, text)],
    ///     }],
    /// };
    /// assert_eq!(corpus("a", "bc").sha256(), corpus("a", "bc").sha256());
    /// assert_ne!(corpus("a", "bc").sha256(), corpus("ab", "c").sha256());
    /// ```
    pub fn sha256(&self) -> String {
        let mut digest = CorpusDigest::new(self.tasks.len());
        for task in &self.tasks {
            digest.task(&task.name, task.documents.len());
            task.documents.iter().for_each(|document| digest.document(document));
        }
        digest.hex()
    }
}

/// [`Corpus::sha256`] of text that comes a document at a time.
pub(super) struct CorpusDigest(Digest);

impl CorpusDigest {
    pub(super) fn new(tasks: usize) -> Self {
        let mut digest = Digest::new();
        digest.number(tasks as u64);
        Self(digest)
    }

    /// Begins a task of so many documents.
    pub(super) fn task(&mut self, name: &str, documents: usize) {
        self.0.text(name);
        self.0.number(documents as u64);
    }

    pub(super) fn document(&mut self, document: &Document) {
        self.0.text(&document.id);
        self.0.text(&document.text);
        if document.conversation {
            self.0.text("messages");
        }
    }

    pub(super) fn hex(self) -> String {
        self.0.hex()
    }
}

/// For text that is small enough to be in memory.
impl Documents for Corpus {
    fn names(&self) -> Vec<String> {
        self.task_names()
    }

    fn count(&self, task: usize) -> Result<usize> {
        Ok(self.tasks[task].documents.len())
    }

    fn visit(&self, task: usize, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
        self.tasks[task].documents.iter().cloned().try_for_each(each)
    }
}
