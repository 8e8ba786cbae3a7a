//! Facts that are told and asked again later: does a query still find the one key that matters?

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use tinyonn::data::TextTokenizer;
use tinyonn::{Error, Result, random};

/// Of which a fact's name has two.
const WORDS: [&str; 24] = [
    "river", "stone", "amber", "cedar", "falcon", "harbor", "violet", "copper", "maple", "lantern", "meadow", "winter",
    "silver", "canyon", "orchid", "thunder", "velvet", "island", "marble", "saffron", "ember", "willow", "glacier",
    "comet",
];
/// A text that tells facts and then asks each of them once, in another order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FactText {
    /// All of it.
    pub(super) tokens: Vec<u32>,
    /// Where the questions begin.
    pub(super) asked_from: usize,
    /// The answers, in the order of the questions.
    pub(super) answers: Vec<Answer>,
}

/// An answer within a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The position of its first token.
    pub(super) first: usize,
    /// Its tokens.
    pub(super) tokens: usize,
    /// Tokens from where it was told to where it is asked.
    pub(super) distance: usize,
}

/// The `number`th text of `length` tokens at most.
///
/// # Errors
/// A text that cannot be encoded; a length that holds no fact.
pub(super) fn fact_text(tokenizer: &TextTokenizer, length: usize, seed: u64, number: usize) -> Result<FactText> {
    let mut rng = random::stream(seed, &format!("facts of text {number}"));
    let pairs = WORDS.iter().flat_map(|a| WORDS.iter().filter(move |b| *b != a).map(move |b| format!("{a} {b}")));
    let mut names: Vec<String> = pairs.collect();
    names.shuffle(&mut rng);
    let mut drawn = BTreeSet::new();
    let (mut tokens, mut facts, end) = (Vec::new(), Vec::new(), tokenizer.encode(".\n")?);
    let (mut asked, most) = (0, length);
    for name in names {
        let answer = rng.random_range(10_000..100_000u32);
        if !drawn.insert(answer) {
            continue;
        }
        let question = tokenizer.encode(&format!("The number of {name} is "))?;
        let answer = tokenizer.encode(&answer.to_string())?;
        let own = question.len() + answer.len() + end.len();
        // Each is told once and asked once.
        if tokens.len() + asked + 2 * own > most {
            break;
        }
        facts.push((tokens.len() + question.len(), question.clone(), answer.clone()));
        [&question, &answer, &end].into_iter().for_each(|part| tokens.extend(part));
        asked += own;
    }
    if facts.is_empty() {
        return Err(Error::setting("length", format!("is {length}, which holds no fact"), "use 64 or more"));
    }
    let asked_from = tokens.len();
    facts.shuffle(&mut rng);
    let mut answers = Vec::with_capacity(facts.len());
    for (told, question, answer) in facts {
        tokens.extend(question);
        answers.push(Answer { first: tokens.len(), tokens: answer.len(), distance: tokens.len() - told });
        tokens.extend(answer);
        tokens.extend(&end);
    }
    Ok(FactText { tokens, asked_from, answers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tinyonn::data::{Corpus, sorting};

    #[test]
    fn each_fact_is_told_once_and_asked_once() -> Result<()> {
        let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 257)?;
        let text = fact_text(&tokenizer, 2000, 3, 0)?;
        assert!(text.tokens.len() <= 2000 && text.answers.len() > 10);
        for answer in &text.answers {
            let at = |first: usize| &text.tokens[first..first + answer.tokens];
            assert!(answer.first >= text.asked_from && answer.first - answer.distance < text.asked_from);
            assert_eq!(at(answer.first), at(answer.first - answer.distance));
        }
        assert_ne!(text, fact_text(&tokenizer, 2000, 3, 1)?);
        assert_eq!(text, fact_text(&tokenizer, 2000, 3, 0)?);
        assert!(fact_text(&tokenizer, 8, 3, 0).is_err());
        Ok(())
    }
}
