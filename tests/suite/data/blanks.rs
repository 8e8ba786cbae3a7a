//! Documents of very many blanks: the ids are right, or the document is refused by name.

use rstest::rstest;
use tinyonn::data::{Corpus, Counted, Document, Task, TextTokenizer, TokenFile, TokenSet, arithmetic, sorting};

fn tokenizer() -> TextTokenizer {
    TextTokenizer::train(&Corpus { tasks: vec![arithmetic(0, 20_000), sorting(0, 20_000)] }, 300).unwrap()
}

/// The words behind the blanks are the words they are behind a few.
#[rstest]
fn what_is_encoded_is_encoded_right(
    #[values(10, 90_000, 400_000, 1_500_000)] blanks: usize,
    #[values(" ", "\t", "\u{2003}")] blank: &str,
) {
    let tokenizer = tokenizer();
    let behind = " sort 3 1 2 -> 1 2 3\n";
    let expected = tokenizer.encode(behind).unwrap();
    match tokenizer.encode(&format!("before{}{behind}", blank.repeat(blanks))) {
        Ok(tokens) => assert!(tokens.ends_with(&expected), "{blanks} blanks"),
        Err(error) => {
            let said = error.to_string();
            assert!(
                blanks > 100_000 && said.contains(&format!("behind {} blanks in a row at byte 6", blanks + 1)),
                "{said}"
            );
        }
    }
}

/// At the end of a text nothing is lost, nor in one word however long.
#[rstest]
#[case("x".repeat(3_000_000))]
#[case(format!("x{}", " ".repeat(3_000_000)))]
#[case("\n".repeat(3_000_000) + "x")]
fn long_words_and_blanks_at_the_end_are_encoded(#[case] text: String) {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
}

#[test]
fn the_document_is_named_wherever_it_is_read() {
    let document = |id: &str, text: String| Document::new(id, text);
    let documents =
        vec![document("fine", "a b".into()), document("page.txt#3", format!("a{}b c", " ".repeat(3_000_000)))];
    let corpus = Corpus { tasks: vec![Task { name: "web".into(), documents }] };
    let folder = tempfile::tempdir().unwrap();
    let said = [
        TextTokenizer::train(&corpus, 300).unwrap_err().to_string(),
        TokenSet::encode(&corpus, &tokenizer()).unwrap_err().to_string(),
        TokenFile::write(&Counted::new(&corpus).unwrap(), &tokenizer(), usize::MAX, folder.path())
            .unwrap_err()
            .to_string(),
    ];
    for said in said {
        assert!(said.contains("document `web/page.txt#3`: behind 3000000 blanks in a row at byte 1"), "{said}");
        assert!(said.contains("shorten them"), "{said}");
    }
}
