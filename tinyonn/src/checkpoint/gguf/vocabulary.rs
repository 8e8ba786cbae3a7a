//! The tokens that a GGUF file lists, their types, and which of them have a task.

use std::collections::BTreeMap;

use super::fault::{Fault, damaged};
use super::metadata::Metadata;

/// Of a tokenizer that is not read.
pub(super) const OTHER_TOKENIZER: &str = "give the model as a Hugging Face folder with its tokenizer.json";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    /// Text.
    Normal,
    /// What cannot be written.
    Unknown,
    /// A mark such as the end of text.
    Control,
    /// Text that is never cut.
    UserDefined,
    /// Fills the embedding up.
    Unused,
    /// A byte that no other token writes.
    Byte,
}

impl TokenType {
    fn of(number: f64) -> Option<Self> {
        const TYPES: [(f64, TokenType); 6] = [
            (1.0, TokenType::Normal),
            (2.0, TokenType::Unknown),
            (3.0, TokenType::Control),
            (4.0, TokenType::UserDefined),
            (5.0, TokenType::Unused),
            (6.0, TokenType::Byte),
        ];
        TYPES.iter().find(|(id, _)| *id == number).map(|(_, kind)| *kind)
    }
}

/// The tokens of a file, by their ids.
#[derive(Debug)]
pub(super) struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<TokenType>,
    /// Every token but those that only fill up.
    ids: BTreeMap<&'a str, u32>,
    pub(super) tasks: Tasks,
}

/// The ids of the tokens that have a task.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks {
    pub(super) begin: Option<u32>,
    pub(super) end: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
    /// What else ends an answer: the end of a turn, of a message.
    pub(super) other_ends: Vec<u32>,
}

impl Tasks {
    fn read(metadata: &Metadata, tokens: usize) -> Result<Self, Fault> {
        let id = |task: &str| {
            let key = format!("tokenizer.ggml.{task}_token_id");
            match metadata.count(&key)? {
                Some(id) if id >= tokens => Err(damaged(format!("`{key}` is {id}, it has {tokens} tokens"))),
                id => Ok(id.map(|id| id as u32)),
            }
        };
        let other_ends = [id("eot")?, id("eom")?].into_iter().flatten().collect();
        let unknown = id("unknown")?;
        Ok(Self { begin: id("bos")?, end: id("eos")?, unknown, padding: id("padding")?, other_ends })
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        let named = [self.begin, self.end, self.unknown, self.padding];
        named.into_iter().flatten().chain(self.other_ends.iter().copied())
    }
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &Metadata, bytes: &'a [u8]) -> Result<Self, Fault> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let list = metadata.list(TOKENS)?.ok_or_else(|| damaged(format!("has no key `{TOKENS}`")))?;
        let tokens = list.texts(bytes, TOKENS)?;
        let tasks = Tasks::read(metadata, tokens.len())?;
        let mut types = vec![TokenType::Normal; tokens.len()];
        if let Some(list) = metadata.list(TYPES)? {
            if list.len() != tokens.len() {
                return Err(damaged(format!("`{TYPES}` has {} entries for {} tokens", list.len(), tokens.len())));
            }
            for (i, (place, number)) in types.iter_mut().zip(list.numbers(bytes, TYPES)?).enumerate() {
                *place = TokenType::of(number)
                    .ok_or_else(|| damaged(format!("`{TYPES}` says {number} of token {i}, which is no type")))?;
            }
        }
        for id in tasks.all() {
            if let Some(kind) = types.get_mut(id as usize).filter(|kind| **kind != TokenType::Unknown) {
                *kind = TokenType::Control;
            }
        }
        let mut ids = BTreeMap::new();
        for (id, (token, kind)) in tokens.iter().zip(&types).enumerate() {
            if *kind == TokenType::Unused {
                continue;
            }
            if token.is_empty() {
                return Err(damaged(format!("token {id} is empty")));
            }
            if let Some(other) = ids.insert(*token, id as u32) {
                return Err(damaged(format!("the tokens {other} and {id} are both {token:?}")));
            }
        }
        Ok(Self { tokens, types, ids, tasks })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn text(&self, id: u32) -> Option<&'a str> {
        self.tokens.get(id as usize).copied()
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    /// Every token but those that only fill up, by their ids.
    pub(super) fn used(&self) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
        let all = self.tokens.iter().zip(&self.types).enumerate();
        all.filter(|(_, (_, kind))| **kind != TokenType::Unused).map(|(id, (token, kind))| (id as u32, *token, *kind))
    }
}
