#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tinyonn_fuzz::targets::pass_file::run(input));
