//! The passes of phase 1 by shards, as files in folders: what a pass keeps, how the shards of one are added up, which command comes next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tinyonn::imaging::{Shard, StoredScan};
use tinyonn::phases::{PassFile, RowPass};
use tinyonn::{Error, Result};

use crate::{RunFolder, say};

/// The scan in the folder of its pass.
pub const SCAN: &str = "scan.safetensors";

/// Writes what a shard of a pass has made into the folder `dir`.
///
/// # Errors
/// What the system reports.
pub fn keep(dir: &Path, made: &PassFile, shard: Shard) -> Result<()> {
    let pass = made.pass();
    made.save(dir.join(format!("{pass}.safetensors")))?;
    say!("{:<9} shard {shard}: {} rows", pass.to_string(), made.rows());
    Ok(())
}

/// Where the files of a pass lie in its folder, for a shell.
#[must_use]
pub fn files_of(pass: RowPass) -> String {
    match pass {
        RowPass::Refit { round, .. } => format!("refit-{round}-*.safetensors"),
        pass => format!("{pass}.safetensors"),
    }
}

/// The scan among files that were added up, and the others.
///
/// # Errors
/// Two files of one pass; what is no safetensors file.
pub fn passed(files: &[PathBuf]) -> Result<(Option<&Path>, Vec<PathBuf>)> {
    let (mut scan, mut rows, mut held) = (None, Vec::new(), BTreeMap::new());
    for path in files {
        let pass = PassFile::pass_of(path)?;
        let what = pass.map_or_else(|| "a scan".to_owned(), |pass| pass.to_string());
        if let Some(first) = held.insert(what.clone(), path) {
            let problem = format!("{} and {} both hold {what}", first.display(), path.display());
            return Err(Error::setting("--passed", problem, "add up the shards of a pass with --merge first"));
        }
        match pass {
            Some(_) => rows.push(path.clone()),
            None => scan = Some(path.as_path()),
        }
    }
    Ok((scan, rows))
}

/// Adds up what the shards of a pass have left, into a `folder` that is made when they do add up, and says what comes next.
///
/// # Errors
/// Files of several passes, or that lack a shard; as of [`StoredScan::sum`] and [`PassFile::sum`].
pub fn merge(files: &[PathBuf], mixed: bool, folder: impl Fn() -> Result<RunFolder>) -> Result<()> {
    let rows = by_pass(files)?;
    if !rows.is_empty() {
        return merge_rows(rows, mixed, folder);
    }
    let scans = files.iter().map(|path| Ok((path.clone(), StoredScan::load(path)?))).collect::<Result<Vec<_>>>()?;
    let (count, sum) = (scans.len(), StoredScan::sum(scans, mixed)?);
    refuse_missing(&sum.missing(), count)?;
    let folder = folder()?;
    sum.save(folder.dir().join(SCAN))?;
    say!("added up  {} tokens of {count} files", sum.scan.tokens.iter().sum::<u64>());
    say_next(&folder.finish()?.join(SCAN), Some("inputs"), count);
    Ok(())
}

/// The files of each pass, none of scans; those of a round of refitting, a pass for each set of labels, may be several.
fn by_pass(files: &[PathBuf]) -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut rows = BTreeMap::<String, Vec<PathBuf>>::new();
    let mut first: Option<(String, &PathBuf)> = None;
    for path in files {
        // Whatever else a file is, scans have words for.
        let pass = PassFile::pass_of(path)?;
        let what = pass.map_or_else(|| "a scan".to_owned(), files_of);
        match &first {
            Some((other, at)) if *other != what => {
                let problem = format!("{} holds {other}, and {} {what}", at.display(), path.display());
                return Err(Error::setting("--merge", problem, "add up the shards of one pass at a time"));
            }
            Some(_) => {}
            None => first = Some((what, path)),
        }
        if let Some(pass) = pass {
            rows.entry(pass.to_string()).or_default().push(path.clone());
        }
    }
    Ok(rows)
}

/// One pass after another, so that the rows of one are held at a time.
fn merge_rows(rows: BTreeMap<String, Vec<PathBuf>>, mixed: bool, folder: impl Fn() -> Result<RunFolder>) -> Result<()> {
    let counts: Vec<(&String, usize)> = rows.iter().map(|(pass, files)| (pass, files.len())).collect();
    if let Some([(pass, count), (other, others)]) = counts.array_windows().find(|[(_, a), (_, b)]| a != b) {
        let problem = format!("{count} files are of {pass}, and {others} of {other}");
        return Err(Error::setting("--merge", problem, "name the files of all shards"));
    }
    let (mut held, mut next) = (None, None);
    for files in rows.into_values() {
        let count = files.len();
        let load = |path: PathBuf| Ok((path.clone(), PassFile::load(&path)?));
        let sum = PassFile::sum(files.into_iter().map(load).collect::<Result<_>>()?, mixed)?;
        refuse_missing(&sum.missing(), count)?;
        let own = held.map_or_else(&folder, Ok)?;
        sum.save(own.dir().join(format!("{}.safetensors", sum.pass())))?;
        say!("added up  {}: {} rows of {count} files", sum.pass(), sum.rows());
        next = Some((files_of(sum.pass()), sum.then().map(str::to_owned), sum.shards()));
        held = Some(own);
    }
    if let (Some(folder), Some((files, then, shards))) = (held, next) {
        say_next(&folder.finish()?.join(files), then.as_deref(), shards);
    }
    Ok(())
}

fn refuse_missing(missing: &[Shard], count: usize) -> Result<()> {
    match missing.first() {
        Some(shard) => {
            let problem = format!("shard {shard} is not among the {count} files");
            Err(Error::setting("--merge", problem, "name the files of all shards"))
        }
        None => Ok(()),
    }
}

/// The next pass, of as many shards, if there is one, which reads the `file` that was made; and the rest in one process.
fn say_next(file: &Path, then: Option<&str>, shards: usize) {
    let (file, mut word) = (file.display(), "next");
    if let Some(pass) = then {
        // What routers see does not hang on the image.
        let passed = if pass == "inputs" { String::new() } else { format!(" --passed {file}") };
        say!("{word:<10}exp_phase1 --pass {pass} --shard 0/{shards}{passed}");
        word = "or";
    }
    say!("{word:<10}exp_phase1 --passed {file}");
    say!("          with the settings that the shards had; behind --passed, the files of all passes before as well");
}
