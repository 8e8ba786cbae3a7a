//! A chat template, and the conversation that it is given.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use serde_json::json;
use tinyonn::generation::ChatTemplate;

/// See above.
pub fn run(input: &[u8]) {
    let [source, messages] = parts(input);
    let Ok(source) = std::str::from_utf8(source) else { return };
    let talk = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": " Hello " }]);
    let messages = serde_json::from_slice(messages).unwrap_or(talk);
    bounded(input.len(), (192 * MB, 8192), || {
        let Ok(template) = ChatTemplate::new(source, json!({ "bos_token": "<s>" }), "chat_template.jinja") else {
            return;
        };
        let _ = (template.render(&messages, true), template.render(&messages, false));
    });
}
