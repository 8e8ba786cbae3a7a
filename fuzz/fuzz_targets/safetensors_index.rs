#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tinyonn_fuzz::targets::safetensors_index::run(input));
