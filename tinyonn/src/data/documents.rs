//! Text that is visited a document at a time, so that it may be larger than memory.

use super::Document;
use crate::Result;

/// Tasks whose documents can be visited again and again, each time the same in the same order.
///
/// ```
/// use tinyonn::data::{Corpus, Counted, Documents, sorting};
///
/// let corpus = Corpus { tasks: vec![sorting(0, 4_000)] };
/// let text: &dyn Documents = &corpus;
/// let mut bytes = 0;
/// text.visit(0, &mut |document| {
///     bytes += document.text.len();
///     Ok(())
/// })?;
/// assert_eq!((text.names(), text.count(0)?, bytes), (vec!["sorting".into()], corpus.tasks[0].documents.len(), corpus.bytes()));
/// assert!(Counted::new(text).is_ok()); // all of it can be read
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub trait Documents {
    /// The tasks' names, in the order that numbers them.
    fn names(&self) -> Vec<String>;

    /// The documents of a task.
    ///
    /// # Errors
    /// Text that cannot be read; a task without any.
    fn count(&self, task: usize) -> Result<usize>;

    /// Gives `each` every document of a task.
    ///
    /// # Errors
    /// Text that cannot be read; that of `each`, which ends the visit.
    fn visit(&self, task: usize, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()>;
}

/// Text that was read once from end to end, so that what cannot be read is known, and the number of documents, which stands before
/// them in [`Corpus::sha256`](super::Corpus::sha256).
pub struct Counted<'a> {
    pub(super) text: &'a dyn Documents,
    /// Of each task.
    pub(super) documents: Vec<usize>,
}

impl<'a> Counted<'a> {
    /// Reads `text`, and keeps nothing of it.
    ///
    /// # Errors
    /// Those of [`Documents::count`].
    pub fn new(text: &'a dyn Documents) -> Result<Self> {
        let documents = (0..text.names().len()).map(|task| text.count(task)).collect::<Result<_>>()?;
        Ok(Self { text, documents })
    }
}
