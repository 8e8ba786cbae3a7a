//! What runs leave and later programs read: `phase1.json`, `figures.json`, `summary.json`, `compare.json` and what lies beside a page of results.

use crate::memory::{MB, bounded};
use crate::place;
use experiments::compare::CompareConfig;
use experiments::fragments::{COMPARE, Written};
use experiments::shown::Shown;
use experiments::studies::RunSummary;
use tinyonn::phases::{LeftByPhase1, RunConfig};

/// See above.
pub fn run(input: &[u8]) {
    let folder = place::folder().join("run");
    let names = ["phase1.json", "figures.json", "summary.json", "compare.json", "page.json"];
    names.iter().for_each(|name| drop(place::write(&format!("run/{name}"), input)));
    bounded(input.len(), (4 * MB, 512), || {
        if let Ok(config) = RunConfig::of_phase1(&folder) {
            let _ = LeftByPhase1::read(&folder, &config);
        }
        let _ = Shown::read(&folder);
        let _ = serde_json::from_slice::<RunSummary>(input);
        let _ = (CompareConfig::begun(&folder), CompareConfig::computed_by(&folder));
        let _ = Written::read(&folder.join("page.md"), "# A page\n", &COMPARE);
    });
}
