//! From a name on the hub to files on this machine: out of the cache, or fetched into it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tinyonn::checkpoint::TOKENIZER_FILES;
use tinyonn::{Error, Result};

use super::cache::{CONFIG, INDEX, ModelCache, SINGLE, parts, shards};
use super::download::{blob, metadata};
use super::name::is_gguf;
use super::request::{Client, Failure};
use super::{Hub, HubName, refused};

/// The most that the hub's list of a model's files may have.
const LISTING: u64 = 64 << 20;

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
        let cache = ModelCache::of(self, name);
        let cached = cache.have(name, with_weights);
        if self.offline {
            return cached.ok_or_else(|| {
                let problem = format!("HF_HUB_OFFLINE is set, and the cache {} does not have it", self.cache.display());
                refused(name, &problem, &remedy(name, "unset HF_HUB_OFFLINE"))
            });
        }
        let client = Client::new(self);
        // All files of one commit, whatever the branch does meanwhile.
        let (commit, files) = match (listing(&client, name), cached) {
            (Ok(listing), _) => listing,
            // That there is none, or that it is not for this user, is heeded; that the hub cannot answer is not.
            (Err(failure), Some(cached))
                if !matches!(failure, Failure::Status(403 | 404 | 410) | Failure::Local(_)) =>
            {
                tracing::warn!("{name}: {}; the cache has it", self.problem(&failure).0);
                return Ok(cached);
            }
            (Err(failure), _) => return Err(self.failed(name, failure)),
        };
        let asked = match &name.file {
            Some(file) => {
                let parts = parts(file);
                if let Some(lacking) = parts.iter().find(|part| !files.contains(*part)) {
                    return Err(refused(name, &format!("it has no file {lacking}"), &ggufs(&files)));
                }
                parts
            }
            None => settings(name, &files)?,
        };
        let snapshot = cache.snapshot(&commit);
        let fetch = |file: &str| self.fetch(&client, &cache, name, &commit, file);
        // An index without its shards would be half a model.
        let wanted = |file: &&String| with_weights || *file != INDEX;
        asked.iter().filter(wanted).try_for_each(|file| fetch(file))?;
        if name.file.is_none() && with_weights {
            weights(name, &files, &snapshot)?.iter().try_for_each(|file| fetch(file))?;
        }
        cache.note(&name.revision, &commit)?;
        Ok(name.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
    }

    /// Brings a file into the snapshot unless it is there.
    fn fetch(&self, client: &Client<'_>, cache: &ModelCache, name: &HubName, commit: &str, file: &str) -> Result<()> {
        let snapshot = cache.snapshot(commit);
        if snapshot.join(file).is_file() {
            return Ok(());
        }
        tracing::info!("{name}: fetching {file} into {}", self.cache.display());
        let path = format!("/{}/resolve/{commit}/{file}", name.id);
        let fetched = metadata(client, &path, commit).and_then(|meta| {
            let aim = cache.blob(&meta.etag);
            blob(client, &path, &meta, &aim)?;
            ModelCache::link(&aim, &snapshot, file).map_err(Failure::Local)
        });
        fetched.map_err(|failure| match failure {
            Failure::Unfit(problem) => self.failed(name, Failure::Unfit(format!("{file}: {problem}"))),
            failure => self.failed(name, failure),
        })
    }

    fn failed(&self, name: &HubName, failure: Failure) -> Error {
        match failure {
            Failure::Local(error) => error,
            failure => {
                let (problem, first) = self.problem(&failure);
                refused(name, &problem, &remedy(name, first))
            }
        }
    }

    /// What went wrong, and what to do first.
    fn problem(&self, failure: &Failure) -> (String, &'static str) {
        let hub = &self.endpoint;
        match failure {
            Failure::Status(status @ (401 | 403)) => (
                format!("{hub} does not give it (status {status}): there is none, or it is private or gated"),
                "accept its terms there and set HF_TOKEN",
            ),
            Failure::Status(status @ (404 | 410)) => {
                (format!("{hub} has none (status {status})"), "correct the name or the revision")
            }
            Failure::Status(status) => (format!("{hub} refused it (status {status})"), "try again later"),
            Failure::Broken(problem) => {
                (format!("{hub} could not be read ({problem})"), "try again: what has come is kept")
            }
            Failure::Unfit(problem) => {
                (format!("what {hub} answers is not used ({problem})"), "correct HF_ENDPOINT, or try again later")
            }
            Failure::Local(error) => (error.to_string(), "make room for the cache"),
        }
    }
}

/// The commit that a revision is, and its files.
fn listing(client: &Client<'_>, name: &HubName) -> Result<(String, BTreeSet<String>), Failure> {
    let path = format!("/api/models/{}/revision/{}", name.id, name.revision.replace('/', "%2F"));
    let response = client.get(&path, None)?.response;
    if response.status().as_u16() != 200 {
        return Err(Failure::Status(response.status().as_u16()));
    }
    let text = response.into_body().into_with_config().limit(LISTING).read_to_vec();
    let text = text.map_err(|error| Failure::Broken(error.to_string()))?;
    let unfit = || Failure::Unfit("it names no commit and no files of it".into());
    let said: Value = serde_json::from_slice(&text).map_err(|_| unfit())?;
    let commit = said.get("sha").and_then(Value::as_str);
    // It becomes a folder's name.
    let commit = commit.filter(|commit| commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let files = said.get("siblings").and_then(Value::as_array).ok_or_else(unfit)?;
    let files = files.iter().filter_map(|file| Some(file.get("rfilename")?.as_str()?.to_owned())).collect();
    Ok((commit.ok_or_else(unfit)?.to_owned(), files))
}

fn remedy(name: &HubName, first: &str) -> String {
    format!("{first}, or give a folder or a GGUF file: ./{name} is always a path")
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
    let shards = shards(&snapshot.join(INDEX)).filter(|shards| shards.is_subset(files));
    let shards = shards
        .ok_or_else(|| refused(name, &format!("its {INDEX} names no files of weights"), "ask whoever made it"))?;
    Ok(shards.into_iter().collect())
}

/// Which GGUF files could be meant.
fn ggufs(files: &BTreeSet<String>) -> String {
    let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_gguf(file)).collect();
    match ggufs.first() {
        None => "give a model with safetensors, or one with GGUF files as OWNER/NAME:FILE.gguf".to_owned(),
        Some(first) => format!("name one of its {} GGUF files, such as OWNER/NAME:{first}", ggufs.len()),
    }
}
