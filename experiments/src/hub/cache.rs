//! Where a model's files lie in the cache, as Python's tools lay them: `models--OWNER--NAME/{blobs,refs,snapshots}`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Result as IoResult;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tinyonn::{Error, Result};

use super::name::is_below;
use super::{Hub, HubName};

pub(super) const CONFIG: &str = "config.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A model's part of the cache.
pub(super) struct ModelCache {
    dir: PathBuf,
}

impl ModelCache {
    pub(super) fn of(hub: &Hub, name: &HubName) -> Self {
        Self { dir: hub.cache.join(format!("models--{}", name.id.replace('/', "--"))) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// Where the content of the entity tag `etag` lies.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Notes which commit a revision is.
    ///
    /// # Errors
    /// The system refuses it.
    pub(super) fn note(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.dir.join("refs").join(revision);
        created(&path).and_then(|()| fs::write(&path, commit)).map_err(|error| Error::io(&path, error))
    }

    /// What is there of `name`, of whatever age: a folder only with the configuration and, if they are asked for, all weights; a split file only with all its parts.
    pub(super) fn have(&self, name: &HubName, with_weights: bool) -> Option<PathBuf> {
        let noted = fs::read_to_string(self.dir.join("refs").join(&name.revision)).ok();
        let commit = noted.map_or_else(|| name.revision.clone(), |commit| commit.trim().to_owned());
        if !is_below(&commit) {
            return None;
        }
        let snapshot = self.snapshot(&commit);
        if let Some(file) = &name.file {
            return parts(file).iter().all(|part| snapshot.join(part).is_file()).then(|| snapshot.join(file));
        }
        let weights = || {
            let shards = shards(&snapshot.join(INDEX));
            let has_all = |shards: BTreeSet<String>| shards.iter().all(|shard| snapshot.join(shard).is_file());
            snapshot.join(SINGLE).is_file() || shards.is_some_and(has_all)
        };
        let complete = snapshot.join(CONFIG).is_file() && (!with_weights || weights());
        complete.then_some(snapshot)
    }

    /// Makes `blob` the file of a snapshot: a link, or a copy where the system has no links.
    ///
    /// # Errors
    /// The system refuses both.
    pub(super) fn link(blob: &Path, snapshot: &Path, file: &str) -> Result<()> {
        let path = snapshot.join(file);
        let refused = |error| Error::io(&path, error);
        created(&path).map_err(refused)?;
        // A link to what has been deleted.
        if path.symlink_metadata().is_ok() && !path.is_file() {
            fs::remove_file(&path).map_err(refused)?;
        }
        let tag = blob.file_name().unwrap_or_default();
        let up = "../".repeat(2 + file.matches('/').count());
        if symlink(&Path::new(&up).join("blobs").join(tag), &path).is_ok() || path.is_file() {
            return Ok(());
        }
        let mut half = path.clone().into_os_string();
        half.push(".part");
        fs::copy(blob, &half).and_then(|_| fs::rename(&half, &path)).map_err(refused)
    }
}

/// The folder that `path` lies in.
pub(super) fn created(path: &Path) -> IoResult<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

#[cfg(unix)]
fn symlink(aim: &Path, path: &Path) -> IoResult<()> {
    std::os::unix::fs::symlink(aim, path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> IoResult<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// The files that an index names; `None` if there are none, or if one of them would leave the folder.
pub(super) fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let index: Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let places = index.get("weight_map")?.as_object()?;
    let shards: BTreeSet<String> = places.values().filter_map(Value::as_str).map(str::to_owned).collect();
    (!shards.is_empty() && shards.iter().all(|shard| is_below(shard))).then_some(shards)
}

/// A GGUF file, or all parts of one that is split (`NAME-00001-of-00003.gguf`).
pub(super) fn parts(file: &str) -> Vec<String> {
    let split = || {
        let (stem, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (first, number) = stem.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        let total = count.parse::<u32>().ok().filter(|_| digits(count))?;
        let number = number.parse::<u32>().ok().filter(|_| digits(number))?;
        let parts = (1..=total).map(|part| format!("{first}-{part:05}-of-{count}.gguf"));
        (1..=total).contains(&number).then(|| parts.collect())
    };
    split().unwrap_or_else(|| vec![file.to_owned()])
}
