//! Subjects of a comparison side by side, each in a process of its own: one that fails takes no other with it, and threads of one do not
//! wait for those of another.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::compare::record::Store;
use crate::compare::{CompareConfig, CorpusConfig, Part};
use tinyonn::imaging::Shard;
use tinyonn::metrics::Progress;
use tinyonn::ranks::end_now;
use tinyonn::{Error, Result};

/// A subject under way.
struct Running {
    name: String,
    child: Child,
}

/// Runs what `shard` has of the subjects of `config`, `jobs` at a time (by default one a core), and says how many cells they ran.
///
/// # Errors
/// A process that cannot be started; once all have ended, the first that failed, with the last line of its log.
pub fn run_subjects(config: &CompareConfig, shard: Shard, jobs: Option<usize>) -> Result<usize> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let subjects: Vec<(&CorpusConfig, u64, Part)> = config
        .subjects()
        .enumerate()
        .filter_map(|(at, (corpus, seed))| Some((corpus, seed, config.part(at, shard)?)))
        .collect();
    let jobs = jobs.unwrap_or(cores).clamp(1, subjects.len().max(1));
    let threads = (cores / jobs).max(1);
    let store = Store::new(&config.out);
    let cells_done = || {
        let of = |(corpus, seed, part): &(&CorpusConfig, u64, Part)| {
            part.cells.iter().filter(|cell| store.cell_file(&corpus.name, *seed, cell).exists()).count()
        };
        subjects.iter().map(of).sum::<usize>()
    };
    let (before, all) = (cells_done(), subjects.iter().map(|(_, _, part)| part.cells.len()).sum::<usize>());
    let progress = Progress::new(all as u64, "compare");
    let (mut running, mut failed): (Vec<Running>, Vec<String>) = (Vec::new(), Vec::new());
    let mut waiting = subjects.iter();
    loop {
        while running.len() < jobs
            && let Some((corpus, seed, _)) = waiting.next()
        {
            running.push(start(config, (&corpus.name, *seed), shard, threads)?);
        }
        if running.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(200));
        progress.set(cells_done() as u64);
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
    progress.set(cells_done() as u64);
    match failed.first() {
        None => {
            progress.finish();
            Ok(cells_done() - before)
        }
        Some(name) => {
            let log = config.out.join("subjects").join(format!("{name}.log"));
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
            Err(Error::file(log, last, "mend it and run this again: what is done is kept"))
        }
    }
}

fn start(config: &CompareConfig, (corpus, seed): (&str, u64), shard: Shard, threads: usize) -> Result<Running> {
    let program = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
    let mut name = format!("{corpus}-{seed}");
    if shard != Shard::WHOLE {
        name = format!("{name}.{}-of-{}", shard.index, shard.of);
    }
    let log = config.out.join("subjects").join(format!("{name}.log"));
    let file = File::create(&log).map_err(|e| Error::io(&log, e))?;
    let mut command = Command::new(&program);
    command.arg("--out").arg(&config.out).args(["--subject", corpus, &seed.to_string()]);
    command.arg("--shard").arg(shard.to_string());
    for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    // A pipe that only this process holds: it closes when this process ends, however it ends.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file);
    Ok(Running { name, child: command.spawn().map_err(|e| Error::io(&program, e))? })
}

/// Ends this process when the one that started it has ended, and takes away what it was writing. What libraries do at a program's usual end is left out:
/// on a GPU they would take apart what other threads still use.
pub fn end_with_parent() {
    thread::spawn(|| {
        let mut ignored = Vec::new();
        // Whatever it returns, nobody holds the other end any more.
        let _ = std::io::stdin().read_to_end(&mut ignored);
        let remedy = "start that one again";
        end_now(&Error::file("standard input", "is closed: the process that started this one has ended", remedy), 1)
    });
}
