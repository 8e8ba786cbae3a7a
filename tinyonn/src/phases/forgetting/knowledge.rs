//! What a pretrained model knew before it was taught, measured twice, since the text that it learnt from is not at hand: how far it is from the
//! original model on text that this one wrote itself, KL(original ‖ model) ([`divergence`](crate::train::divergence)), which is then what a run means by its old text's loss;
//! and which items of benchmarks it answers rightly ([`crate::benchmark`]), of the tasks where the original's answers carry signal.

use serde::{Deserialize, Serialize};

use crate::benchmark::{Answer, BenchmarkTask, TaskFigures, answers};
use crate::data::TextTokenizer;
use crate::decoder::{Active, CausalLm, FeedForward, Mlp, Pass};
use crate::phases::{Prepared, RunConfig};
use crate::{Error, Result};

/// Items that are asked about at once.
const TOGETHER: usize = 16;

/// What a pretrained model is asked, again and again.
pub struct OldKnowledge {
    original: CausalLm<Mlp>,
    tokenizer: TextTokenizer,
    tasks: Vec<BenchmarkTask>,
    /// The original's figures of these tasks.
    figures: Vec<TaskFigures>,
    /// Of each item of these, whether the original is right.
    right: Vec<bool>,
    every: u64,
}

impl OldKnowledge {
    /// Of the model of `prepared`: those of `tasks` are kept where its accuracy carries signal, and asked every `every` steps of a task that is taught,
    /// and behind the last.
    ///
    /// # Errors
    /// No such task; what the model reports.
    pub fn new(prepared: &Prepared, config: &RunConfig, tasks: Vec<BenchmarkTask>, every: u64) -> Result<Self> {
        let original = prepared.run(config).dense_model()?;
        let tokenizer = prepared.dense.tokenizer.clone();
        let mut all = Self { original, tokenizer, tasks: Vec::new(), figures: Vec::new(), right: Vec::new(), every };
        for task in tasks {
            let found = all.answers(&task, &all.original, &Pass::all())?;
            let figures = TaskFigures::new(&task, &found, config.seed)?;
            if figures.signal {
                all.tasks.push(task);
                all.figures.push(figures);
                all.right.extend(found.iter().map(|answer| answer.right));
            }
        }
        if all.tasks.is_empty() {
            let problem =
                "have no task of which the model's accuracy lies above its floor: it cannot be seen to forget";
            return Err(Error::setting("knowledge.benchmarks", problem, "name others, or ask more items"));
        }
        Ok(all)
    }

    pub(super) fn tokens(&self) -> Result<usize> {
        asked_tokens(&self.tasks, &self.tokenizer)
    }

    pub(super) fn original(&self) -> &CausalLm<Mlp> {
        &self.original
    }

    pub(super) fn every(&self) -> u64 {
        self.every
    }

    pub(super) fn figures(&self) -> &[TaskFigures] {
        &self.figures
    }

    /// Of each item of all tasks, whether the original is right.
    pub(super) fn right_of_original(&self) -> &[bool] {
        &self.right
    }

    /// Whether it is asked behind so many of `steps` steps: before the first and behind the last in any case.
    pub(super) fn is_due(&self, step: u64, steps: u64) -> bool {
        step == 0 || step == steps || (self.every > 0 && step.is_multiple_of(self.every))
    }

    /// Of each item of all tasks, whether `model` is right.
    pub(super) fn right<F: FeedForward>(&self, model: &CausalLm<F>, pass: &Pass) -> Result<Vec<bool>> {
        let of = |task| Ok(self.answers(task, model, pass)?.into_iter().map(|answer| answer.right));
        Ok(self.tasks.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn answers<F: FeedForward>(&self, task: &BenchmarkTask, model: &CausalLm<F>, pass: &Pass) -> Result<Vec<Answer>> {
        let most = model.config().max_position_embeddings;
        // What is routed may decide by more than the newest token, and reads each text alone.
        let cached = matches!(pass.active, Active::All);
        answers(task, &self.tokenizer, most, TOGETHER, |asked, greedy| model.likelihoods(asked, pass, greedy, cached))
    }
}

/// Tokens of a round of questions.
///
/// # Errors
/// A text that cannot be encoded.
///
/// ```
/// use tinyonn::benchmark::{BenchmarkTask, Choice, Item, Metric};
/// use tinyonn::data::{Corpus, TextTokenizer, sorting};
/// use tinyonn::phases::forgetting::asked_tokens;
///
/// let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
/// let choice = |continuation: &str| Choice { context: "sort 2 1 ->".into(), continuation: continuation.into() };
/// let item = Item { id: 0, choices: vec![choice(" 1 2"), choice(" 2 1")], gold: 0 };
/// let task = BenchmarkTask { name: "sorting".into(), metric: Metric::Sum, items: vec![item] };
/// let both = ["sort 2 1 -> 1 2", "sort 2 1 -> 2 1"].map(|text| tokenizer.encode(text).map(|tokens| tokens.len()));
/// let [first, second] = both;
/// assert_eq!(asked_tokens(&[task], &tokenizer)?, first? + second?);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn asked_tokens(tasks: &[BenchmarkTask], tokenizer: &TextTokenizer) -> Result<usize> {
    let choices = tasks.iter().flat_map(|task| &task.items).flat_map(|item| &item.choices);
    let texts: Vec<String> = choices.map(|choice| format!("{}{}", choice.context, choice.continuation)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Ok(tokenizer.encode_all(&texts)?.iter().map(Vec::len).sum())
}

/// What a run of a pretrained model leaves besides.
///
/// ```
/// use tinyonn::benchmark::BenchmarkTask;
/// use tinyonn::phases::forgetting::{Asked, KnowledgeRecord, OldKnowledge};
/// use tinyonn::phases::{Prepared, RunConfig};
///
/// /// What a pretrained model is asked every fifty steps of a task that it is taught.
/// fn asked(prepared: &Prepared, config: &RunConfig, tasks: Vec<BenchmarkTask>) -> tinyonn::Result<OldKnowledge> {
///     OldKnowledge::new(prepared, config, tasks, 50)
/// }
///
/// let first = Asked { task: 0, step: 0, right: vec![true, false] };
/// let record = KnowledgeRecord { benchmarks: vec![], asked: vec![first], old_sums_by_look: vec![] };
/// assert_eq!(record.asked[0].right.iter().filter(|right| **right).count(), 1);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnowledgeRecord {
    /// What is asked, and what the original answers.
    pub benchmarks: Vec<TaskFigures>,
    /// The answers of all items of these, in their order.
    pub asked: Vec<Asked>,
    /// Σ by document of the old text, `[look][document]`.
    pub old_sums_by_look: Vec<Vec<f64>>,
}

/// A round of questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The task that is being taught, by its place in the order, from 0.
    pub task: usize,
    /// Steps taken in it.
    pub step: u64,
    /// Of each item whether the answer was right.
    pub right: Vec<bool>,
}
