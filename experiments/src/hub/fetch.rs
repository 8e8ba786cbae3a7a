//! From a name on the hub to files on this machine: out of the cache, or fetched into it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::Value;
use tinyonn::checkpoint::TOKENIZER_FILES;
use tinyonn::{Error, Result};

use super::name::{is_below, is_gguf};
use super::{Hub, HubName, refused};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// How often a file is asked for: a connection that breaks leaves what has come, and the next one goes on from there.
const ATTEMPTS: usize = 5;

impl Hub {
    /// The folder that holds the model `name`, or its file.
    ///
    /// # Errors
    /// Nothing of that name, or nothing that is read here; a hub that is out of reach where the cache lacks it.
    pub fn model(&self, name: &HubName) -> Result<PathBuf> {
        self.have(name, true)
    }

    /// As [`model`](Self::model), but of a folder only the configuration and the tokenizer: a model on paper.
    ///
    /// # Errors
    /// As above.
    pub fn paper(&self, name: &HubName) -> Result<PathBuf> {
        self.have(name, false)
    }

    fn have(&self, name: &HubName, with_weights: bool) -> Result<PathBuf> {
        let cached = self.cached(name);
        if self.offline {
            return cached.ok_or_else(|| {
                let problem = format!("HF_HUB_OFFLINE is set, and the cache {} does not have it", self.cache.display());
                refused(name, &problem, &remedy(name, "unset HF_HUB_OFFLINE"))
            });
        }
        let named = self.repo(name, &name.revision)?;
        let info = match named.info() {
            Ok(info) => info,
            Err(error) => {
                return match (status(&error), cached) {
                    (None, Some(cached)) => {
                        tracing::warn!("{name}: {} is out of reach ({error}); the cache has it", self.endpoint);
                        Ok(cached)
                    }
                    _ => Err(self.failed(name, &error)),
                };
            }
        };
        // All files of one commit, whatever the branch does meanwhile.
        let commit = Some(info.sha).filter(|commit| is_below(commit)).ok_or_else(|| {
            refused(name, &format!("{} names no commit of it", self.endpoint), &remedy(name, "correct HF_ENDPOINT"))
        })?;
        let files: BTreeSet<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let asked = match &name.file {
            Some(file) if !files.contains(file) => {
                return Err(refused(name, &format!("it has no file {file}"), &ggufs(&files)));
            }
            Some(file) => parts(file, &files),
            None => settings(name, &files)?,
        };
        let pinned = self.repo(name, &commit)?;
        let snapshot = self.cache_repo(name).pointer_path(&commit);
        let fetch = |file: &str| self.fetch(name, &pinned, &snapshot, file);
        // An index without its shards would be half a model.
        let wanted = |file: &&String| with_weights || *file != INDEX;
        asked.iter().filter(wanted).try_for_each(|file| fetch(file).map(drop))?;
        if name.file.is_none() && with_weights {
            for file in weights(name, &files, &snapshot)? {
                fetch(&file)?;
            }
        }
        self.cache_repo(name).create_ref(&commit).map_err(|e| Error::io(&self.cache, e))?;
        Ok(name.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
    }

    /// What the cache has of it, of whatever age.
    fn cached(&self, name: &HubName) -> Option<PathBuf> {
        let repo = self.cache_repo(name);
        let folder = self.cache.join(Repo::model(name.id.clone()).folder_name());
        let commit = fs::read_to_string(folder.join("refs").join(&name.revision)).ok();
        let commit = commit.map_or_else(|| name.revision.clone(), |commit| commit.trim().to_owned());
        if !is_below(&commit) {
            return None;
        }
        let snapshot = repo.pointer_path(&commit);
        match &name.file {
            Some(file) => Some(snapshot.join(file)).filter(|file| file.is_file()),
            None => Some(snapshot).filter(|snapshot| snapshot.join(CONFIG).is_file()),
        }
    }

    fn cache_repo(&self, name: &HubName) -> CacheRepo {
        let repo = Repo::with_revision(name.id.clone(), RepoType::Model, name.revision.clone());
        Cache::new(self.cache.clone()).repo(repo)
    }

    fn repo(&self, name: &HubName, revision: &str) -> Result<ApiRepo> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(stderr().is_terminal())
            .build();
        let api = api.map_err(|error| self.failed(name, &error))?;
        Ok(api.repo(Repo::with_revision(name.id.clone(), RepoType::Model, revision.to_owned())))
    }

    /// A file of the snapshot, fetched unless it is there.
    fn fetch(&self, name: &HubName, repo: &ApiRepo, snapshot: &Path, file: &str) -> Result<PathBuf> {
        let path = snapshot.join(file);
        if path.is_file() {
            return Ok(path);
        }
        tracing::info!("{name}: fetching {file} into {}", self.cache.display());
        let mut attempt = 1;
        loop {
            match repo.download(file) {
                Ok(path) => return Ok(path),
                Err(error) if status(&error).is_some() || attempt == ATTEMPTS => return Err(self.failed(name, &error)),
                Err(error) => tracing::warn!("{name}: {file}: {error}; asked again from where it ended"),
            }
            attempt += 1;
        }
    }

    fn failed(&self, name: &HubName, error: &ApiError) -> Error {
        let (problem, first) = match status(error) {
            Some(401 | 403) => (
                format!("{} does not give it ({error}): there is none, or it is private or gated", self.endpoint),
                "accept its terms there and set HF_TOKEN",
            ),
            Some(404) => (format!("{} has none ({error})", self.endpoint), "correct the name or the revision"),
            Some(_) => (format!("{} refused it ({error})", self.endpoint), "try again later"),
            None => (format!("{} could not be read ({error})", self.endpoint), "try again: what has come is kept"),
        };
        refused(name, &problem, &remedy(name, first))
    }
}

/// What the hub answered, if it answered that it will not.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

fn remedy(name: &HubName, first: &str) -> String {
    format!("{first}, or give a folder or a GGUF file: ./{} is always a path", name.id)
}

/// What is small, and says which weights there are.
fn settings(name: &HubName, files: &BTreeSet<String>) -> Result<Vec<String>> {
    if !files.contains(CONFIG) || ![SINGLE, INDEX].iter().any(|file| files.contains(*file)) {
        let problem = format!("it has no {CONFIG} with {SINGLE} or {INDEX}");
        return Err(refused(name, &problem, &ggufs(files)));
    }
    let small = [CONFIG, INDEX].into_iter().chain(TOKENIZER_FILES);
    Ok(small.filter(|file| files.contains(*file)).map(str::to_owned).collect())
}

/// The files of weights: the shards of the index, or the only one.
fn weights(name: &HubName, files: &BTreeSet<String>, snapshot: &Path) -> Result<Vec<String>> {
    if files.contains(SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let unfit = || refused(name, &format!("its {INDEX} names no files of weights"), "ask whoever made it");
    let index = fs::read(snapshot.join(INDEX)).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let index = index.ok_or_else(unfit)?;
    let places = index.get("weight_map").and_then(Value::as_object).ok_or_else(unfit)?;
    let shards: BTreeSet<&str> = places.values().filter_map(Value::as_str).collect();
    // A name with `..` in it would leave the cache.
    if shards.is_empty() || shards.iter().any(|shard| !is_below(shard) || !files.contains(*shard)) {
        return Err(unfit());
    }
    Ok(shards.into_iter().map(str::to_owned).collect())
}

/// A GGUF file, or all parts of one that is split (`NAME-00001-of-00003.gguf`).
fn parts(file: &str, files: &BTreeSet<String>) -> Vec<String> {
    let split = file.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let Some((first, count)) = split.and_then(|(stem, count)| Some((stem.rsplit_once('-')?.0, count))) else {
        return vec![file.to_owned()];
    };
    let is_part = |other: &&String| {
        let number = other.strip_prefix(first).and_then(|rest| rest.strip_suffix(&format!("-of-{count}.gguf")));
        number.and_then(|number| number.strip_prefix('-')).is_some_and(|number| number.parse::<u32>().is_ok())
    };
    files.iter().filter(is_part).cloned().collect()
}

/// Which GGUF files could be meant.
fn ggufs(files: &BTreeSet<String>) -> String {
    let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_gguf(file)).collect();
    match ggufs.first() {
        None => "give a model with safetensors, or one with GGUF files as OWNER/NAME:FILE.gguf".to_owned(),
        Some(first) => format!("name one of its {} GGUF files, such as OWNER/NAME:{first}", ggufs.len()),
    }
}
