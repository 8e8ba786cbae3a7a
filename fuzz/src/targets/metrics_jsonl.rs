//! A log of metrics and the TensorBoard events beside it, read, gone on with and cut back.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use crate::place;
use tinyonn::metrics::{self, MetricsLog};

/// See above.
pub fn run(input: &[u8]) {
    let [log, events] = parts(input);
    place::clear("log");
    let path = place::write("log/metrics.jsonl", log);
    place::write("log/events.out.tfevents.0000000001.metrics.tinyonn", events);
    bounded(input.len(), (MB, 256), || {
        let read = metrics::read(&path);
        if let Ok(mut log) = MetricsLog::resume(&path, "smk", 2) {
            assert!(read.is_ok());
            let _ = log.log(2, "smk", &[("loss", 0.5)]);
            let _ = log.rewind("smk", 1);
            assert!(metrics::read(&path).is_ok());
        }
    });
}
