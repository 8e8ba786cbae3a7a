//! `--gpus N`: a parent that is no rank and opens no device starts N ranks of the same program on this host, and waits for them.
//!
//! Each rank gets the token of the job through a pipe, which stays open as long as the parent lives: a rank ends when it closes. Ranks are process
//! groups of their own, so that Ctrl-C reaches the parent alone, which passes it on once. Rank 0 writes to this terminal itself, progress and all;
//! what others say on standard error stands behind their numbers. If one fails, the others are ended, and its message and code come last.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tinyonn::interrupt::Signal;
use tinyonn::ranks::address::meeting_place;
use tinyonn::ranks::launcher::PARENT;
use tinyonn::ranks::{Launched, Launcher, Token};
use tinyonn::{Error, Result};

use crate::children::end_with_parent;
use crate::interrupt;

/// Between two looks at the ranks.
const PAUSE: Duration = Duration::from_millis(50);
/// A line of another rank than 0 is held back for so long: if a rank has failed by then, what the others say of it is no news.
const HELD: Duration = Duration::from_millis(300);
/// Once a rank has failed the others have so long to end by themselves.
const GRACE: Duration = Duration::from_secs(10);

/// A line that a rank wrote on standard error, and when.
type Line = (usize, String, Instant);

/// Starts `count` ranks and waits for them.
///
/// # Errors
/// A rank that cannot be started.
pub fn run(count: usize) -> Result<ExitCode> {
    let asked = interrupt();
    let _heeded = asked.heed();
    let (token, job) = (Token::random(), free_job(count)?);
    let (sender, lines) = channel();
    let mut ranks: Vec<Child> = Vec::with_capacity(count);
    for rank in 0..count {
        match start((rank, count), &job, &token, &sender) {
            Ok(child) => ranks.push(child),
            Err(error) => {
                end(&mut ranks);
                return Err(error);
            }
        }
    }
    drop(sender);
    let (mut passed_on, mut held, mut last) = (false, Vec::<Line>::new(), vec![String::new(); count]);
    let mut codes: Vec<Option<u8>> = vec![None; count];
    let mut failed: Option<(usize, Instant)> = None;
    while codes.iter().any(Option::is_none) {
        for (rank, child) in ranks.iter_mut().enumerate().filter(|(rank, _)| codes[*rank].is_none()).collect::<Vec<_>>()
        {
            codes[rank] = child.try_wait().map_err(|e| Error::io(format!("rank {rank}"), e))?.map(code);
            if codes[rank].is_some_and(|code| code != 0) && failed.is_none() {
                failed = Some((rank, Instant::now()));
            }
        }
        if let Some(signal) = asked.requested().filter(|_| !passed_on) {
            passed_on = true;
            pass_on(&ranks, signal);
        }
        if failed.is_some_and(|(_, when)| when.elapsed() > GRACE) {
            end(&mut ranks);
        }
        hear(&lines, &mut held, &mut last, failed.is_some());
        thread::sleep(PAUSE);
    }
    hear(&lines, &mut held, &mut last, failed.is_some());
    let Some((rank, _)) = failed else { return Ok(ExitCode::SUCCESS) };
    let code = codes[rank].unwrap_or(1);
    let said = if last[rank].is_empty() { String::new() } else { format!(": {}", last[rank]) };
    say(&format!("rank {rank} of {count} ended first, with code {code}{said}"));
    Ok(ExitCode::from(code))
}

fn start((rank, count): (usize, usize), job: &str, token: &Token, lines: &Sender<Line>) -> Result<Child> {
    let program = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
    let refused = |e| Error::io(&program, e);
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1)).process_group(0).stdin(Stdio::piped());
    command.env(PARENT[0], rank.to_string()).env(PARENT[1], count.to_string()).env(PARENT[2], job);
    if rank > 0 {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut child = command.spawn().map_err(refused)?;
    if let Some(pipe) = &mut child.stdin {
        // One that has ended already is found where ranks are waited for.
        let _ = writeln!(pipe, "{}", token.hex());
    }
    if let Some(said) = child.stderr.take() {
        let lines = lines.clone();
        let listen = move || {
            for line in BufReader::new(said).lines().map_while(std::io::Result::ok) {
                if lines.send((rank, line, Instant::now())).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name(format!("rank {rank}")).spawn(listen).map_err(refused)?;
    }
    Ok(child)
}

/// A name for the job whose port is free now.
fn free_job(count: usize) -> Result<String> {
    let launched = |job: &str| Launched {
        launcher: Launcher::Parent,
        rank: 0,
        ranks: count,
        local_rank: 0,
        local_ranks: count,
        job: job.to_owned(),
        restart: 0,
        hosts: Vec::new(),
    };
    let mut job = String::new();
    for _ in 0..64 {
        job = format!("{}-{}", std::process::id(), &Token::random().hex()[..8]);
        if TcpListener::bind(meeting_place(None, &launched(&job), &|_| None)?).is_ok() {
            break;
        }
    }
    Ok(job)
}

fn hear(lines: &Receiver<Line>, held: &mut Vec<Line>, last: &mut [String], failed: bool) {
    for line in lines.try_iter() {
        if !line.1.trim().is_empty() {
            last[line.0].clone_from(&line.1);
        }
        held.push(line);
    }
    if failed {
        held.clear();
    }
    let due = held.iter().take_while(|(_, _, when)| when.elapsed() > HELD).count();
    for (rank, line, _) in held.drain(..due) {
        say(&format!("rank {rank}: {line}"));
    }
}

/// By the shell's own `kill`: the standard library sends KILL alone.
fn pass_on(ranks: &[Child], signal: Signal) {
    let name = match signal {
        Signal::Interrupt => "INT",
        Signal::Requeue => "USR1",
        _ => "TERM",
    };
    let mut kill = Command::new("sh");
    kill.arg("-c").arg(format!("kill -{name} \"$@\"")).arg("kill");
    // One that has ended and is not waited for yet takes no harm.
    let _ = kill.args(ranks.iter().map(|rank| rank.id().to_string())).stderr(Stdio::null()).status();
}

fn end(ranks: &mut [Child]) {
    for rank in ranks {
        let _ = rank.kill();
    }
}

/// As a shell has it: 128 + the number of the signal that ended it.
fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The token that the parent of this rank sent. From here on this process ends when its parent has.
///
/// # Errors
/// No parent that sends one.
pub fn token_of_parent() -> Result<Token> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Error::io("standard input", e))?;
    let token = Token::parse(PARENT[0], &line).map_err(|_| {
        Error::setting(PARENT[0], "is set, and no parent sent a token", "unset it; `--gpus N` sets it for its ranks")
    })?;
    end_with_parent();
    Ok(token)
}

/// A line for whoever still reads.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
