//! The template by which a model's conversations become one text: Jinja, as transformers reads it.
//!
//! Beside Jinja there are `raise_exception(message)`, `strftime_now(format)` in local time, the filter `tojson` of Python, the methods of Python's texts and
//! tables, `break` and `continue`, and the block `generation`, which marks what the model itself says.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::machinery::{Vm, get_compiled_template, make_string_output};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value, json};

use super::python_json::tojson;
use super::template_bounds::bound_lengths;
use super::template_budget::{ALLOWED, add_prices, allowed, check_constants, paying};
use crate::checkpoint::ModelFolder;
use crate::data::{Conversation, Conversations};
use crate::{Error, Result};

/// Where a template may stand, and the special tokens that it may name.
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const EARLIER: &str = "chat_template.json";

/// A model's template.
///
/// ```
/// use serde_json::json;
/// use tinyonn::generation::ChatTemplate;
///
/// let source = "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m['content'].strip() }}\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}";
/// let template = ChatTemplate::new(source, json!({ "bos_token": "<s>" }), "chat_template.jinja")?;
/// let messages = json!([{ "role": "user", "content": " Hello " }]);
/// assert_eq!(template.render(&messages, true)?, "<s><user> Hello\n<model>");
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Map<String, Value>,
    /// Whether it marks what the model itself says.
    marks: bool,
    /// Bytes of the template.
    length: usize,
    path: PathBuf,
}

/// The name under which an environment has it.
const NAME: &str = "chat_template";
/// Stands in a text where what the model itself says begins or ends: characters that no text has a meaning for.
const MARK: &str = "\u{10fffd}\u{f8ff}generation\u{f8ff}\u{10fffd}";
/// Its name within a template.
const MARK_NAME: &str = "_tinyonn_mark";
/// Instructions that a conversation may take: a template of a model's is text from outside, and must end.
const FUEL: u64 = 20_000_000;
const OTHER_MODEL: &str = "give a prompt without --chat, or a model whose template is sound";

impl ChatTemplate {
    /// The template `source`, with the names and texts of special tokens; `path` only names it in errors.
    ///
    /// # Errors
    /// A template that is no Jinja.
    // By value, as it is made.
    #[allow(clippy::needless_pass_by_value)]
    pub fn new(source: &str, special_tokens: Value, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        bound_lengths(&mut environment);
        add_prices(&mut environment);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_global(MARK_NAME, MARK);
        let source = with_marks(source);
        let (marks, length) = (source.contains(MARK_NAME), source.len());
        let added = check_constants(&source).and_then(|()| environment.add_template_owned(NAME, source));
        added
            .map_err(|e| Error::file(&path, format!("its chat template cannot be read: {}", told(&e)), OTHER_MODEL))?;
        let special_tokens = special_tokens.as_object().cloned().unwrap_or_default();
        Ok(Self { environment, special_tokens, marks, length, path })
    }

    /// That of a folder or GGUF file: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json` (the one called `default`, of several), or of
    /// `chat_template.json`; `None` where there is none.
    ///
    /// ```
    /// use tinyonn::checkpoint::ModelFolder;
    /// use tinyonn::generation::ChatTemplate;
    ///
    /// # let gguf = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/llama_k.gguf");
    /// let template = ChatTemplate::read(&ModelFolder::open(gguf)?)?;
    /// assert!(template.is_some());
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Files that are no JSON; a template that is no Jinja.
    pub fn read(folder: &ModelFolder) -> Result<Option<Self>> {
        let config = read_object(folder, TOKENIZER_CONFIG)?;
        let of_config = |config: &Map<String, Value>| match config.get("chat_template") {
            Some(Value::String(source)) => Some(source.clone()),
            Some(Value::Array(named)) => {
                let default = named.iter().find(|one| one["name"] == "default");
                default.and_then(|one| one["template"].as_str()).map(str::to_owned)
            }
            _ => None,
        };
        let (name, source) = match (folder.beside(TEMPLATE)?, of_config(&config)) {
            (Some(source), _) => (TEMPLATE, Some(source)),
            (None, Some(source)) => (TOKENIZER_CONFIG, Some(source)),
            (None, None) => (EARLIER, of_config(&read_object(folder, EARLIER)?)),
        };
        let Some(source) = source else { return Ok(None) };
        // As transformers reads them: the older file counts where the newer one does not list the tokens itself.
        let older =
            if config.contains_key("added_tokens_decoder") { Map::new() } else { read_object(folder, SPECIAL_TOKENS)? };
        let mut special_tokens = Map::new();
        for (key, value) in config.into_iter().chain(older) {
            let text = value.get("content").unwrap_or(&value);
            if key.ends_with("_token") && text.is_string() {
                special_tokens.insert(key, text.clone());
            }
        }
        let path = if folder.dir().is_dir() { folder.dir().join(name) } else { folder.dir().to_path_buf() };
        Self::new(&source, Value::Object(special_tokens), path).map(Some)
    }

    /// The text of `messages`, a list of tables with `role` and `content` at least; with `answer` it ends where the model's answer begins.
    ///
    /// # Errors
    /// A template that raises an exception, or that fails on these messages.
    pub fn render(&self, messages: &Value, answer: bool) -> Result<String> {
        let marked = self.render_marked(messages, answer)?;
        Ok(if self.marks { marked.replace(MARK, "") } else { marked })
    }

    /// The text of a whole conversation, and what of it the assistant says: what stands in the template's blocks `generation`, or else, of each message of
    /// the role `assistant`, by what its text is longer than that of the messages before it with the beginning of an answer. As in transformers, keys
    /// that are null are left out of messages.
    ///
    /// # Errors
    /// As of [`render`](Self::render); a template without such blocks by which the text of the first messages is not how that of all begins.
    ///
    /// ```
    /// use serde_json::json;
    /// use tinyonn::generation::ChatTemplate;
    ///
    /// let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    /// let template = ChatTemplate::new(source, json!({}), "chat_template.jinja")?;
    /// let said = template.conversation(&json!([{ "role": "user", "content": "2 + 2" }, { "role": "assistant", "content": "4" }]))?;
    /// assert_eq!((said.text.as_str(), said.answers), ("[user]2 + 2[assistant]4", vec![22..23]));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn conversation(&self, messages: &Value) -> Result<Conversation> {
        let messages = without_nulls(messages);
        let marked = self.render_marked(&Value::Array(messages.clone()), false)?;
        if self.marks {
            return Ok(of_marks(&marked));
        }
        let mut answers = Vec::new();
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| message["role"] == "assistant") {
            let [before, behind] = [(at, true), (at + 1, false)]
                .map(|(count, answer)| self.render_marked(&Value::Array(messages[..count].to_vec()), answer));
            let (before, behind) = (before?, behind?);
            if !(behind.starts_with(&before) && marked.starts_with(&behind)) {
                let problem = format!(
                    "its chat template does not say where message {} of a conversation, an answer, begins and ends: it has no \
                     block `generation`, and writes earlier messages otherwise when later ones follow",
                    at + 1
                );
                let remedy = "give conversations that end with their only answer, or mark answers in the template by {% generation %}";
                return Err(Error::file(&self.path, problem, remedy));
            }
            answers.push(before.chars().count()..behind.chars().count());
        }
        Ok(Conversation { text: marked, answers })
    }

    /// What a tokenizer writes conversations by.
    ///
    /// ```
    /// use serde_json::json;
    /// use tinyonn::generation::ChatTemplate;
    ///
    /// let template = ChatTemplate::new("{% for m in messages %}{{ m.content }};{% endfor %}", json!({}), "chat_template.jinja")?;
    /// let conversations = template.into_conversations();
    /// let said = conversations.write(&json!([{ "role": "user", "content": "2 + 2" }, { "role": "assistant", "content": "4" }]))?;
    /// assert_eq!(said.text, "2 + 2;4;");
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn into_conversations(self) -> Conversations {
        let own = Arc::new(self);
        Conversations::new(move |messages| own.conversation(messages))
    }

    /// The text, with a [`MARK`] at either end of what the template marks.
    fn render_marked(&self, messages: &Value, answer: bool) -> Result<String> {
        let mut context = self.special_tokens.clone();
        let own = json!({ "messages": messages, "add_generation_prompt": answer, "tools": null, "documents": null });
        context.extend(own.as_object().cloned().unwrap_or_default());
        let bytes = self.length + context.values().map(|value| value.to_string().len()).sum::<usize>();
        context.insert(ALLOWED.to_owned(), allowed(bytes).into());
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            let (compiled, mut text) = (get_compiled_template(&template), String::new());
            let root = minijinja::Value::from_serialize(&context);
            let instructions = paying(&compiled.instructions);
            let blocks = compiled.blocks.iter().map(|(name, block)| (*name, paying(block))).collect();
            let mut out = make_string_output(&mut text);
            Vm::new(&self.environment).eval(&instructions, root, &blocks, &mut out, compiled.initial_auto_escape)?;
            Ok(text)
        });
        rendered.map_err(|error| match raised(&error) {
            Some(message) => {
                let problem = format!("its chat template refuses the conversation: {message}");
                Error::file(&self.path, problem, "change the messages, or give a prompt without --chat")
            }
            None => Error::file(&self.path, format!("its chat template fails: {}", told(&error)), OTHER_MODEL),
        })
    }
}

/// A JSON object beside a model; empty, where there is no such file.
fn read_object(folder: &ModelFolder, name: &str) -> Result<Map<String, Value>> {
    let Some(text) = folder.beside(name)? else { return Ok(Map::new()) };
    let read = serde_json::from_str::<Map<String, Value>>(&text);
    read.map_err(|e| Error::file(folder.dir().join(name), format!("is no JSON object: {e}"), "download it again"))
}

/// What a template raised by itself.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

// By value, as minijinja calls them.
#[allow(clippy::needless_pass_by_value)]
fn raise_exception(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

#[allow(clippy::needless_pass_by_value)]
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(&format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("no form of a time: {format}"))),
    }
}

fn raised(error: &minijinja::Error) -> Option<&Raised> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(raised) = inner.downcast_ref::<Raised>() {
            return Some(raised);
        }
        source = inner.source();
    }
    None
}

fn told(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let detail =
        error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    format!("{detail}{line}")
}

/// Messages without keys that are null.
fn without_nulls(messages: &Value) -> Vec<Value> {
    let kept = |message: &Value| match message {
        Value::Object(keys) => {
            let keys = keys.iter().filter(|(_, value)| !value.is_null());
            Value::Object(keys.map(|(key, value)| (key.clone(), value.clone())).collect())
        }
        other => other.clone(),
    };
    messages.as_array().into_iter().flatten().map(kept).collect()
}

/// What stands between two marks, the first and the second, the third and the fourth and so on.
fn of_marks(marked: &str) -> Conversation {
    let (mut text, mut answers, mut length) = (String::with_capacity(marked.len()), Vec::new(), 0);
    for (at, part) in marked.split(MARK).enumerate() {
        let end = length + part.chars().count();
        if at % 2 == 1 {
            answers.push(length..end);
        }
        text.push_str(part);
        length = end;
    }
    Conversation { text, answers }
}

/// `source` with the blocks `generation` as blocks that always stand, of which a mark is the first and the last that they write. White space is left as Jinja
/// leaves it at blocks: that between a block and its mark belongs to the block.
fn with_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    // Whether a line begins with what follows.
    let (mut rest, mut begins) = (source, true);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inside = tag[2..].split("%}").next().unwrap_or_default();
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        // As it is written: `{%-`, `{%+` or `{%`.
        let [left, right] = [inside.chars().next(), inside.chars().last()];
        let (mut next, mut newline) = (2 + inside.len(), false);
        match word {
            "generation" => {
                let trim = if right == Some('-') { "-" } else { "" };
                let _ = write!(
                    out,
                    "{{%{}%}}{{{{ {MARK_NAME} {trim}}}}}",
                    opened(inside.trim_end_matches(['-', '+']), word, "if true")
                );
                next += 2;
                // The line end behind a block is the block's.
                if right != Some('-') && right != Some('+') && tag[next.min(tag.len())..].starts_with('\n') {
                    (next, newline) = (next + 1, true);
                }
            }
            "endgeneration" => {
                if left != Some('-') && left != Some('+') {
                    // White space at the beginning of its line is the block's.
                    let line = before.rfind('\n').map_or(before, |at| &before[at + 1..]);
                    if (begins || before.contains('\n')) && line.chars().all(|c| c == ' ' || c == '\t') {
                        out.truncate(out.len() - line.len());
                    }
                }
                let trim = if left == Some('-') { "-" } else { "" };
                let _ = write!(
                    out,
                    "{{{{{trim} {MARK_NAME} }}}}{{%{}",
                    opened(inside.trim_start_matches(['-', '+']), word, "endif")
                );
            }
            _ => out.push_str(&tag[..next.min(tag.len())]),
        }
        begins = newline;
        rest = &tag[next.min(tag.len())..];
    }
    out + rest
}

/// The inside of a tag with another word.
fn opened(inside: &str, word: &str, instead: &str) -> String {
    inside.replacen(word, instead, 1)
}
