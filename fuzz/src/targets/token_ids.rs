//! Files of token ids: JSON, and a safetensors file.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use crate::{place, safetensors_bytes};
use candle_core::Device;
use tinyonn::checkpoint::tokens;

/// See above.
pub fn run(input: &[u8]) {
    let json = place::write("tokens.json", input);
    let [header, data] = parts(input);
    let file = place::write("tokens.safetensors", &safetensors_bytes::framed(header, data));
    bounded(input.len(), (MB, 256), || {
        let _ = (tokens::read(&json, &Device::Cpu), tokens::read(&file, &Device::Cpu));
    });
}
