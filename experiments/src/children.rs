//! Subjects of a comparison side by side, each in a process of its own: one that fails takes no other with it, and threads of one do not
//! wait for those of another.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::compare::CompareConfig;
use crate::compare::record::Store;
use tinyonn::metrics::Progress;
use tinyonn::{Error, Result, files};

/// A subject under way.
struct Running {
    name: String,
    child: Child,
}

/// Runs all subjects of `config`, `jobs` at a time (by default one a core), and says how many cells they ran.
///
/// # Errors
/// A process that cannot be started; once all have ended, the first that failed, with the last line of its log.
pub fn run_subjects(config: &CompareConfig, jobs: Option<usize>) -> Result<usize> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let subjects = || config.corpora.iter().flat_map(|corpus| config.seeds.iter().map(move |seed| (corpus, *seed)));
    let jobs = jobs.unwrap_or(cores).clamp(1, subjects().count().max(1));
    let threads = (cores / jobs).max(1);
    let (before, all) = (cells_done(config), config.cells().len() * subjects().count());
    let progress = Progress::new(all as u64, "compare");
    let (mut running, mut failed): (Vec<Running>, Vec<String>) = (Vec::new(), Vec::new());
    let mut waiting = subjects();
    loop {
        while running.len() < jobs
            && let Some((corpus, seed)) = waiting.next()
        {
            running.push(start(config, (&corpus.name, seed), threads)?);
        }
        if running.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(200));
        progress.set(cells_done(config) as u64);
        let mut ended = Vec::new();
        for (at, subject) in running.iter_mut().enumerate() {
            if let Some(status) = subject.child.try_wait().map_err(|e| Error::io(&subject.name, e))? {
                ended.push((at, status.success()));
            }
        }
        for (at, well) in ended.into_iter().rev() {
            let subject = running.remove(at);
            if !well {
                failed.push(subject.name);
            }
        }
    }
    progress.set(cells_done(config) as u64);
    match failed.first() {
        None => {
            progress.finish();
            Ok(cells_done(config) - before)
        }
        Some(name) => {
            let log = config.out.join("subjects").join(format!("{name}.log"));
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
            Err(Error::file(log, last, "mend it and run this again: what is done is kept"))
        }
    }
}

fn start(config: &CompareConfig, (corpus, seed): (&str, u64), threads: usize) -> Result<Running> {
    let program = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
    let name = format!("{corpus}-{seed}");
    let log = config.out.join("subjects").join(format!("{name}.log"));
    let file = File::create(&log).map_err(|e| Error::io(&log, e))?;
    let mut command = Command::new(&program);
    command.arg("--out").arg(&config.out).args(["--subject", corpus, &seed.to_string()]);
    for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    // A pipe that only this process holds: it closes when this process ends, however it ends.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file);
    Ok(Running { name, child: command.spawn().map_err(|e| Error::io(&program, e))? })
}

/// Ends this process when the one that started it has ended, and takes away what it was writing.
pub fn end_with_parent() {
    thread::spawn(|| {
        let mut ignored = Vec::new();
        // Whatever it returns, nobody holds the other end any more.
        let _ = std::io::stdin().read_to_end(&mut ignored);
        files::abandon(|_| std::process::exit(1));
    });
}

fn cells_done(config: &CompareConfig) -> usize {
    let store = Store::new(&config.out);
    let cells = config.cells();
    let of = |corpus: &str, seed: u64| cells.iter().filter(|cell| store.cell_file(corpus, seed, cell).exists()).count();
    config.corpora.iter().flat_map(|corpus| config.seeds.iter().map(move |seed| of(&corpus.name, *seed))).sum()
}
