//! What a pretrained model wrote itself: the text that it is held to while it is taught, since that which it learnt from is not at hand.
//!
//! It goes on, at temperature 1, behind the first tokens of documents of the tasks that a study names. What it wrote lies in the study's folder, JSON lines a task,
//! and is written once.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tinyonn::checkpoint::{ModelFolder, load_model};
use tinyonn::data::{Document, Task};
use tinyonn::decoder::{Generation, Pass, Prompt, Sampling};
use tinyonn::files::{self, StagedFolder};
use tinyonn::generation::end_ids;
use tinyonn::phases::text;
use tinyonn::{Error, Result};

use super::StudyConfig;

/// The folder in a study's.
const OWN_TEXT: &str = "own-text";
/// Characters of a document that are encoded for a token that is given, at most.
const CHARACTERS: usize = 32;

/// The text that the model of `config` wrote, as sources of a run: what is there, or else it is written. None where the study has a text of others.
///
/// # Errors
/// No model; tasks with too few documents; what the model reports.
pub fn own_text(config: &StudyConfig) -> Result<Option<Vec<String>>> {
    if config.knowledge.is_none() {
        return Ok(None);
    }
    let dir = config.out.join(OWN_TEXT);
    if !dir.exists() {
        write(config, &dir)?;
    }
    let read = |e| Error::io(&dir, e);
    let entries = std::fs::read_dir(&dir).map_err(read)?;
    let mut paths = entries.map(|entry| Ok(entry.map_err(read)?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    let source = |path: &PathBuf| Some(format!("{}={}", path.file_stem()?.to_str()?, path.to_str()?));
    let sources: Option<Vec<String>> = paths.iter().map(source).collect();
    let strange = || Error::file(&dir, "has a name that is no text", "name another folder with --out");
    sources.ok_or_else(strange).map(Some)
}

fn write(config: &StudyConfig, dir: &Path) -> Result<()> {
    let (Some(model), Some(knowledge)) = (&config.run.model, &config.knowledge) else {
        return Err(Error::setting("--model", "is not given", "name the pretrained model that is to be taught"));
    };
    let staged = StagedFolder::new(dir)?;
    let device = config.run.device.open()?;
    let corpus = text::corpus(&config.run.data, config.screen_seed)?;
    let tasks = corpus.tasks.iter().map(|task| (&task.name, beginnings(task, knowledge.documents))).collect::<Vec<_>>();
    let (folder, lm) = (ModelFolder::open(model)?, load_model(model, &device, Some(config.run.dtype.dtype()))?);
    let tokenizer = text::tokenizer(&folder)?;
    let mut stop_ids = end_ids(&folder, &tokenizer)?;
    stop_ids.push(tokenizer.eos());
    let sampling = Sampling::at(1.0);
    let how = Generation { tokens: knowledge.written, stop_ids, sampling };
    let given = |document: &&Document| {
        let tokens = if document.conversation {
            // What the model's template makes of it, not the JSON.
            tokenizer.encode_conversation(&messages(document)?)?.tokens
        } else {
            let text: String = document.text.chars().take(CHARACTERS * knowledge.given).collect();
            tokenizer.encode(&text)?
        };
        Ok(tokens.get(..knowledge.given).map(<[u32]>::to_vec))
    };
    let mut prompts = Vec::new();
    let mut counts = Vec::with_capacity(tasks.len());
    for (at, (name, beginnings)) in tasks.iter().enumerate() {
        let found = beginnings.iter().map(given).collect::<Result<Vec<_>>>()?;
        let seed = config.screen_seed.wrapping_add(at as u64);
        let own = found.into_iter().flatten().enumerate().map(|(number, tokens)| Prompt::new(tokens, seed, number));
        let before = prompts.len();
        prompts.extend(own);
        let count = prompts.len() - before;
        if count < 2 {
            let problem = format!("`{name}` has {count} documents of {} tokens or more", knowledge.given);
            return Err(Error::setting(
                "--data",
                problem,
                "give tasks of more documents: the model goes on behind them",
            ));
        }
        counts.push(count);
    }
    // All tasks at once: a step of many texts takes hardly longer than one of few.
    let written = lm.generate(prompts.clone(), &how, &Pass::all(), &mut |_| Ok(()))?;
    let mut texts = prompts.iter().zip(&written);
    for ((name, _), count) in tasks.iter().zip(counts) {
        let mut lines = String::new();
        for (prompt, written) in texts.by_ref().take(count) {
            let text = tokenizer.decode_plain(&[prompt.tokens.as_slice(), written].concat())?;
            lines += &json!({ "text": text }).to_string();
            lines.push('\n');
        }
        files::write(staged.path().join(format!("{name}.jsonl")), lines)?;
    }
    staged.publish()
}

/// Some documents of a task, evenly spread.
fn beginnings(task: &Task, count: usize) -> Vec<&Document> {
    let every = (task.documents.len() / count.max(1)).max(1);
    task.documents.iter().step_by(every).take(count).collect()
}

/// The messages of a conversation.
fn messages(document: &Document) -> Result<Value> {
    serde_json::from_str(&document.text).map_err(|e| {
        let name = format!("document `{}`", document.id);
        Error::setting(name, e.to_string(), "write one JSON object a line, with a list `messages`")
    })
}
