//! A file for `--config`, of each kind of program.

use crate::memory::{MB, bounded};
use crate::place;
use experiments::RunFlags;
use experiments::compare::CompareConfig;
use experiments::settings::{layered, over_file};
use serde_json::json;
use tinyonn::phases::{RunConfig, SparsifyConfig};

/// See above.
pub fn run(input: &[u8]) {
    let path = place::write("settings.toml", input);
    bounded(input.len(), (4 * MB, 1024), || {
        let (file, flags) = (Some(path.as_path()), json!({ "seed": 1 }));
        if let Ok(config) = layered(&RunConfig::quick(), file, &flags)
            && let Ok(variant) = tinyonn::moe::variant(&config.variant)
        {
            let _ = config.validate(variant);
        }
        if let Ok(config) = layered(&CompareConfig::quick(), file, &json!({})) {
            // As many cells as the lists in it multiply to are the asked-for ones.
            let _ = config.seeds.len();
        }
        let _ = layered(&SparsifyConfig::default(), file, &flags);
        let _ = over_file(&RunFlags::default(), file);
    });
}
