//! A model folder: its `config.json`, the header of its weights and their bytes. What loads must run.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use crate::{place, safetensors_bytes};
use candle_core::{Device, Tensor};
use tinyonn::checkpoint::{ModelFolder, TinyOnnFolder, load_model};
use tinyonn::decoder::Pass;

/// See above.
pub fn run(input: &[u8]) {
    let [config, header, data] = parts(input);
    place::write("model/config.json", config);
    place::write("model/model.safetensors", &safetensors_bytes::framed(header, data));
    let folder = place::folder().join("model");
    bounded(input.len(), (32 * MB, 4096), || {
        if let Ok(folder) = ModelFolder::open(&folder) {
            let _ = folder.not_finite();
        }
        let _ = TinyOnnFolder::open(&folder);
        if let Ok(model) = load_model(&folder, &Device::Cpu, None) {
            let ids = Tensor::zeros((1, 5), candle_core::DType::U32, &Device::Cpu);
            for pass in [Pass::all(), Pass::routed()] {
                let _ = ids.as_ref().map(|ids| model.logits(ids, &pass));
            }
        }
    });
}
