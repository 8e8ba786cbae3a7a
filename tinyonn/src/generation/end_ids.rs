//! The tokens that end an answer.

use serde_json::Value;

use crate::checkpoint::ModelFolder;
use crate::data::TextTokenizer;
use crate::{Error, Result};

/// The ids that end a text, as transformers finds them: `eos_token_id` of generation_config.json, or else of config.json, or else the tokenizer's end of text.
///
/// # Errors
/// A generation_config.json that is no JSON.
pub fn end_ids(folder: &ModelFolder, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    const FILE: &str = "generation_config.json";
    let stated = match folder.beside(FILE)? {
        Some(text) => {
            let broken = |e| Error::file(folder.dir().join(FILE), format!("is not JSON: {e}"), "download it again");
            ids(serde_json::from_str::<Value>(&text).map_err(broken)?.get("eos_token_id"))
        }
        None => Vec::new(),
    };
    let stated = if stated.is_empty() { ids(folder.config().get("eos_token_id")) } else { stated };
    Ok(if stated.is_empty() { vec![tokenizer.eos()] } else { stated })
}

fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        other => other.and_then(id).into_iter().collect(),
    }
}
