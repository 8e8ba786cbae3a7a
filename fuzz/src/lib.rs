//! What the targets have in common: a bound on memory, a folder to write into, and inputs of several parts.

pub mod memory;
pub mod parts;
pub mod place;
pub mod safetensors_bytes;
pub mod targets;
