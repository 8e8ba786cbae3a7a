//! `model.safetensors.index.json` beside two shards, and above them a file that it must not reach.

use std::sync::OnceLock;

use crate::memory::{MB, bounded};
use crate::{place, safetensors_bytes};
use candle_core::Device;
use tinyonn::checkpoint::{ModelFolder, load_model};

const CONFIG: &[u8] = br#"{"model_type":"qwen3","vocab_size":8,"hidden_size":4,"intermediate_size":4,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":2}"#;

/// See above.
pub fn run(input: &[u8]) {
    static SHARDS: OnceLock<()> = OnceLock::new();
    SHARDS.get_or_init(|| {
        place::write("model/config.json", CONFIG);
        for (path, name) in [
            ("model/model-00001-of-00002.safetensors", "a"),
            ("model/model-00002-of-00002.safetensors", "b"),
            ("outside.safetensors", "outside"),
        ] {
            let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
            place::write(path, &safetensors_bytes::framed(header.as_bytes(), &[]));
        }
    });
    place::write("model/model.safetensors.index.json", input);
    let folder = place::folder().join("model");
    bounded(input.len(), (MB, 256), || {
        if let Ok(folder) = ModelFolder::open(&folder) {
            assert!(folder.tensors().all(|(name, _)| !name.contains("outside")));
            let _ = (folder.sha256(), folder.load(&Device::Cpu, None));
        }
        let _ = load_model(&folder, &Device::Cpu, None);
    });
}
