//! A `tokenizer.json`, and a text that it cuts.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use tinyonn::data::TextTokenizer;

/// See above.
pub fn run(input: &[u8]) {
    let [json, text] = parts(input);
    let text = String::from_utf8_lossy(text);
    bounded(input.len(), (64 * MB, 2048), || {
        let Ok(tokenizer) = TextTokenizer::from_json(json, "tokenizer.json", Some(0)) else { return };
        let _ = tokenizer.vocab_size();
        if let Ok(tokens) = tokenizer.encode(&text) {
            let _ = (tokenizer.decode(&tokens), tokenizer.decode_plain(&tokens));
        }
        let _ = tokenizer.encode_with_ends(&text);
        let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    });
}
