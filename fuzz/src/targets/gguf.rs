//! A GGUF file: its header, every tensor, and the files that it comes to.

use crate::memory::{MB, bounded};
use crate::place;
use candle_core::{DType, Device};
use tinyonn::checkpoint::{GgufFile, WeightSource as _, load_model};
use tinyonn::data::TextTokenizer;

/// See above.
pub fn run(input: &[u8]) {
    let path = place::write("model.gguf", input);
    bounded(input.len(), (64 * MB, 1024), || {
        let Ok(file) = GgufFile::open(&path) else { return };
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        for name in &names {
            let _ = file.bytes(name);
            let _ = file.load(name, &Device::Cpu, Some(DType::F32));
        }
        if let Ok(Some(files)) = file.files_beside() {
            for (name, text) in files {
                if name == "tokenizer.json"
                    && let Ok(tokenizer) = TextTokenizer::from_json(text.as_bytes(), &path, Some(0))
                    && let Ok(tokens) = tokenizer.encode_with_ends("How are you? \u{1f980}\n\n  2")
                {
                    let _ = tokenizer.decode(&tokens);
                }
            }
        }
        let _ = load_model(&path, &Device::Cpu, None);
    });
}
