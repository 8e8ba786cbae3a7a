//! The passes of phase 1 by shards, as files in folders: what a pass keeps, of one shard or of all ranks, how the files of shards are added up, which command comes
//! next.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use tinyonn::imaging::{Shard, StoredScan};
use tinyonn::phases::{PassFile, RowPass, Run};
use tinyonn::ranks::Collective;
use tinyonn::{Error, Result};

use crate::{RunFolder, say};

/// The scan in the folder of its pass.
const SCAN: &str = "scan.safetensors";

/// How a pass is dealt out.
#[derive(Clone, Copy)]
pub enum Dealt<'a> {
    /// To processes that share nothing: this one makes a shard, and `--merge` adds up.
    Shard(Shard),
    /// To ranks that are together: each makes a shard, and the first has the sum.
    Ranks(&'a dyn Collective),
}

/// What a pass has left in a folder.
pub struct Left {
    /// Its files, for a shell.
    files: String,
    /// Whether other shards are to be added up with it.
    is_part: bool,
    /// The pass that comes next, if there is one.
    then: Option<String>,
}

impl Dealt<'_> {
    /// What of it this process makes.
    fn shard(self) -> Shard {
        match self {
            Self::Shard(shard) => shard,
            Self::Ranks(ranks) => Shard::of_rank(ranks),
        }
    }

    fn left(self, files: String, then: Option<String>) -> Left {
        Left { files, is_part: matches!(self, Self::Shard(_)), then }
    }

    /// Writes what was made of rows into the folder `dir`; nothing at ranks that are not the first.
    fn keep(self, made: PassFile, run: &Run<'_>, dir: &Path) -> Result<Option<Left>> {
        let made = match self {
            Self::Shard(_) => made,
            Self::Ranks(ranks) => match made.over_ranks(ranks, &run.device)? {
                Some(whole) => whole,
                None => return Ok(None),
            },
        };
        let pass = made.pass();
        made.save(dir.join(format!("{pass}.safetensors")))?;
        say!("{:<9} {self}: {} rows", pass.to_string(), made.rows());
        Ok(Some(self.left(files_of(pass), made.then().map(str::to_owned))))
    }
}

impl fmt::Display for Dealt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "shard {shard}"),
            Self::Ranks(ranks) => write!(f, "{} ranks", ranks.ranks()),
        }
    }
}

/// Scans into the folder `dir`; what this process scans is kept in `file` as it goes, if that is named. Nothing is left by ranks that are not the first.
///
/// # Errors
/// As of [`Run::scan_shard`] and [`StoredScan::over_ranks`].
pub fn scan(run: &Run<'_>, dealt: Dealt<'_>, dir: &Path, file: Option<&Path>) -> Result<Option<Left>> {
    let result = dir.join(SCAN);
    let made = run.scan_shard(dealt.shard(), file.unwrap_or(&result))?;
    let made = match dealt {
        Dealt::Shard(_) => Some(made),
        Dealt::Ranks(ranks) => made.over_ranks(ranks, &run.device)?,
    };
    let Some(made) = made else { return Ok(None) };
    // Where it was kept there, and is the shard of this process, it lies there already.
    if file.is_some() || matches!(dealt, Dealt::Ranks(_)) {
        made.save(&result)?;
    }
    say!("scanned   {dealt}: {} tokens", made.scan.tokens.iter().sum::<u64>());
    Ok(Some(dealt.left(SCAN.to_owned(), Some("inputs".to_owned()))))
}

/// Makes rows into the folder `dir`. Nothing is left by ranks that are not the first.
///
/// # Errors
/// As of [`Run::rows_shard`] and [`PassFile::over_ranks`].
pub fn rows(run: &Run<'_>, dealt: Dealt<'_>, dir: &Path, pass: RowPass) -> Result<Option<Left>> {
    dealt.keep(run.rows_shard(pass, dealt.shard())?, run, dir)
}

/// Makes a round of refitting, one set of labels after another, into the folder `dir`. Nothing is left by ranks that are not the first.
///
/// # Errors
/// As of [`Run::refit_shards`] and [`PassFile::over_ranks`].
pub fn refit(run: &Run<'_>, dealt: Dealt<'_>, dir: &Path) -> Result<Option<Left>> {
    let mut left = None;
    run.refit_shards(dealt.shard(), |made| {
        left = dealt.keep(made, run, dir)?;
        Ok(())
    })?;
    Ok(left)
}

impl Left {
    /// Says what comes next, where the folder is `out`.
    pub fn say(&self, out: &Path) {
        let files = out.join(&self.files);
        if self.is_part {
            say!("next      exp_phase1 --merge {}", files.display());
            say!("          with the files of the other shards behind it");
        } else {
            say_next(&files, self.then.as_deref(), "");
        }
    }
}

/// Where the files of a pass lie in its folder, for a shell.
fn files_of(pass: RowPass) -> String {
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
    say_next(&folder.finish()?.join(SCAN), Some("inputs"), &format!(" --shard 0/{count}"));
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
        say_next(&folder.finish()?.join(files), then.as_deref(), &format!(" --shard 0/{shards}"));
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

/// The next pass, dealt out as `shard` says, if there is one, which reads the `file` that was made; and the rest in one process.
fn say_next(file: &Path, then: Option<&str>, shard: &str) {
    let (file, mut word) = (file.display(), "next");
    if let Some(pass) = then {
        // What routers see does not hang on the image.
        let passed = if pass == "inputs" { String::new() } else { format!(" --passed {file}") };
        say!("{word:<10}exp_phase1 --pass {pass}{shard}{passed}");
        word = "or";
    }
    say!("{word:<10}exp_phase1 --passed {file}");
    say!("          with the settings that the shards had; behind --passed, the files of all passes before as well");
}
