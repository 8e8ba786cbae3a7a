//! A file's bytes, from the hub into the cache: resumed where they broke off, and held against what the hub says of them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest as _, Sha256};
use tinyonn::Error;
use ureq::http::HeaderMap;

use super::cache::created;
use super::request::{Answer, Client, Failure, header};

/// How many connections in a row may bring nothing new.
const ATTEMPTS: u32 = 5;
/// How long is waited behind the first of them; twice as long behind each further one.
const PAUSE: Duration = Duration::from_millis(100);
const CHUNK: usize = 1 << 16;
const TAG_LEN: usize = 128;

/// What the hub says of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    /// Its entity tag: the SHA-256 of large files, git's SHA-1 of small ones.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
}

/// What the hub says of the file at `path`, which has to be of `commit`.
pub(super) fn metadata(client: &Client<'_>, path: &str, commit: &str) -> Result<Metadata, Failure> {
    let mut attempt = 1;
    let answer = loop {
        match client.get(path, Some("bytes=0-0")) {
            Err(Failure::Broken(problem)) if attempt < ATTEMPTS => {
                tracing::warn!("{path}: {problem}; asked again");
                thread::sleep(PAUSE * (1 << (attempt - 1)));
                attempt += 1;
            }
            answer => break answer?,
        }
    };
    let (status, last) = (answer.response.status().as_u16(), answer.response.headers());
    // An empty file has no first byte.
    match status {
        200 | 206 => {}
        416 if total(last) == Some(0) => {}
        status => return Err(Failure::Status(status)),
    }
    let of_hub = |name: &str| answer.of_hub.iter().find_map(|headers| header(headers, name));
    let said = of_hub("x-repo-commit").unwrap_or("none");
    if said != commit {
        return Err(Failure::Unfit(format!("the file is of commit {said:.60}, not of {commit}")));
    }
    // Redirects have tags of their own, which are those of their few words.
    let own = || answer.of_hub.iter().rev().find_map(|headers| header(headers, "etag"));
    let etag = of_hub("x-linked-etag").or_else(own).or_else(|| header(last, "etag")).unwrap_or("");
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let fits =
        (1..=TAG_LEN).contains(&etag.len()) && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !fits {
        return Err(Failure::Unfit(format!("its entity tag {etag:.60?} is none of the hub's")));
    }
    let linked = of_hub("x-linked-size").and_then(|size| size.parse().ok());
    let length = || header(last, "content-length").filter(|_| status == 200)?.parse().ok();
    let size = linked.or_else(|| total(last)).or_else(length);
    let size = size.ok_or_else(|| Failure::Unfit("its size is not said".into()))?;
    Ok(Metadata { etag: etag.to_owned(), size })
}

/// Fills `blob` with the file at `path` unless it is there.
pub(super) fn blob(client: &Client<'_>, path: &str, meta: &Metadata, blob: &Path) -> Result<(), Failure> {
    let local = |error| Failure::Local(Error::io(blob, error));
    created(blob).map_err(local)?;
    let lock_path = blob.with_extension("lock");
    let lock = locked(&lock_path)?;
    // Whoever held the lock before may have fetched it.
    if length(blob) != Some(meta.size) {
        let part = blob.with_extension("part");
        complete(client, path, meta, &part)?;
        fs::rename(&part, blob).map_err(local)?;
    }
    // Nobody misses the lock of what is there; until it is, the file stays, so that all wait for the same one.
    let _ = fs::remove_file(&lock_path);
    drop(lock);
    Ok(())
}

/// A file that other processes wait for while it is held.
fn locked(path: &Path) -> Result<File, Failure> {
    let local = |error| Failure::Local(Error::io(path, error));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(local)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            tracing::info!("{}: waits for another process that fetches the same file", path.display());
            file.lock().map_err(local)?;
        }
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            tracing::warn!("{}: {error}; do not fetch the same model twice at a time", path.display());
        }
        Err(TryLockError::Error(error)) => return Err(local(error)),
        Ok(()) => {}
    }
    Ok(file)
}

fn length(path: &Path) -> Option<u64> {
    path.metadata().ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Why a part does not grow.
enum Halt {
    /// The connection ended; what came is kept.
    Broken(String),
    /// The part is not of this file: it goes.
    Stale(String),
    Failed(Failure),
}

/// Brings `part` to its whole length and compares it. A part that does not fit is begun anew once.
fn complete(client: &Client<'_>, path: &str, meta: &Metadata, part: &Path) -> Result<(), Failure> {
    let local = |error| Failure::Local(Error::io(part, error));
    let bar = bar(meta.size, path);
    let (mut longest, mut silent, mut renewed) = (length(part).unwrap_or(0), 0, false);
    loop {
        let halt = match append(client, path, meta, part, &bar).and_then(|()| compared(meta, part)) {
            Ok(()) => return Ok(()),
            Err(halt) => halt,
        };
        match halt {
            Halt::Failed(failure) => return Err(failure),
            Halt::Stale(problem) => {
                fs::remove_file(part)
                    .or_else(|error| if part.exists() { Err(error) } else { Ok(()) })
                    .map_err(local)?;
                if renewed {
                    return Err(Failure::Unfit(problem));
                }
                tracing::warn!("{path}: {problem}; begun anew");
                (longest, silent, renewed) = (0, 0, true);
            }
            Halt::Broken(problem) => {
                let now = length(part).unwrap_or(0);
                silent = if now > longest { 0 } else { silent + 1 };
                longest = longest.max(now);
                if silent == ATTEMPTS {
                    return Err(Failure::Broken(problem));
                }
                tracing::warn!("{path}: {problem}; asked again from byte {now}");
                if silent > 0 {
                    thread::sleep(PAUSE * (1 << (silent - 1)));
                }
            }
        }
    }
}

/// Asks for what `part` lacks, and writes it behind what it has.
fn append(client: &Client<'_>, path: &str, meta: &Metadata, part: &Path, bar: &ProgressBar) -> Result<(), Halt> {
    let local = |error| Halt::Failed(Failure::Local(Error::io(part, error)));
    let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(local)?;
    let have = file.metadata().map_err(local)?.len();
    if have > meta.size {
        return Err(Halt::Stale(format!("{have} bytes are there of a file of {}", meta.size)));
    }
    if have == meta.size {
        return Ok(());
    }
    let range = (have > 0).then(|| format!("bytes={have}-"));
    let Answer { response, .. } = client.get(path, range.as_deref()).map_err(|failure| match failure {
        Failure::Broken(problem) => Halt::Broken(problem),
        failure => Halt::Failed(failure),
    })?;
    let mut at = have;
    match response.status().as_u16() {
        200 => {
            // The whole file, whatever was asked for.
            file.set_len(0).map_err(local)?;
            at = 0;
        }
        206 if first(response.headers()) == Some(have) => {}
        206 => return Err(Halt::Stale(format!("asked for what follows byte {have}, it sends another part"))),
        416 => return Err(Halt::Stale(format!("nothing follows byte {have} of {}", meta.size))),
        status => return Err(Halt::Failed(Failure::Status(status))),
    }
    let mut reader = response.into_body().into_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        bar.set_position(at);
        let read = reader.read(&mut chunk).map_err(|error| Halt::Broken(error.to_string()))?;
        let bytes = chunk.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        at += read as u64;
        if at > meta.size {
            return Err(Halt::Stale(format!("more comes than the {} bytes that it is said to have", meta.size)));
        }
        file.write_all(bytes).map_err(local)?;
    }
    if at < meta.size {
        return Err(Halt::Broken(format!("the connection ended at byte {at} of {}", meta.size)));
    }
    file.sync_all().map_err(local)
}

/// Holds a whole part against its SHA-256, where the entity tag is one.
fn compared(meta: &Metadata, part: &Path) -> Result<(), Halt> {
    if meta.etag.len() != 64 || !meta.etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let local = |error| Halt::Failed(Failure::Local(Error::io(part, error)));
    let mut file = File::open(part).map_err(local)?;
    let (mut sum, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        let read = file.read(&mut chunk).map_err(local)?;
        if read == 0 {
            break;
        }
        sum.update(chunk.get(..read).unwrap_or_default());
    }
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sum.eq_ignore_ascii_case(&meta.etag) {
        return Ok(());
    }
    Err(Halt::Stale(format!("its SHA-256 is {sum}, not {}", meta.etag)))
}

/// The first byte of `Content-Range: bytes FIRST-LAST/TOTAL`.
fn first(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-range")?.strip_prefix("bytes")?.trim_start().split_once('-')?.0.parse().ok()
}

/// The size of `Content-Range: bytes FIRST-LAST/TOTAL` or `bytes */TOTAL`.
fn total(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-range")?.rsplit_once('/')?.1.parse().ok()
}

/// Drawn where somebody watches.
fn bar(size: u64, path: &str) -> ProgressBar {
    let file = path.rsplit('/').next().unwrap_or(path).to_owned();
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr()).with_prefix(file);
    // The template is a constant; were it ever malformed, indicatif's own bar would still do.
    match ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
