//! Generated tasks whose every line can be checked: text without a download. Three kinds are part of the default text; those of [`NovelTask`] no
//! pretraining reads.
//!
//! A task is a pure function of seed and size; a larger size continues a smaller one. Documents hold 40 to 80 lines.
//!
//! ```
//! use tinyonn::data::*;
//!
//! let tasks = [arithmetic, sorting, records, letter_sums, ledger, contradictions, invented_language].map(|make| make(0, 4_000));
//! assert!(tasks.iter().all(|task| task.bytes() >= 4_000 && !task.documents.is_empty()));
//! // A larger size continues a smaller one.
//! assert_eq!(sorting(0, 9_000).documents[0], tasks[1].documents[0]);
//! assert_eq!(NovelTask::ALL.map(|task| task.generate(0, 4_000).name), [3, 4, 5, 6].map(|at| tasks[at].name.clone()));
//! assert_eq!(DEFAULT_BYTES, 300_000); // of each in the default text
//! ```

mod arithmetic;
mod contradictions;
mod invented_language;
mod ledger;
mod letter_sums;
mod novel;
mod records;
mod sorting;

use rand::Rng as _;

pub use arithmetic::arithmetic;
pub use contradictions::contradictions;
pub use invented_language::invented_language;
pub use ledger::ledger;
pub use letter_sums::letter_sums;
pub use novel::NovelTask;
pub use records::records;
pub use sorting::sorting;

use super::{Document, Task};
use crate::random::{self, Rng};

/// The size, in bytes, of each generated task of the default corpus: the order of the workspace's own sources.
pub const DEFAULT_BYTES: usize = 300_000;

/// Documents of 40 to 80 lines until the task holds `bytes`; `lines` appends one line or several.
fn generate(name: &str, seed: u64, bytes: usize, mut lines: impl FnMut(&mut Rng, &mut Vec<String>)) -> Task {
    let mut rng = random::stream(seed, &format!("data/{name}"));
    let mut task = Task { name: name.to_owned(), documents: Vec::new() };
    let mut size = 0;
    while size < bytes {
        let count = rng.random_range(40..=72);
        let mut document = Vec::with_capacity(80);
        while document.len() < count {
            lines(&mut rng, &mut document);
        }
        let text = document.join("\n") + "\n";
        size += text.len();
        task.documents.push(Document::new(format!("{:05}", task.documents.len() + 1), text));
    }
    task
}

/// One of `choices`, which is not empty.
fn pick<'a, T>(rng: &mut Rng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len() as u32) as usize]
}
