//! Documents packed end to end into rows of equal length, without waste.
//!
//! A task's tokens are its documents' tokens, each document followed by the end of text (EOS). A row of length T takes
//! T + 1 tokens, the inputs and, one further, the targets; rows step by T. So **every token of a task but the first is a
//! target exactly once**. The last row of a task may be short: its inputs are padded with EOS, its targets with
//! [`NO_TARGET`]. (Where documents were cut, [`TokenSet::beginnings`], an EOS stands between them that is no target.)
//!
//! Shapes: B rows, T positions a row; position p = b·T + t of the flat lists.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::copies::first_copies;
use super::{Corpus, EncodedDocument, TextTokenizer};
use crate::files::Digest;
use crate::{Error, Result};

/// The target of a position that predicts nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// Stands for the document of a token that belongs to none; such a token is read and never predicted.
pub const NO_DOCUMENT: u32 = u32::MAX;

/// Set in the document of a token that is read and never predicted, as what the user says in a conversation.
pub const READ_ONLY: u32 = 1 << 31;

/// Whether a token of this owner is read and not predicted, though it has a document.
pub(super) fn is_read_only(owner: u32) -> bool {
    owner != NO_DOCUMENT && owner & READ_ONLY != 0
}

/// The number of a token's document, read only or not.
pub(super) fn number_of(owner: u32) -> u32 {
    if owner == NO_DOCUMENT { owner } else { owner & !READ_ONLY }
}

/// The tokens of document `number` and the end of text behind it, each with what [`TaskTokens::documents`] has of it. In a conversation that end is not
/// predicted: it is nobody's.
pub(super) fn owned(encoded: EncodedDocument, number: u32, eos: u32) -> impl Iterator<Item = (u32, u32)> {
    let EncodedDocument { tokens, answers } = encoded;
    let scored = move |at: usize| answers.as_ref().is_none_or(|answers| answers.get(at).is_some_and(|own| *own));
    let owner = move |at: usize| if scored(at) { number } else { number | READ_ONLY };
    tokens.into_iter().chain([eos]).enumerate().map(move |(at, token)| (token, owner(at)))
}

/// The tokens of one task in one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTokens {
    /// The task's name.
    pub name: String,
    /// Every document's tokens, each document followed by EOS.
    pub tokens: Vec<u32>,
    /// For every token the document it belongs to, an index into [`TokenSet::documents`] (with [`READ_ONLY`] set, where it is not to be predicted), or
    /// [`NO_DOCUMENT`].
    pub documents: Vec<u32>,
}

/// One split, tokenised.
///
/// ```
/// use tinyonn::data::{NO_TARGET, READ_ONLY, TaskTokens, TokenSet};
///
/// let task = |documents: Vec<u32>| TaskTokens { name: "t".into(), tokens: (1..=9).collect(), documents };
/// let of = |documents| TokenSet { tasks: vec![task(documents)], documents: vec!["t/a".into(), "t/b".into()], eos: 0 };
/// let mut set = of(vec![0, 0, 0, 0, 1, 1, 1, 1, 1]);
/// assert_eq!((set.tokens(), set.rows(4), set.tasks[0].rows(4), set.tasks[0].full_rows(3)), (9, vec![2], 2, 2));
///
/// // The first document is what the user says: read, not predicted.
/// let asked = of([vec![READ_ONLY; 4], vec![1; 5]].concat());
/// let batch = asked.batch_of_task(0, 0, (4, 2), &candle_core::Device::Cpu)?;
/// assert_eq!(batch.targets.to_vec2::<u32>()?[0], [NO_TARGET, NO_TARGET, NO_TARGET, 5]);
/// assert_eq!(batch.counted_t()?.to_vec1::<u8>()?[..4], [0, 0, 0, 1]);
/// assert_ne!(set.sha256(), asked.sha256());
///
/// set.truncate(6);
/// assert_eq!(set.tasks[0].tokens, [1, 2, 3, 4, 5, 6]);
/// let mut few = of(vec![0, 0, 0, 0, 1, 1, 1, 1, 1]);
/// few.spread_documents(4, 4); // there is room for one of the two
/// assert_eq!(few.tasks[0].tokens, [1, 2, 3, 4]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet {
    /// In the corpus' order: task `t` here is task `t` there.
    pub tasks: Vec<TaskTokens>,
    /// The documents of the split over all tasks, as `task/id`.
    pub documents: Vec<String>,
    /// The token that ends a document and pads a short row.
    pub eos: u32,
}

/// Rows of equal length, ready for a model.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::data::{Batch, TaskTokens, TokenSet};
///
/// let task = TaskTokens { name: "t".into(), tokens: vec![5, 6, 7, 0], documents: vec![0; 4] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
/// let batch: Batch = set.batch_of_task(0, 0, (4, 1), &Device::Cpu)?;
/// assert_eq!((batch.counted, batch.tasks), (vec![true, true, true, false], vec![0])); // behind the last there is nothing
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batch {
    /// Input tokens, `[B, T]`, u32.
    pub inputs: Tensor,
    /// The token after each input, `[B, T]`, u32; [`NO_TARGET`] where there is none, it belongs to [`NO_DOCUMENT`] or is [`READ_ONLY`].
    pub targets: Tensor,
    /// Which positions have a target, B·T of them: what is scored, known without asking a device.
    pub counted: Vec<bool>,
    /// The task of every row, B numbers.
    pub tasks: Vec<u32>,
    /// The document of every position's *target*, whose loss it is, B·T numbers; [`NO_DOCUMENT`] where that is only read. Positions behind the last token
    /// repeat the row's last document.
    pub documents: Vec<u32>,
}

impl Batch {
    /// 1 for each position with a target, `[B·T]` u8, where the inputs lie.
    ///
    /// # Errors
    /// What the device reports.
    pub fn counted_t(&self) -> Result<Tensor> {
        let marks: Vec<u8> = self.counted.iter().map(|counted| u8::from(*counted)).collect();
        Ok(Tensor::from_vec(marks, self.counted.len(), self.inputs.device())?)
    }
}

/// A row by task and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) task: usize,
    pub(super) index: usize,
}

impl TaskTokens {
    /// Rows of `length` positions that hold all tokens; the last may be short.
    pub fn rows(&self, length: usize) -> usize {
        self.targets().div_ceil(length.max(1))
    }

    /// Rows of `length` positions without padding.
    pub fn full_rows(&self, length: usize) -> usize {
        self.targets() / length.max(1)
    }

    /// Positions with a token behind them: all but the last.
    pub fn targets(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// A task without text.
    pub(super) fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), tokens: Vec::new(), documents: Vec::new() }
    }

    fn keep_beginnings(&mut self, most: usize, eos: u32) {
        let owned = self.tokens.iter().copied().zip(self.documents.iter().copied());
        // Without the EOS tokens that an earlier cut put in: this one puts its own.
        let owned: Vec<(u32, u32)> = owned.filter(|(_, document)| *document != NO_DOCUMENT).collect();
        let documents: Vec<&[(u32, u32)]> = owned.chunk_by(|a, b| number_of(a.1) == number_of(b.1)).collect();
        // How many tokens are kept of beginnings of this length, with the EOS after each document that is cut, save the last.
        let kept = |each: usize| {
            let cut = documents.iter().filter(|document| document.len() > each).count();
            let last = documents.last().is_some_and(|document| document.len() > each);
            documents.iter().map(|document| each.min(document.len())).sum::<usize>() + cut - usize::from(last)
        };
        // The longest beginning for which there is room.
        let (mut fits, mut beyond) = (0, owned.len() + 1);
        while beyond - fits > 1 {
            let middle = usize::midpoint(fits, beyond);
            if kept(middle) <= most { fits = middle } else { beyond = middle }
        }
        let mut beginnings = Vec::with_capacity(most);
        if fits == 0 {
            // More documents than room: the first ones, a token each, would say nothing.
            beginnings.extend_from_slice(&owned[..most.min(owned.len())]);
        }
        for (at, document) in documents.iter().enumerate().filter(|_| fits > 0) {
            beginnings.extend_from_slice(&document[..fits.min(document.len())]);
            if document.len() > fits && at + 1 < documents.len() {
                beginnings.push((eos, NO_DOCUMENT));
            }
        }
        (self.tokens, self.documents) = beginnings.into_iter().unzip();
    }
}

impl TokenSet {
    /// Gives every copy of a document the number of the first; `corpus` is what these tokens were made of. A bootstrap over documents would
    /// otherwise count copies as observations of their own.
    ///
    /// ```
    /// use tinyonn::data::{Corpus, Document, Task, TextTokenizer, TokenSet, sorting};
    ///
    /// let documents = ["1 2", "3 4", "1 2"].iter().enumerate().map(|(at, text)| Document::new(at.to_string(), *text)).collect();
    /// let corpus = Corpus { tasks: vec![Task { name: "t".into(), documents }] };
    /// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
    /// let mut set = TokenSet::encode(&corpus, &tokenizer)?;
    /// assert_eq!(set.tasks[0].documents.last(), Some(&2));
    /// set.number_copies_alike(&corpus);
    /// assert_eq!(set.tasks[0].documents.last(), Some(&0));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn number_copies_alike(&mut self, corpus: &Corpus) {
        let mut before = 0;
        for (task, tokens) in corpus.tasks.iter().zip(&mut self.tasks) {
            let first = first_copies(&task.documents);
            for owner in tokens.documents.iter_mut().filter(|owner| **owner != NO_DOCUMENT) {
                let number = before + first[(number_of(*owner) - before) as usize] as u32;
                *owner = number | (*owner & READ_ONLY);
            }
            before += first.len() as u32;
        }
    }

    /// Tokenises a split on all cores.
    pub fn encode(corpus: &Corpus, tokenizer: &TextTokenizer) -> Result<Self> {
        let mut set = Self { tasks: Vec::new(), documents: Vec::new(), eos: tokenizer.eos() };
        for task in &corpus.tasks {
            let mut packed = TaskTokens::empty(&task.name);
            for (document, encoded) in
                task.documents.iter().zip(tokenizer.encode_documents(&task.name, &task.documents)?)
            {
                for (token, owner) in owned(encoded, set.documents.len() as u32, set.eos) {
                    packed.tokens.push(token);
                    packed.documents.push(owner);
                }
                set.documents.push(format!("{}/{}", task.name, document.id));
            }
            set.tasks.push(packed);
        }
        Ok(set)
    }

    /// Keeps at most the first `most` tokens of each task.
    pub fn truncate(&mut self, most: usize) {
        for task in &mut self.tasks {
            task.tokens.truncate(most);
            task.documents.truncate(most);
        }
    }

    /// Of each task keeps documents that are evenly spread over it, whole: as many as have room in `most` tokens, `each` of a document counted at most; one
    /// at least.
    pub fn spread_documents(&mut self, each: usize, most: usize) {
        for task in &mut self.tasks {
            let owned: Vec<(u32, u32)> = task.tokens.iter().copied().zip(task.documents.iter().copied()).collect();
            let documents: Vec<&[(u32, u32)]> = owned.chunk_by(|a, b| number_of(a.1) == number_of(b.1)).collect();
            let count = documents.len();
            let chosen = |kept: usize| (0..kept).map(move |at| at * count / kept);
            let mut kept = count;
            loop {
                let tokens: usize = chosen(kept).map(|at| documents[at].len().min(each)).sum();
                if tokens <= most || kept <= 1 {
                    break;
                }
                // In proportion, and one less at least.
                kept = (kept * most / tokens).clamp(1, kept - 1);
            }
            let spread = chosen(kept).flat_map(|at| documents[at]);
            (task.tokens, task.documents) = spread.copied().unzip();
        }
    }

    /// Keeps at most `most` tokens of each task: the beginnings of all its documents, as long as there is room for each. Of a task that
    /// is cut, every document speaks, where [`truncate`](Self::truncate) would keep a few. Behind a document that is cut stands an EOS of
    /// [`NO_DOCUMENT`]: a model is told where the next one begins, and need not foresee where this one was cut.
    ///
    /// ```
    /// use tinyonn::data::{NO_DOCUMENT, TaskTokens, TokenSet};
    /// let task = TaskTokens { name: "t".into(), tokens: vec![1, 2, 3, 4, 5, 6, 0], documents: vec![0, 0, 0, 0, 1, 1, 1] };
    /// let mut set = TokenSet { tasks: vec![task], documents: vec!["t/a".into(), "t/b".into()], eos: 0 };
    /// set.beginnings(5);
    /// assert_eq!(set.tasks[0].tokens, [1, 2, 0, 5, 6]);
    /// assert_eq!(set.tasks[0].documents, [0, 0, NO_DOCUMENT, 1, 1]);
    /// ```
    pub fn beginnings(&mut self, most: usize) {
        let eos = self.eos;
        for task in self.tasks.iter_mut().filter(|task| task.tokens.len() > most) {
            task.keep_beginnings(most, eos);
        }
    }

    /// Tokens over all tasks.
    pub fn tokens(&self) -> usize {
        self.tasks.iter().map(|task| task.tokens.len()).sum()
    }

    /// For every task, the rows of `length` positions that hold all its tokens.
    pub fn rows(&self, length: usize) -> Vec<usize> {
        self.tasks.iter().map(|task| task.rows(length)).collect()
    }

    /// All rows of one task in order, `batch` at a time; the last batch may have fewer. For evaluation and scan.
    ///
    /// ```
    /// use candle_core::Device;
    /// use tinyonn::data::{TaskTokens, TokenSet};
    /// let task = TaskTokens { name: "t".into(), tokens: vec![5, 6, 7, 0], documents: vec![0; 4] };
    /// let set = TokenSet { tasks: vec![task], documents: vec!["t/a".into()], eos: 0 };
    /// let batches: Vec<_> = set.batches_of_task(0, 2, 8, &Device::Cpu)?.collect::<Result<_, _>>()?;
    /// assert_eq!(batches[0].inputs.to_vec2::<u32>()?, [[5, 6], [7, 0]]);
    /// assert_eq!(batches[0].targets.to_vec2::<u32>()?, [[6, 7], [0, u32::MAX]]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A task number the set does not have; a length or batch of zero.
    pub fn batches_of_task(
        &self,
        task: usize,
        length: usize,
        batch: usize,
        device: &Device,
    ) -> Result<impl Iterator<Item = Result<Batch>>> {
        check_shape(length, batch)?;
        let Some(tokens) = self.tasks.get(task) else {
            let problem = format!("there is no task number {task}");
            return Err(Error::setting("task", problem, format!("use a number below {}", self.tasks.len())));
        };
        let batches = tokens.rows(length).div_ceil(batch);
        Ok((0..batches).map(move |number| self.batch_of_task(task, number, (length, batch), device)))
    }

    /// The batch `number` (from 0) of [`batches_of_task`](Self::batches_of_task) alone.
    ///
    /// # Errors
    /// A task or number that the set does not have; a length or batch of zero.
    pub fn batch_of_task(
        &self,
        task: usize,
        number: usize,
        (length, batch): (usize, usize),
        device: &Device,
    ) -> Result<Batch> {
        check_shape(length, batch)?;
        let rows = self.tasks.get(task).map_or(0, |tokens| tokens.rows(length));
        let rows = rows_of_batch((task, number), rows, (length, batch))?;
        let rows: Vec<Row> = rows.map(|index| Row { task, index }).collect();
        self.batch(&rows, length, device)
    }

    /// SHA-256 of what a model would read: the tasks' names and tokens, which of these are only read, and the token that ends a document.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut digest = TokenDigest::new(self.eos, self.tasks.len());
        for task in &self.tasks {
            digest.task(&task.name, task.tokens.len());
            digest.tokens(&task.tokens);
            if task.documents.iter().any(|owner| is_read_only(*owner)) {
                digest.read_only(&task.documents);
            }
        }
        digest.hex()
    }

    /// Gathers rows that exist.
    pub(super) fn batch(&self, rows: &[Row], length: usize, device: &Device) -> Result<Batch> {
        let shape = (rows.len(), length);
        let positions = rows.len() * length;
        let (mut inputs, mut targets) = (Vec::with_capacity(positions), Vec::with_capacity(positions));
        let mut documents = Vec::with_capacity(positions);
        for (number, row) in rows.iter().enumerate() {
            let TaskTokens { tokens, documents: owners, .. } = &self.tasks[row.task];
            let from = row.index * length;
            let to = (from + length).min(tokens.len() - 1);
            inputs.extend_from_slice(&tokens[from..to]);
            // What is only read is nobody's loss.
            let owner = |owner: &u32| if is_read_only(*owner) { NO_DOCUMENT } else { *owner };
            let predicted = tokens[from + 1..=to].iter().zip(&owners[from + 1..=to]);
            targets.extend(predicted.map(|(token, own)| if owner(own) == NO_DOCUMENT { NO_TARGET } else { *token }));
            documents.extend(owners[from + 1..=to].iter().map(owner));
            let end = (number + 1) * length;
            inputs.resize(end, self.eos);
            targets.resize(end, NO_TARGET);
            documents.resize(end, number_of(owners[to]));
        }
        Ok(Batch {
            counted: targets.iter().map(|target| *target != NO_TARGET).collect(),
            inputs: Tensor::from_vec(inputs, shape, device)?,
            targets: Tensor::from_vec(targets, shape, device)?,
            tasks: rows.iter().map(|row| row.task as u32).collect(),
            documents,
        })
    }
}

/// [`TokenSet::sha256`] of tokens that come in pieces.
pub(super) struct TokenDigest(Digest);

impl TokenDigest {
    pub(super) fn new(eos: u32, tasks: usize) -> Self {
        let mut digest = Digest::new();
        digest.number(u64::from(eos));
        digest.number(tasks as u64);
        Self(digest)
    }

    /// Begins a task of so many tokens.
    pub(super) fn task(&mut self, name: &str, tokens: usize) {
        self.0.text(name);
        self.0.number(tokens as u64);
    }

    /// Some of the task's tokens.
    pub(super) fn tokens(&mut self, tokens: &[u32]) {
        self.0.more_words(tokens);
    }

    /// Behind all tokens of a task of which some are only read, which those are.
    pub(super) fn read_only(&mut self, owners: &[u32]) {
        let marks: Vec<u32> = owners.iter().map(|owner| u32::from(is_read_only(*owner))).collect();
        self.0.more_words(&marks);
    }

    pub(super) fn hex(self) -> String {
        self.0.hex()
    }
}

/// Of a task's `rows` those of its batch `number`.
pub(super) fn rows_of_batch(
    (task, number): (usize, usize),
    rows: usize,
    (length, batch): (usize, usize),
) -> Result<Range<usize>> {
    let first = number.saturating_mul(batch);
    if first < rows {
        return Ok(first..rows.min(first + batch));
    }
    let problem = format!("task {task} has no batch {number}: it has {rows} rows of {length}");
    Err(Error::setting("batch", problem, "use a lower number"))
}

/// Refuses rows without positions and batches without rows.
pub(super) fn check_shape(length: usize, batch: usize) -> Result<()> {
    for (name, value) in [("length", length), ("batch", batch)] {
        if value == 0 {
            return Err(Error::setting(name, "0 makes empty batches", "use 1 or more"));
        }
    }
    Ok(())
}
