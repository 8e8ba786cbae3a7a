//! From a choice to tokens: context and continuation are encoded together, and divided by the length of the context's own encoding.

use super::Choice;
use crate::data::TextTokenizer;
use crate::decoder::Continuation;
use crate::{Error, Result};

/// The tokens of a choice for a model that reads `most` positions, and how many tokens of its context were left out, from the left, so that it fits.
///
/// White space at the end of a context belongs to what follows: a tokenizer joins it to the next word. An empty context is an end of text, behind which
/// texts begin. One token at least is scored, also where the tokenizer joins the whole continuation to the context's last word.
pub(super) fn encode(tokenizer: &TextTokenizer, choice: &Choice, most: usize) -> Result<(Continuation, usize)> {
    let context = choice.context.trim_end();
    let whole = format!("{}{}", choice.context, choice.continuation);
    let (mut tokens, mut from) = (tokenizer.encode(&whole)?, tokenizer.encode(context)?.len());
    from = from.min(tokens.len().saturating_sub(1));
    if from == 0 {
        tokens.insert(0, tokenizer.eos());
        from = 1;
    }
    // The last token is predicted, not read.
    let cut = tokens.len().saturating_sub(most + 1);
    if from <= cut || most == 0 {
        let problem =
            format!("{} tokens of a continuation are more than the {most} positions of the model", tokens.len() - from);
        return Err(Error::setting("max_position_embeddings", problem, "take a model of more positions"));
    }
    tokens.drain(..cut);
    Ok((Continuation { tokens, from: from - cut }, cut))
}
