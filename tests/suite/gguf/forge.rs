//! GGUF files made by hand, sound or not.

use std::path::PathBuf;

use tempfile::TempDir;
use tinyonn::checkpoint::GgufFile;

use crate::models::message;

/// A value of the metadata: its type's number and its bytes.
#[derive(Debug, Clone)]
pub(super) struct Value(pub(super) u32, pub(super) Vec<u8>);

pub(super) fn u32(value: u32) -> Value {
    Value(4, value.to_le_bytes().to_vec())
}

pub(super) fn f32(value: f32) -> Value {
    Value(6, value.to_le_bytes().to_vec())
}

pub(super) fn text(value: &str) -> Value {
    Value(8, string(value))
}

pub(super) fn texts(values: &[&str]) -> Value {
    let mut bytes = [8u32.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()].concat();
    values.iter().for_each(|value| bytes.extend(string(value)));
    Value(9, bytes)
}

pub(super) fn numbers(kind: u32, values: &[[u8; 4]]) -> Value {
    let head = [kind.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()].concat();
    Value(9, [head, values.concat()].concat())
}

pub(super) fn string(value: &str) -> Vec<u8> {
    [(value.len() as u64).to_le_bytes().to_vec(), value.as_bytes().to_vec()].concat()
}

/// An entry of the list of tensors: name, sizes innermost first, type, place; and how many bytes are there.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) sizes: Vec<u64>,
    pub(super) kind: u32,
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

/// A file in parts, of which a test changes one.
#[derive(Debug, Clone)]
pub(super) struct Forge {
    pub(super) version: u32,
    pub(super) keys: Vec<(String, Value)>,
    pub(super) tensors: Vec<Tensor>,
    /// What the file claims, where it lies.
    pub(super) claimed_tensors: Option<u64>,
    pub(super) claimed_keys: Option<u64>,
}

impl Forge {
    /// A Llama of one layer: 32 wide, two heads, four tokens.
    pub(super) fn llama() -> Self {
        let mut forge =
            Self { version: 3, keys: Vec::new(), tensors: Vec::new(), claimed_tensors: None, claimed_keys: None };
        forge.set("general.architecture", text("llama"));
        for (key, value) in [
            ("context_length", 64),
            ("embedding_length", 32),
            ("block_count", 1),
            ("feed_forward_length", 64),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            forge.set(&format!("llama.{key}"), u32(value));
        }
        forge.set("llama.attention.layer_norm_rms_epsilon", f32(1e-5));
        for (name, sizes) in [
            ("token_embd.weight", vec![32, 4]),
            ("blk.0.attn_norm.weight", vec![32]),
            ("blk.0.attn_q.weight", vec![32, 32]),
            ("blk.0.attn_k.weight", vec![32, 16]),
            ("blk.0.attn_v.weight", vec![32, 16]),
            ("blk.0.attn_output.weight", vec![32, 32]),
            ("blk.0.ffn_norm.weight", vec![32]),
            ("blk.0.ffn_gate.weight", vec![32, 64]),
            ("blk.0.ffn_up.weight", vec![32, 64]),
            ("blk.0.ffn_down.weight", vec![64, 32]),
            ("output_norm.weight", vec![32]),
        ] {
            forge.add(name, &sizes);
        }
        forge
    }

    /// A Llama whose tokenizer has this model, pre-tokenizer and tokens.
    pub(super) fn with_tokens(model: &str, pre: &str, tokens: &[&str], merges: &[&str]) -> Self {
        let mut forge = Self::llama();
        forge.set("tokenizer.ggml.model", text(model));
        forge.set("tokenizer.ggml.pre", text(pre));
        forge.set("tokenizer.ggml.tokens", texts(tokens));
        forge.set("tokenizer.ggml.merges", texts(merges));
        forge
    }

    /// Puts a key, or another value in its place.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.to_owned(), value)),
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _)| name != key);
    }

    /// Appends a tensor of F32 behind the others.
    pub(super) fn add(&mut self, name: &str, sizes: &[u64]) {
        let offset = self.tensors.last().map_or(0, |last| (last.offset + last.bytes as u64).next_multiple_of(32));
        let bytes = sizes.iter().product::<u64>() as usize * 4;
        self.tensors.push(Tensor { name: name.to_owned(), sizes: sizes.to_vec(), kind: 0, offset, bytes });
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// The header, without the bytes of tensors.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.claimed_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.claimed_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, Value(kind, value)) in &self.keys {
            bytes.extend(string(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.sizes.len() as u32).to_le_bytes());
            tensor.sizes.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes
    }

    /// The whole file; tensors hold ones.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        let start = bytes.len();
        // A forged place may be anywhere: bytes are laid where the file was sound.
        let mut at = start;
        for tensor in &self.tensors {
            at = at.next_multiple_of(32);
            bytes.resize(at + tensor.bytes, 0);
            for value in bytes.get_mut(at..).unwrap().chunks_exact_mut(4) {
                value.copy_from_slice(&1f32.to_le_bytes());
            }
            at = bytes.len();
        }
        bytes
    }

    pub(super) fn open(&self) -> tinyonn::Result<GgufFile> {
        open(&self.bytes())
    }

    /// What opening it says, which must be one line that names the file and a remedy.
    pub(super) fn refused(&self) -> String {
        refusal(&self.bytes())
    }
}

pub(super) fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

pub(super) fn open(bytes: &[u8]) -> tinyonn::Result<GgufFile> {
    let (_dir, path) = written(bytes);
    GgufFile::open(path)
}

pub(super) fn refusal(bytes: &[u8]) -> String {
    let error = message(open(bytes));
    assert!(error.contains("model.gguf: ") && error.contains("; ") && !error.contains('\n'), "{error:?}");
    assert!(error.len() < 1000, "{} bytes of error", error.len());
    error
}
