//! Texts that are there more than once: copies word for word, and texts that share most of their words with others.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{Corpus, Document};

/// Words in a row that two texts have in common only if one was copied.
const WORDS: usize = 16;
/// Shingles that are kept to compare with, at most: 8 MiB of them, an even sample of more.
const MOST_SHINGLES: usize = 1 << 20;

/// For each document the first that has the same text: itself, where there is none before.
pub(super) fn first_copies(documents: &[Document]) -> Vec<usize> {
    let mut first: HashMap<&str, usize> = HashMap::new();
    documents.iter().enumerate().map(|(at, document)| *first.entry(&document.text).or_insert(at)).collect()
}

/// For each task, how many documents of `held` share at least half of their text with `train`, whatever task that is of.
pub(super) fn near_copies(held: &[&Corpus], train: &Corpus) -> Vec<usize> {
    let mut known = Shingles::default();
    train.tasks.iter().flat_map(|task| &task.documents).for_each(|document| known.add(&document.text));
    let of_task = |task: usize| held.iter().flat_map(move |corpus| &corpus.tasks[task].documents);
    (0..train.tasks.len()).map(|task| of_task(task).filter(|held| known.hold_most_of(&held.text)).count()).collect()
}

/// A sample of shingles, rows of words, by their hashes: those whose lowest `level` bits are zero.
#[derive(Default)]
struct Shingles {
    hashes: HashSet<u64>,
    level: u32,
}

impl Shingles {
    fn add(&mut self, text: &str) {
        for hash in shingles(text).filter(|hash| hash.trailing_zeros() >= self.level).collect::<Vec<_>>() {
            self.hashes.insert(hash);
        }
        while self.hashes.len() > MOST_SHINGLES {
            self.level += 1;
            self.hashes.retain(|hash| hash.trailing_zeros() >= self.level);
        }
    }

    fn hold_most_of(&self, text: &str) -> bool {
        let (mut all, mut known) = (0, 0);
        for hash in shingles(text).filter(|hash| hash.trailing_zeros() >= self.level) {
            all += 1;
            known += usize::from(self.hashes.contains(&hash));
        }
        all > 0 && 2 * known >= all
    }
}

/// A hash for each row of [`WORDS`] words, without regard to case and punctuation; a shorter text has one hash.
fn shingles(text: &str) -> impl Iterator<Item = u64> {
    let words: Vec<u64> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(word).collect();
    let count = if words.is_empty() { 0 } else { words.len().saturating_sub(WORDS) + 1 };
    (0..count).map(move |at| hashed(&words[at..words.len().min(at + WORDS)]))
}

fn word(word: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    word.chars().flat_map(char::to_lowercase).for_each(|c| c.hash(&mut hasher));
    hasher.finish()
}

fn hashed(words: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Task, arithmetic, records, sorting};

    fn numbered(from: usize, words: usize) -> String {
        (from..from + words).map(|at| format!("word{at} ")).collect()
    }

    #[test]
    fn rows_of_words_are_known_however_they_are_written() {
        let mut rows = Shingles::default();
        rows.add("One, two; THREE four");
        assert!(rows.hold_most_of("one two\nthree: four!") && !rows.hold_most_of("one two three five"));
        assert!(!rows.hold_most_of("") && !rows.hold_most_of("...."));
        rows.add(&numbered(0, 400));
        assert!(rows.hold_most_of(&(numbered(0, 220) + &numbered(10_000, 180))));
        assert!(!rows.hold_most_of(&(numbered(0, 180) + &numbered(10_000, 220))));
    }

    /// However much is added, what is kept stays bounded, and an even sample of it is enough.
    #[test]
    fn more_text_than_is_kept_is_sampled() {
        let mut rows = Shingles::default();
        for part in 0..30 {
            rows.add(&numbered(part * 100_000, 100_000));
        }
        assert!(rows.hashes.len() <= MOST_SHINGLES && rows.level == 2, "{} {}", rows.hashes.len(), rows.level);
        assert!(rows.hold_most_of(&numbered(1_234_000, 2_000)) && !rows.hold_most_of(&numbered(90_000_000, 2_000)));
    }

    /// What is generated is drawn anew each time: none of it is taken for a copy.
    #[test]
    fn generated_tasks_hold_no_copies() {
        let of = |seed: u64| Corpus {
            tasks: vec![arithmetic(seed, 300_000), sorting(seed, 300_000), records(seed, 300_000)],
        };
        let (train, held) = (of(0), of(1));
        for Task { documents, .. } in &train.tasks {
            assert_eq!(first_copies(documents), (0..documents.len()).collect::<Vec<_>>());
        }
        assert_eq!(near_copies(&[&held], &train), [0, 0, 0]);
    }
}
