//! Text as its tokens come, and what ends it.

use std::path::Path;

use rand::Rng as _;
use rstest::rstest;
use tinyonn::checkpoint::ModelFolder;
use tinyonn::data::{Corpus, TextTokenizer, sorting};
use tinyonn::generation::{AnswerStream, TextStream};
use tinyonn::phases::text;
use tinyonn::random;

use crate::models::message;

const TEXT: &str = "sort 3 1 2 -> 1 2 3\n\"é🦀\u{1F468}\u{200D}\u{1F469}\" καλημέρα 日本語  \t ﷽ e\u{301} end";

fn tokenizers() -> Vec<(&'static str, TextTokenizer)> {
    let own = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300).unwrap();
    let of_file = |name: &'static str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf").join(name);
        (name, text::tokenizer(&ModelFolder::open(path).unwrap()).unwrap().for_prompts())
    };
    // Byte-level; and SentencePiece's, whose bytes fall back.
    vec![("own", own), of_file("llama_k.gguf"), of_file("llama_blocks.gguf")]
}

fn pieces(tokenizer: &TextTokenizer, tokens: &[u32]) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer);
    let mut pieces: Vec<String> = tokens.iter().map(|token| stream.push(*token).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn pieces_are_the_text_and_whole_characters() {
    for (name, tokenizer) in tokenizers() {
        let tokens = tokenizer.encode(TEXT).unwrap();
        let pieces = pieces(&tokenizer, &tokens);
        assert_eq!(pieces.concat(), tokenizer.decode_plain(&tokens).unwrap(), "{name}");
        assert!(pieces.concat().contains("日本語") && !pieces.concat().contains('\u{fffd}'), "{name}: {pieces:?}");
        // It comes as it is written, not at the end.
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 20, "{name}: {pieces:?}");
    }
}

/// What models write is not always text: bytes that are no character stand as U+FFFD, all else in its place.
#[test]
fn pieces_of_any_tokens_are_their_text() {
    for (name, tokenizer) in tokenizers().into_iter().take(2) {
        let mut rng = random::stream(3, "tests/any tokens");
        for length in [1, 2, 5, 40, 200] {
            let tokens: Vec<u32> = (0..length).map(|_| rng.random_range(0..tokenizer.vocab_size() as u32)).collect();
            let found = pieces(&tokenizer, &tokens).concat();
            assert_eq!(found, tokenizer.decode_plain(&tokens).unwrap(), "{name}: {tokens:?}");
        }
    }
}

/// Bytes that are no characters stop no stream: what follows them is given as it comes, whatever a decoder makes of the bytes.
#[test]
fn a_stream_goes_on_behind_bytes_that_are_none() {
    for (name, tokenizer) in tokenizers() {
        let crab = tokenizer.encode("🦀").unwrap();
        let end = tokenizer.encode(&" the end".repeat(20)).unwrap();
        let stray = *crab.last().unwrap();
        for strays in [1, 5, 40] {
            let strays = std::iter::repeat_n(stray, strays);
            let tokens: Vec<u32> = crab.iter().copied().chain(strays).chain(end.clone()).collect();
            let found = pieces(&tokenizer, &tokens);
            let (last, before) = found.split_last().unwrap();
            assert!(found.concat().ends_with("the end the end the end"), "{name}: {found:?}");
            // At the end no more is left than may wait.
            assert!(before.concat().contains("the end") && last.len() < 80, "{name}: {found:?}");
        }
    }
}

/// Behind a prompt, a text goes on as in one piece: with the blank that a decoder takes away from a text's beginning.
#[test]
fn a_stream_goes_on_behind_a_prompt() {
    for (name, tokenizer) in tokenizers() {
        let tokens = tokenizer.encode("The cat sat").unwrap();
        for cut in 1..tokens.len() {
            let mut stream = TextStream::behind(&tokenizer, &tokens[..cut]).unwrap();
            let mut text = tokenizer.decode_plain(&tokens[..cut]).unwrap();
            tokens[cut..].iter().for_each(|token| text += &stream.push(*token).unwrap());
            text += &stream.finish().unwrap();
            assert_eq!(text, "The cat sat", "{name}, {cut}");
        }
    }
}

/// Wherever tokens cut it, the answer is the text before the first stop, and no part of a stop is ever given away.
#[rstest]
#[case::none(&[], None)]
#[case::not_there(&["nowhere"], None)]
#[case::one(&["->"], Some("sort 3 1 2 "))]
#[case::the_first_of_several(&["end", "2 3", "3\n"], Some("sort 3 1 2 -> 1 "))]
#[case::of_characters_in_pieces(&["🦀\u{1F468}"], Some("sort 3 1 2 -> 1 2 3\n\"é"))]
#[case::begun_twice(&[" 1 2 3"], Some("sort 3 1 2 ->"))]
#[case::at_once(&["s"], Some(""))]
#[case::the_first_that_is_whole(&["1 2 3\n\"", "2 3", "1 2 3"], Some("sort 3 1 2 -> "))]
#[case::not_the_first_that_began(&["1 2 3\n\"", "2 3"], Some("sort 3 1 2 -> 1 "))]
fn an_answer_ends_before_a_stop(#[case] stops: &[&str], #[case] expected: Option<&str>) {
    for (name, tokenizer) in tokenizers() {
        let tokens = tokenizer.encode(TEXT).unwrap();
        let whole = tokenizer.decode_plain(&tokens).unwrap();
        let mut answer = AnswerStream::new(&tokenizer, &[], &[], stops).unwrap();
        let mut text = String::new();
        for token in &tokens {
            text += &answer.push(*token).unwrap();
            assert!(expected.unwrap_or(&whole).starts_with(&text), "{name}: {text}");
        }
        assert_eq!(answer.has_ended(), expected.is_some(), "{name}");
        text += &answer.finish().unwrap();
        assert_eq!(text, expected.unwrap_or(&whole), "{name}");
        assert_eq!(answer.push(tokens[0]).unwrap(), "");
    }
}

#[test]
fn an_answer_ends_with_an_id_and_gives_what_it_held() {
    let (_, tokenizer) = tokenizers().remove(0);
    let mut answer = AnswerStream::new(&tokenizer, &[], &[tokenizer.eos()], &["sorted"]).unwrap();
    let tokens = tokenizer.encode("sort").unwrap();
    let mut text: String = tokens.iter().map(|token| answer.push(*token).unwrap()).collect();
    assert_eq!(text, "");
    text += &answer.push(tokenizer.eos()).unwrap();
    assert!(answer.has_ended() && text == "sort");
    assert!(message(AnswerStream::new(&tokenizer, &[], &[], &["a", ""])).starts_with("`stop`"));
}

/// However much comes at once, as one token may.
#[test]
fn of_several_stops_the_first_that_is_whole_ends_an_answer() {
    let corpus = Corpus { tasks: vec![sorting(0, 20_000)] };
    let tokenizer = TextTokenizer::train(&corpus, 300).unwrap();
    // A word of several letters that this tokenizer has learnt.
    let word = (256..300).filter_map(|id| tokenizer.decode(&[id]).ok()).find(|word| word.chars().count() > 2).unwrap();
    let mut ends = word.char_indices().map(|(at, _)| at).skip(1);
    let (second, third) = (ends.next().unwrap(), ends.next().unwrap());
    let mut answer = AnswerStream::new(&tokenizer, &[], &[], &[&word, &word[second..third]]).unwrap();
    let id = tokenizer.encode(&word).unwrap();
    assert_eq!(id.len(), 1, "{word}");
    assert_eq!(answer.push(id[0]).unwrap(), word[..second]);
}

#[test]
fn the_name_of_a_special_token_ends_an_answer_as_the_token() {
    let (_, tokenizer) = tokenizers().remove(0);
    let name = tokenizer.decode(&[tokenizer.eos()]).unwrap();
    let mut answer = AnswerStream::new(&tokenizer, &[], &[], &[name]).unwrap();
    assert_eq!(answer.push(tokenizer.eos()).unwrap(), "");
    assert!(answer.has_ended());
}
