//! A task of a benchmark: its `config.json`, and its items, plain or gzipped.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use crate::place;
use tinyonn::benchmark::BenchmarkTask;

const GZIP: &[u8] = &[0x1f, 0x8b];

/// See above.
pub fn run(input: &[u8]) {
    let [config, lines] = parts(input);
    place::clear("task");
    place::write("task/config.json", config);
    let packed = lines.starts_with(GZIP);
    place::write(if packed { "task/requests.jsonl.gz" } else { "task/requests.jsonl" }, lines);
    let folder = place::folder().join("task");
    // Deflate makes at most 1032 bytes of one, which may be an item's text.
    bounded(input.len(), (MB, if packed { 4096 } else { 256 }), || {
        if let Ok(task) = BenchmarkTask::read(&folder) {
            assert!(task.items.iter().all(|item| item.gold < item.choices.len()));
            let _ = task.sha256();
        }
    });
}
