//! `config.json` of a dense or a Tiny-ONN folder: read, compared with the weights beside it, and planned with.

use std::sync::OnceLock;

use crate::memory::{MB, bounded};
use crate::{place, safetensors_bytes};
use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder, load_model, read_arch};
use tinyonn::decoder::Arch;
use tinyonn::phases::{RunConfig, Stages, plan};

/// See above.
pub fn run(input: &[u8]) {
    static WEIGHTS: OnceLock<()> = OnceLock::new();
    WEIGHTS.get_or_init(|| {
        let header = br#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[8,4],"data_offsets":[0,128]}}"#;
        place::write("model/model.safetensors", &safetensors_bytes::framed(header, &[]));
    });
    let path = place::write("model/config.json", input);
    let (folder, alone) = (place::folder().join("model"), place::write("paper/config.json", input));
    bounded(input.len(), (16 * MB, 1024), || {
        if let Ok(arch) = read_arch(&path) {
            assert_eq!(Arch::from_json(&arch.to_json(), &path).ok().as_ref(), Some(&arch));
        }
        let _ = ModelFolder::open(&folder).map(|folder| folder.arch());
        let _ = TinyOnnFolder::open(&folder);
        let _ = load_model(&folder, &candle_core::Device::Cpu, None);
        let config = RunConfig { model: Some(alone), ..RunConfig::quick() };
        let _ = plan(&config, Stages::Both);
    });
}
