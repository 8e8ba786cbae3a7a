//! A safetensors file, byte for byte: its header, and every tensor that it describes.

use crate::memory::{MB, bounded};
use crate::place;
use candle_core::Device;
use tinyonn::checkpoint::MappedSafetensors;

/// See above.
pub fn run(input: &[u8]) {
    let path = place::write("model.safetensors", input);
    bounded(input.len(), (MB, 256), || {
        let Ok(file) = MappedSafetensors::open(&path) else { return };
        for name in file.names() {
            let size = file.bytes(name).map_or(0, <[u8]>::len);
            let mut read = 0;
            let read = file.pieces(name, &mut |piece| {
                read += piece.len();
                assert!(read <= size);
                Ok(())
            });
            assert!(read.is_ok());
            if let Ok(tensor) = file.load(name, &Device::Cpu) {
                assert_eq!(tensor.elem_count() * tensor.dtype().size_in_bytes(), size);
            }
        }
    });
}
