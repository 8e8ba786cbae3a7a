//! What was given in the place of a model folder, and which folder to give instead.

use std::fs;
use std::path::{Path, PathBuf};

use super::folder::{CONFIG, SINGLE};
use crate::{Error, Result};

/// The checkpoint in the folder of a run.
const OF_A_RUN: &str = "tiny-onn";

/// Refuses what is no model folder, with the folder that was probably meant.
pub(super) fn refuse_others(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        let remedy = match hub_id(dir) {
            Some(id) => {
                format!("nothing is downloaded by this build: `hf download {id} --local-dir FOLDER`, then give FOLDER")
            }
            None => "give a folder with config.json and .safetensors files, or a GGUF file".into(),
        };
        let reason = if dir.exists() { "is not a folder" } else { "is not there" };
        return Err(Error::file(dir, reason, remedy));
    }
    if let Some(snapshot) = snapshot(dir) {
        let remedy = format!("give what was downloaded: {}", snapshot.display());
        return Err(Error::file(dir, format!("has no {CONFIG}: it is a cache of downloads"), remedy));
    }
    let inner = dir.join(OF_A_RUN);
    if inner.join(CONFIG).is_file() && !dir.join(SINGLE).exists() {
        return Err(Error::file(dir, "is the folder of a run", format!("give its checkpoint: {}", inner.display())));
    }
    if !dir.join(CONFIG).exists() {
        return Err(Error::file(dir, format!("has no {CONFIG}"), "give a Hugging Face model folder"));
    }
    Ok(())
}

/// `OWNER/NAME`, as models are called on the hub.
fn hub_id(dir: &Path) -> Option<&str> {
    let id = dir.to_str()?;
    let (owner, name) = id.split_once('/')?;
    let fit = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // A folder of that name that is there was meant as one.
    (fit(owner) && fit(name) && !Path::new(owner).exists()).then_some(id)
}

/// In a cache of the hub, of one model or of several, the snapshot that was meant, or what stands for those there are.
fn snapshot(dir: &Path) -> Option<PathBuf> {
    if dir.join(CONFIG).exists() {
        return None;
    }
    let below = |folder: &Path, begins: &str| {
        let entries = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begins));
        let mut found: Vec<PathBuf> = entries.filter(|path| path.is_dir() && named(path)).collect();
        found.sort();
        Some(found)
    };
    let one = |found: Vec<PathBuf>, any: PathBuf| if let [only] = found.as_slice() { only.clone() } else { any };
    let snapshots = dir.join("snapshots");
    if snapshots.is_dir() {
        return Some(one(below(&snapshots, "")?, snapshots.join("REVISION")));
    }
    let hub = if dir.join("hub").is_dir() { dir.join("hub") } else { dir.to_path_buf() };
    let models = below(&hub, "models--")?;
    if models.is_empty() {
        return None;
    }
    let model = one(models, hub.join("models--OWNER--NAME"));
    let snapshots = model.join("snapshots");
    Some(one(below(&snapshots, "").unwrap_or_default(), snapshots.join("REVISION")))
}
