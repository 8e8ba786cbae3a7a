//! What of each document is scored where its first tokens are not: the same bytes, whatever a model's tokenizer makes of them.

use tinyonn::Result;
use tinyonn::data::{Task, TextTokenizer};

/// From where a document is scored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoredFrom {
    /// The bytes before it.
    pub bytes: usize,
    /// The tokens before it, of each tokenizer.
    pub tokens: Vec<usize>,
}

/// For each document of `task` the first byte at which each of `tokenizers` begins a token behind `skip` others or more; its end, where there is none.
///
/// ```
/// use experiments::scored_text::{ScoredFrom, scored_from};
/// use tinyonn::data::{Corpus, Document, Task, TextTokenizer, sorting};
///
/// let bytes = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 257)?;
/// let task = Task { name: "a".into(), documents: vec![Document::new("crab", "a🦀b")] };
/// // Two bytes are no whole character.
/// assert_eq!(scored_from(&[&bytes], &task, 2)?, [ScoredFrom { bytes: 5, tokens: vec![5] }]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// A text that cannot be encoded.
pub fn scored_from(tokenizers: &[&TextTokenizer], task: &Task, skip: usize) -> Result<Vec<ScoredFrom>> {
    if skip == 0 {
        let all = ScoredFrom { bytes: 0, tokens: vec![0; tokenizers.len()] };
        return Ok(vec![all; task.documents.len()]);
    }
    let texts: Vec<&str> = task.documents.iter().map(|document| document.text.as_str()).collect();
    let starts = tokenizers.iter().map(|tokenizer| tokenizer.token_starts(&texts)).collect::<Result<Vec<_>>>()?;
    let of_document = |(at, text): (usize, &&str)| {
        let starts: Vec<&[Option<usize>]> = starts.iter().map(|of_texts| of_texts[at].as_slice()).collect();
        first_in_common(&starts, skip).unwrap_or_else(|| ScoredFrom {
            bytes: text.len(),
            tokens: starts.iter().map(|starts| starts.len()).collect(),
        })
    };
    Ok(texts.iter().enumerate().map(of_document).collect())
}

/// The first place that is the beginning of a token in each of `starts`, of which the first `skip` do not count.
fn first_in_common(starts: &[&[Option<usize>]], skip: usize) -> Option<ScoredFrom> {
    let (first, others) = starts.split_first()?;
    // Beginnings ascend, those that are missing aside.
    let token_at = |starts: &[Option<usize>], byte: usize| {
        let before = starts.iter().take_while(|start| start.is_none_or(|start| start < byte)).count();
        (before >= skip && starts.get(before) == Some(&Some(byte))).then_some(before)
    };
    first.iter().enumerate().skip(skip).find_map(|(token, start)| {
        let bytes = (*start)?;
        let others = others.iter().map(|starts| token_at(starts, bytes)).collect::<Option<Vec<_>>>()?;
        Some(ScoredFrom { bytes, tokens: [vec![token], others].concat() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::one(vec![vec![Some(0), Some(2), Some(5)]], 1, Some((2, vec![1])))]
    #[case::within_a_character(vec![vec![Some(0), None, Some(5)]], 1, Some((5, vec![2])))]
    #[case::two(vec![vec![Some(0), Some(2), Some(5), Some(7)], vec![Some(0), Some(1), Some(3), Some(5)]], 1, Some((5, vec![2, 3])))]
    #[case::behind_both(vec![vec![Some(0), Some(2), Some(5)], vec![Some(0), Some(5)]], 2, None)]
    #[case::short(vec![vec![Some(0)]], 4, None)]
    fn scoring_begins_where_all_begin_a_token(
        #[case] starts: Vec<Vec<Option<usize>>>,
        #[case] skip: usize,
        #[case] expected: Option<(usize, Vec<usize>)>,
    ) {
        let starts: Vec<&[Option<usize>]> = starts.iter().map(Vec::as_slice).collect();
        let expected = expected.map(|(bytes, tokens)| ScoredFrom { bytes, tokens });
        assert_eq!(first_in_common(&starts, skip), expected);
    }
}
