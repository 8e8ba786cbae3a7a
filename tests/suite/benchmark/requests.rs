//! From text to tokens: encoded together, divided by length, cut from the left.

use std::cell::RefCell;

use rstest::rstest;
use tinyonn::benchmark::{Answer, Choice, Item, Metric, answers};
use tinyonn::decoder::{Continuation, Likelihood};

use super::{choice, task, tokenizer};
use crate::models::message;

/// What a model of `most` positions is asked of one choice, and what is said of it.
fn asked(choice: Choice, most: usize) -> tinyonn::Result<(Continuation, Answer)> {
    let seen = RefCell::new(Vec::new());
    let model = |asked: &[Continuation], _: bool| {
        seen.borrow_mut().extend_from_slice(asked);
        Ok(asked.iter().map(|_| Likelihood { log_likelihood: -1.0, greedy: Some(true) }).collect())
    };
    let task = task(Metric::GreedyMatch, vec![Item { id: 3, choices: vec![choice], gold: 0 }]);
    let answer = answers(&task, &tokenizer(), most, 1, model)?.remove(0);
    Ok((seen.into_inner().remove(0), answer))
}

#[rstest]
#[case::plain("sort 3 1 2 ->", " 1 2 3", " 1 2 3")]
// White space at a context's end belongs to what follows.
#[case::blank("sort 3 1 2 -> ", "1 2 3", " 1 2 3")]
#[case::lines("sort 3 1 2 ->\n\n", "1 2 3", "\n\n1 2 3")]
#[case::other_letters("Wörter 🦀", " Größe", " Größe")]
fn context_and_continuation_are_encoded_together(
    #[case] context: &str,
    #[case] continuation: &str,
    #[case] scored: &str,
) {
    let (found, answer) = asked(choice(context, continuation), 64).unwrap();
    let tokenizer = tokenizer();
    assert_eq!(found.tokens, tokenizer.encode(&format!("{context}{continuation}")).unwrap());
    assert_eq!(found.from, tokenizer.encode(context.trim_end()).unwrap().len());
    assert_eq!(tokenizer.decode(&found.tokens[found.from..]).unwrap(), scored);
    assert_eq!((answer.tokens, answer.cut), (vec![found.tokens.len() - found.from], 0));
    // Lengths are those of the continuation as the file has it.
    assert_eq!((answer.bytes, answer.characters), (vec![continuation.len()], vec![continuation.chars().count()]));
}

/// The tokenizer joins "sor" and "t" to fewer tokens than "sor" has: one token is scored still.
#[test]
fn one_token_at_least_is_scored() {
    let tokenizer = tokenizer();
    let joined = tokenizer.encode("sort").unwrap().len();
    assert!(tokenizer.encode("sor").unwrap().len() >= joined);
    let (found, _) = asked(choice("sor", "t"), 64).unwrap();
    assert_eq!((found.from, found.tokens.len()), if joined == 1 { (1, 2) } else { (joined - 1, joined) });
}

#[rstest]
fn nothing_before_it_is_an_end_of_text(#[values("", " ", "\n\n")] context: &str) {
    let (found, _) = asked(choice(context, "sort"), 64).unwrap();
    assert_eq!((found.tokens[0], found.from), (tokenizer().eos(), 1));
    assert_eq!(tokenizer().decode(&found.tokens[1..]).unwrap(), format!("{context}sort"));
}

#[test]
fn what_is_too_long_loses_its_beginning() {
    let long = choice("9 8 7 6 5 4 3 2 1 ->", " 1 2 3");
    let (whole, answer) = asked(long.clone(), 64).unwrap();
    let (count, scored) = (whole.tokens.len(), whole.tokens.len() - whole.from);
    assert_eq!(answer.cut, 0);
    // The last token is predicted, not read: as many positions as all others.
    assert_eq!(asked(long.clone(), count - 1).unwrap().0, whole);
    for most in scored..count - 1 {
        let (found, answer) = asked(long.clone(), most).unwrap();
        assert_eq!(found.tokens, whole.tokens[count - 1 - most..]);
        assert_eq!((found.tokens.len() - found.from, answer.cut), (scored, count - 1 - most));
    }
    let refused = message(asked(long, scored - 1));
    assert!(refused.contains("item 3 of made_up") && refused.contains("more positions"), "{refused}");
}
