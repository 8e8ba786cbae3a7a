//! Text, prose or JSON lines, under three names: one that says so, one that does not, and in a folder.

use crate::memory::{MB, bounded};
use crate::place;
use tinyonn::data::DataSource;

/// See above.
pub fn run(input: &[u8]) {
    let lines = place::write("text.jsonl", input);
    let plain = place::write("text.txt", input);
    let folder = place::write("folder/text", input);
    let folder = folder.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
    bounded(input.len(), (MB, 64), || {
        for path in [lines, plain, folder] {
            let _ = DataSource { name: "task".into(), path }.read();
        }
    });
}
