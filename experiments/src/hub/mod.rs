//! Models by their names on the Hugging Face hub: `OWNER/NAME`, `OWNER/NAME@REVISION`, `OWNER/NAME:FILE.gguf`.
//!
//! What exists on disk is a path, and `./OWNER/NAME` always is one; so is what begins with a folder that is here (`OWNER`), and `OWNER/NAME.gguf`, which is more likely a file that was mistyped. Anything else of
//! that form is fetched into the hub's own cache, which Python's tools share: a download that was cut off goes on where it ended, sizes and SHA-256 are compared, and the token is shown to the hub alone. `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_ENDPOINT` and `HF_TOKEN` are heeded as there; so is `HF_HUB_OFFLINE`, under which, as where the hub is out of reach, what the cache has is taken.

mod cache;
mod download;
mod fetch;
mod name;
mod place;
mod request;

pub use name::HubName;
pub use place::Hub;

use std::path::{Path, PathBuf};

use tinyonn::{Error, Result};

use name::is_gguf;

/// The folder or file that `given` stands for: itself if it exists, or is no name on the hub; else where the hub's model lies on this machine, fetched if it has to be.
///
/// # Errors
/// A name that neither leads to a file nor to a model that can be had; the error tells both.
pub fn found(given: &Path) -> Result<PathBuf> {
    match meant(given)? {
        Some(name) => Hub::from_env()?.model(&name),
        None => Ok(given.to_path_buf()),
    }
}

/// As [`found`], but of a folder on the hub without its weights: for what is planned.
///
/// # Errors
/// As above.
pub fn found_on_paper(given: &Path) -> Result<PathBuf> {
    match meant(given)? {
        Some(name) => Hub::from_env()?.paper(&name),
        None => Ok(given.to_path_buf()),
    }
}

/// The name on the hub that is meant, if one is.
///
/// # Errors
/// A model's name with something behind it that is neither a revision nor a GGUF file.
fn meant(given: &Path) -> Result<Option<HubName>> {
    let Some(text) = given.to_str().filter(|_| given.symlink_metadata().is_err()) else { return Ok(None) };
    let id = text.split(['@', ':']).next().unwrap_or(text);
    let Some(of_id) = HubName::parse(id) else { return Ok(None) };
    let Some((owner, model)) = of_id.id.split_once('/') else { return Ok(None) };
    if Path::new(owner).is_dir() || id == text && is_gguf(model) {
        return Ok(None);
    }
    let Some(name) = HubName::parse(text) else {
        let problem = format!("`{}` is neither a revision nor a GGUF file", &text[id.len()..]);
        return Err(refused(text, &problem, "write OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME:FILE.gguf"));
    };
    Ok((name.file.is_some() || !is_gguf(model)).then_some(name))
}

/// An error that tells both readings of a name.
fn refused(name: &(impl std::fmt::Display + ?Sized), problem: &str, remedy: &str) -> Error {
    Error::file(
        name.to_string(),
        format!("no file or folder of that name is here, and as a name on the hub: {problem}"),
        remedy,
    )
}
