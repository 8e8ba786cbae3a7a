//! Data: what comes out of sources, generators, splits, tokenizer and packing.

// clippy.toml's leave covers `#[test]` functions, not the helpers they call.
#![allow(clippy::unwrap_used, clippy::panic)]

mod answers;
mod blanks;
mod conversations;
mod copies;
mod corpora;
mod formats;
mod packing;
mod sources;
mod token_files;
mod tokens;
mod toolchain;

use tinyonn::data::{Corpus, Document, Task};

/// A corpus of one task from (id, text) pairs.
fn corpus(name: &str, documents: &[(&str, &str)]) -> Corpus {
    let documents = documents.iter().map(|(id, text)| Document::new(*id, *text)).collect();
    Corpus { tasks: vec![Task { name: name.into(), documents }] }
}
