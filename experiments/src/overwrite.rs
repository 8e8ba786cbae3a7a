//! What `--overwrite` may replace.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tinyonn::decoder::Family;
use tinyonn::files::{self, StagedFolder};
use tinyonn::{Error, Result};

/// Whether the folder `out` may be replaced; one that a run had put aside when it was killed takes its name again first.
///
/// # Errors
/// It is used, and `allowed` is false; it is neither a run's folder nor a checkpoint; one of `inputs` lies in it.
pub fn replaces(out: &Path, allowed: bool, inputs: &[&Path]) -> Result<bool> {
    StagedFolder::restore(out)?;
    if !files::is_used(out)? {
        return Ok(allowed);
    }
    if !allowed {
        let remedy = "name another folder with --out, or replace this one with --overwrite";
        return Err(Error::file(out, "exists and is not empty", remedy));
    }
    if !is_ours(out) {
        let problem = "is not replaced: it has no config.json of a run or of a checkpoint";
        return Err(Error::file(out, problem, "name another folder with --out, or remove this one yourself"));
    }
    // Links and `..` must not hide that a file is inside.
    let inside =
        |input: &&&Path| matches!((input.canonicalize(), out.canonicalize()), (Ok(a), Ok(b)) if a.starts_with(&b));
    if let Some(input) = inputs.iter().find(inside) {
        let problem = format!("is not replaced: {}, which is read, lies in it", input.display());
        return Err(Error::file(out, problem, "name another folder with --out"));
    }
    Ok(true)
}

/// Refuses the file `path` if it is there, unless it may be replaced.
///
/// # Errors
/// It exists, and `allowed` is false.
pub fn refuse_file(path: &Path, allowed: bool) -> Result<()> {
    if path.exists() && !allowed {
        return Err(Error::file(path, "exists", "name another file, or replace this one with --overwrite"));
    }
    Ok(())
}

/// Whether `config.json` says that one of the programs wrote the folder, or that it is a model of a kind that they write.
fn is_ours(dir: &Path) -> bool {
    let Some(config) = fs::read(dir.join("config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(files::without_mark(&text)).ok())
    else {
        return false;
    };
    let run = config["program"].is_string() && config["versions"]["tinyonn"].is_string();
    let model = config["model_type"].as_str().unwrap_or_default();
    run || matches!(model, "tinyonn" | "qwen3_moe" | "mixtral") || Family::of(model).is_some()
}
