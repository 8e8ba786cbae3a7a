//! A line of a requests.jsonl: one choice of one item.

use serde::Deserialize;
use serde_json::Value;

use super::task::Choice;

/// Items from here on are the package's own extras: the choices once more, without their question.
const EXTRAS: u64 = 1_000_000;

/// The fields that are read; what else stands in a line is passed over.
#[derive(Deserialize)]
pub(super) struct RequestLine {
    pub(super) doc_id: u64,
    pub(super) idx: usize,
    pub(super) label: Value,
    request_type: String,
    request: Choice,
}

impl RequestLine {
    /// What a line says, unless it is an extra; what is wrong with it.
    pub(super) fn parse(line: &str) -> Result<Option<(Self, Choice)>, String> {
        let mut read: Self = serde_json::from_str(line).map_err(|e| e.to_string())?;
        if read.request_type != "loglikelihood" {
            return Err(format!("asks for `{}`, and likelihoods are all that is scored", read.request_type));
        }
        if read.request.continuation.is_empty() {
            return Err("its continuation is empty".to_owned());
        }
        let choice = std::mem::take(&mut read.request);
        Ok((read.doc_id < EXTRAS).then_some((read, choice)))
    }
}
