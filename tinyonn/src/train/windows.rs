//! The loss of a model over whole documents, each read in windows that overlap.
//!
//! A document stands behind an end of text, so that its first token is predicted as well. Window w reads the `length` tokens from w · `stride` on and scores those
//! that no window before it has scored: the first all of its tokens, each other one its last `stride` (fewer at the end of a document). So every token is scored once,
//! given `length − stride` tokens before it or more, or all there are; Σ −log₂ p is what the model needs to write the document down.
//!
//! Windows that are equally long are read together: none is padded.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::DocumentLoss;
use crate::checkpoint::LoadedModel;
use crate::data::NO_TARGET;
use crate::decoder::{Continuation, Pass};
use crate::metrics::{Progress, check_loss};
use crate::moe::LoadMeter;
use crate::ops::host;
use crate::{Error, Result};

/// How documents are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, at most.
    pub length: usize,
    /// Tokens from the beginning of a window to that of the next.
    pub stride: usize,
    /// Windows that are read together, at most.
    pub batch: usize,
    /// The first tokens of every document, which are read and not scored (what a shared decision reads runs all active, DESIGN §1).
    pub skip: usize,
}

/// A window of a document: what it reads of the document behind its end of text, and which of these positions it scores.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    document: usize,
    read: Range<usize>,
    scored: Range<usize>,
}

impl Windows {
    /// Refuses windows that leave gaps, or that are longer than the `most` positions that a model was made for.
    ///
    /// ```
    /// use tinyonn::train::Windows;
    ///
    /// let windows = Windows { length: 8, stride: 4, batch: 2, skip: 0 };
    /// assert!(windows.validate(4096).is_ok());
    /// assert!(Windows { stride: 9, ..windows }.validate(4096).is_err()); // it would leave gaps
    /// ```
    ///
    /// # Errors
    /// Names the number.
    pub fn validate(&self, most: usize) -> Result<()> {
        let Self { length, stride, batch, skip } = *self;
        if length == 0 || length > most {
            let problem = format!("windows of {length} tokens are not of 1 to the {most} that the model was made for");
            return Err(Error::setting("length", problem, format!("give 1 to {most}")));
        }
        if stride == 0 || stride > length || (skip > 0 && stride + skip > length) {
            let behind = if skip > 0 { format!(", of which the first {skip} are read alone") } else { String::new() };
            let problem = format!("{stride} does not lead from window to window of {length} tokens{behind}");
            let most = length.saturating_sub(skip);
            return Err(Error::setting("stride", problem, format!("give 1 to {most}, or longer windows")));
        }
        if batch == 0 {
            return Err(Error::setting("batch", "0 reads nothing", "give 1 or more"));
        }
        Ok(())
    }

    /// Those of a document of `tokens` tokens that is scored from token `from` on.
    fn of(self, document: usize, tokens: usize, from: usize) -> impl Iterator<Item = Window> {
        let from = from.max(self.skip);
        let count = 1 + tokens.saturating_sub(self.length).div_ceil(self.stride.max(1));
        (0..count).filter_map(move |window| {
            let first = window * self.stride;
            let end = (first + self.length).min(tokens);
            let known = if window == 0 { from } else { (first - self.stride + self.length).max(from) };
            (known < end).then_some(Window { document, read: first..end, scored: known..end })
        })
    }
}

/// The loss of each of `documents` in nats, its tokens given without an end of text, of which `end` is put before each, and scored from the token on that it names;
/// and how much work the experts of a routed pass that was asked for its load were given. A document without a token to score has none.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::{LoadedModel, ParamStore};
/// use tinyonn::decoder::{Arch, CausalLm, Continuation, Pass};
/// use tinyonn::train::{Windows, document_losses};
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = LoadedModel::Dense(CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?);
///
/// let windows = Windows { length: 8, stride: 4, batch: 2, skip: 0 };
/// let documents = [(vec![1; 20], 0), (vec![2, 3], 1)].map(|(tokens, from)| Continuation { tokens, from });
/// let (losses, _) = document_losses(&model, &documents, 0, windows, &Pass::all(), &Device::Cpu)?;
/// assert_eq!([losses[0].tokens, losses[1].tokens], [20.0, 1.0]);
/// assert!((losses[0].sum / 20.0 - 32f64.ln()).abs() < 0.5); // it knows nothing yet
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// Windows that leave gaps or are too long; a loss that is no finite number; ids beyond the vocabulary; what the device reports.
pub fn document_losses(
    model: &LoadedModel,
    documents: &[Continuation],
    end: u32,
    windows: Windows,
    pass: &Pass,
    device: &Device,
) -> Result<(Vec<DocumentLoss>, LoadMeter)> {
    windows.validate(model.config().max_position_embeddings)?;
    let mut losses = vec![DocumentLoss::default(); documents.len()];
    let mut load = LoadMeter::new(model.config().num_hidden_layers, model.experts());
    let of_document = |(at, one): (usize, &Continuation)| windows.of(at, one.tokens.len(), one.from);
    let mut all: Vec<Window> = documents.iter().enumerate().flat_map(of_document).collect();
    // The longest first: what memory they take is known at once.
    all.sort_by_key(|window| (std::cmp::Reverse(window.read.len()), window.document, window.read.start));
    let progress = Progress::new(all.len() as u64, "windows of text");
    for equal in all.chunk_by(|a, b| a.read.len() == b.read.len()) {
        for batch in equal.chunks(windows.batch) {
            let length = batch[0].read.len();
            let (mut inputs, mut targets) = (Vec::new(), Vec::new());
            for Window { document, read, scored } in batch {
                let tokens = &documents[*document].tokens;
                // Position 0 is the end of text; what stands at position p + 1 is token p.
                inputs.extend(read.clone().map(|at| if at == 0 { end } else { tokens[at - 1] }));
                targets.extend(read.clone().map(|at| if scored.contains(&at) { tokens[at] } else { NO_TARGET }));
            }
            let scored: Vec<bool> = targets.iter().map(|target| *target != NO_TARGET).collect();
            let tensor = |ids| Tensor::from_vec(ids, (batch.len(), length), device);
            let (found, traces) = model.losses(&tensor(inputs)?, &tensor(targets)?, pass)?;
            let values = host::read(&[vec![&found], LoadMeter::wanted(&traces)].concat())?;
            let Some((found, loads)) = values.split_first() else { continue };
            load.add_scored(&traces, loads, |at| scored[at]);
            for (row, Window { document, scored, .. }) in batch.iter().enumerate() {
                // What is not scored has a loss of 0.
                let sum: f64 = found[row * length..(row + 1) * length].iter().sum();
                check_loss("windows", &format!("document {document}"), sum)?;
                losses[*document].sum += sum;
                losses[*document].tokens += scored.len() as f64;
            }
            progress.update(progress.position() + batch.len() as u64, &[], (batch.len() * length) as u64);
        }
    }
    progress.finish();
    Ok((losses, load))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Every token but those that are skipped is scored once, with context as promised, and no window is longer than asked.
    #[rstest]
    fn every_token_is_scored_once(
        #[values((8, 8, 0), (8, 3, 0), (8, 1, 0), (1, 1, 0), (8, 3, 5), (8, 4, 2))] of: (usize, usize, usize),
        #[values(0, 4, 17)] from: usize,
    ) {
        let (length, stride, skip) = of;
        let windows = Windows { length, stride, batch: 1, skip };
        assert!(windows.validate(8).is_ok());
        for tokens in 0..40 {
            let mut scored = vec![0; tokens];
            for Window { read, scored: own, .. } in windows.of(0, tokens, from) {
                assert!(read.len() <= length && read.start % stride == 0 && read.end <= tokens);
                assert!(own.end == read.end && own.start >= read.start);
                assert!(read.start == 0 || own.start - read.start >= length - stride, "{read:?} {own:?}");
                own.for_each(|at| scored[at] += 1);
            }
            assert!(
                scored.iter().enumerate().all(|(at, count)| *count == usize::from(at >= skip.max(from))),
                "{tokens}: {scored:?}"
            );
        }
    }

    #[rstest]
    #[case((0, 1, 0), "length")]
    #[case((9, 1, 0), "length")]
    #[case((8, 0, 0), "stride")]
    #[case((8, 9, 0), "stride")]
    #[case((8, 8, 1), "stride")]
    fn windows_with_gaps_are_refused(#[case] (length, stride, skip): (usize, usize, usize), #[case] name: &str) {
        let error = Windows { length, stride, batch: 1, skip }.validate(8).err().map(|e| e.to_string());
        assert!(error.is_some_and(|error| error.starts_with(&format!("`{name}`"))));
    }
}
