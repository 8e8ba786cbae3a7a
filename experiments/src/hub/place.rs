//! Where the hub is, and where its cache lies: what the environment says.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use tinyonn::{Error, Result};

/// The hub as this machine has it.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Where it answers.
    pub endpoint: String,
    /// The cache: `models--OWNER--NAME` folders.
    pub cache: PathBuf,
    /// What it knows a user by.
    pub token: Option<String>,
    /// Whether only the cache is asked.
    pub offline: bool,
}

impl Hub {
    /// By `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// Neither a cache nor a home is named.
    pub fn from_env() -> Result<Self> {
        let home = named("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| named("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface")));
        let home = home.or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface")));
        let cache = named("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::setting("HF_HOME", "no cache of the hub is known, nor a home to have one in", "set it to a folder")
        })?;
        let stored = || fs::read_to_string(home.as_ref()?.join("token")).ok();
        let token = named("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        let endpoint = named("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = named("HF_HUB_OFFLINE");
        let offline = offline.is_some_and(|on| ["1", "on", "yes", "true"].contains(&on.to_ascii_lowercase().as_str()));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token: token.filter(|token| !token.is_empty()),
            offline,
        })
    }
}

/// A variable of the environment that is set to something.
fn named(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}
