//! Text by task → documents → splits → tokens → packed rows → batches.
//!
//! Each step is a plain value, the same for the same input and seed on every machine: a [`Corpus`] of tasks (from
//! [`read_sources`], [`default_corpus`] or a generator), [`Splits`] by document, a [`TextTokenizer`], a [`TokenSet`] a
//! split, and from it either all rows of a task in order ([`TokenSet::batches_of_task`]) or the training batch of any
//! step ([`Sampler::batch_at`]).
//!
//! Text of any size goes another way: [`Documents`] are visited one after another and their tokens written to a [`TokenFile`], whose
//! [`Batches`] are those of the [`TokenSet`] that would hold them.
//!
//! ```
//! use candle_core::Device;
//! use tinyonn::data::{Corpus, Sampler, SplitShares, Splits, TextTokenizer, TokenSet, arithmetic, sorting};
//!
//! let corpus = Corpus { tasks: vec![arithmetic(0, 20_000), sorting(0, 20_000)] };
//! let splits = Splits::new(&corpus, SplitShares::default(), 0)?;
//! let tokenizer = TextTokenizer::train(&splits.train, 300)?;
//!
//! let train = TokenSet::encode(&splits.train, &tokenizer)?;
//! let batch = Sampler::new(&train, 64, 8, 0, &Device::Cpu)?.batch_at(0)?;
//! assert_eq!(batch.inputs.dims(), [8, 64]);
//! assert_eq!(batch.tasks, [0, 1, 0, 1, 0, 1, 0, 1]);
//!
//! let test = TokenSet::encode(&splits.test, &tokenizer)?;
//! for batch in test.batches_of_task(1, 64, 8, &Device::Cpu)? {
//!     assert!(batch?.tasks.iter().all(|task| *task == 1));
//! }
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod batches;
mod conversation;
mod copies;
mod corpus;
mod default_text;
mod documents;
mod json_line;
mod order;
mod pack;
mod replay;
mod sampler;
mod source;
mod split;
mod synthetic;
mod text_file;
mod text_kind;
mod token_file;
mod tokenizer;
mod tokenizer_json;
mod toolchain_text;

pub use batches::Batches;
pub use conversation::{Conversation, Conversations};
pub use corpus::{Corpus, Document, Task};
pub use default_text::{DEFAULT_TASKS, default_corpus, workspace_root};
pub use documents::{Counted, Documents};
pub use pack::{Batch, NO_DOCUMENT, NO_TARGET, READ_ONLY, TaskTokens, TokenSet};
pub use sampler::Sampler;
pub use source::{DataSource, check_sources, read_sources};
pub use split::{SplitShares, Splits};
pub use synthetic::{
    DEFAULT_BYTES, NovelTask, arithmetic, contradictions, invented_language, ledger, letter_sums, records, sorting,
};
pub use token_file::TokenFile;
pub use tokenizer::{END_OF_TEXT, EncodedDocument, TextTokenizer};
pub use toolchain_text::{TOOLCHAIN, TOOLCHAIN_TASKS, Toolchain, toolchain_corpus};
