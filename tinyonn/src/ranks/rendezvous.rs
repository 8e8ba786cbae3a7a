//! How the ranks of a job meet: rank 0 listens, the others come; each proves that it has the [`Token`], says which rank of which job it is, and what
//! it was given. What differs is refused before anything is computed, by rank and field; so is a rank that does not come.
//!
//! Whoever connects is served beside all others and has two seconds to say who it is: strangers are dropped, and delay nobody longer. The token itself
//! never passes: rank 0 sends a challenge, and the answer covers what is said with it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::message::{Hello, Link, MAGIC, Message};
use super::watch::{BEAT, Connected, SILENT};
use super::{Launched, Token};
use crate::differing::differing;
use crate::{Error, Result};

/// What whoever connects has to say who it is.
const GREETING: Duration = Duration::from_secs(2);
/// Connections that are greeted at a time; more are dropped at once.
const SERVED: usize = 256;
/// Between two looks at who has come, and between two tries to find rank 0.
const PAUSE: Duration = Duration::from_millis(50);

/// What a rank says of itself when it comes.
#[derive(Clone, Debug, Default)]
pub struct Greeting {
    /// What must be alike on all ranks: program, settings, text, checkpoint, types.
    pub facts: Value,
    /// What may differ, which rank 0 says in a warning: the kind of card.
    pub notes: Value,
    /// What no two ranks may have: a card, by host and place.
    pub own: Option<String>,
}

/// A meeting: where, of whom, and for how long.
///
/// ```
/// use std::time::Duration;
/// use serde_json::json;
/// use tinyonn::ranks::launcher::{Launched, Launcher};
/// use tinyonn::ranks::{Connected, Greeting, Meeting, Token, Watched, meet};
///
/// let token = Token::random();
/// let place = format!("127.0.0.1:{}", std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port());
/// let joined = |rank: usize| -> tinyonn::Result<Vec<u8>> {
///     let launched = Launched {
///         launcher: Launcher::Parent, rank, ranks: 2, local_rank: rank, local_ranks: 2, job: "a".into(), restart: 0, hosts: vec![],
///     };
///     let (limit, gift) = (Duration::from_secs(20), &|| Ok(vec![7]));
///     let meeting = Meeting { place: &place, launched: &launched, token: &token, limit, shared: None, gift };
///     // What must be alike, what may differ, and what no two may have.
///     let greeting = Greeting { facts: json!({ "seed": 0 }), notes: json!({}), own: Some(format!("card {rank}")) };
///     let connected: Connected = meet(&meeting, &greeting)?;
///     let gift = connected.gift().to_vec();
///     let _watched: Watched = connected.watch(|lost| eprintln!("{lost}"))?; // while it trains
///     Ok(gift)
/// };
/// let both = std::thread::scope(|scope| {
///     let ranks = [0, 1].map(|rank| scope.spawn(move || joined(rank)));
///     ranks.map(|rank| rank.join().expect("it ends"))
/// });
/// assert_eq!(both.into_iter().collect::<tinyonn::Result<Vec<_>>>()?, [[7], [7]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct Meeting<'a> {
    /// `HOST:PORT` where rank 0 listens.
    pub place: &'a str,
    /// Which rank this is.
    pub launched: &'a Launched,
    /// What all of them know.
    pub token: &'a Token,
    /// How long is waited for all to come.
    pub limit: Duration,
    /// A folder that all must see: rank 0 writes a word there.
    pub shared: Option<&'a Path>,
    /// What rank 0 gives all: NCCL's identifier of a communicator.
    pub gift: &'a dyn Fn() -> Result<Vec<u8>>,
}

/// Meets the other ranks; what is returned is connected to them.
///
/// # Errors
/// [`Error::Rank`]: of ranks that do not come, that were given something else, that share a card, or that do not see the shared folder, all ranks say the
/// same. A place where nobody can listen, or that another program has.
pub fn meet(meeting: &Meeting<'_>, greeting: &Greeting) -> Result<Connected> {
    let Launched { rank, ranks, job, restart, .. } = meeting.launched;
    let hello = Hello {
        rank: *rank,
        ranks: *ranks,
        job: job.clone(),
        restart: *restart,
        facts: greeting.facts.clone(),
        notes: greeting.notes.clone(),
        own: greeting.own.clone(),
    };
    if *rank == 0 { host(meeting, &hello) } else { join(meeting, &hello) }
}

/// Rank 0's part.
fn host(meeting: &Meeting<'_>, own: &Hello) -> Result<Connected> {
    let unheard = |e: &io::Error| {
        let problem = match e.kind() {
            ErrorKind::AddrInUse => format!("{} is taken by another program", meeting.place),
            _ => format!("rank 0 cannot listen at {}: {e}", meeting.place),
        };
        Error::setting("--rendezvous", problem, "give all ranks --rendezvous HOST:PORT of a free port of rank 0's host")
    };
    let listener = TcpListener::bind(meeting.place).map_err(|e| unheard(&e))?;
    listener.set_nonblocking(true).map_err(|e| unheard(&e))?;
    let word = meeting.shared.map(Word::write).transpose()?;
    let gift = (meeting.gift)()?;
    let mut come = gather(meeting, own, &listener)?;
    let outcome = compare(own, &come).and_then(|()| welcome(&mut come, word.as_ref(), gift.clone()));
    match outcome {
        Ok(()) => Ok(Connected::new(0, come.into_iter().map(|(rank, (link, _))| (rank, link)).collect(), gift)),
        Err(error) => Err(told(&mut come, error)),
    }
}

type Come = BTreeMap<usize, (Link, Hello)>;

/// All other ranks, by their numbers.
fn gather(meeting: &Meeting<'_>, own: &Hello, listener: &TcpListener) -> Result<Come> {
    let deadline = Instant::now() + meeting.limit;
    let (sender, greeted) = channel();
    let served = Arc::new(AtomicUsize::new(0));
    let (mut come, mut beaten) = (Come::new(), Instant::now());
    while come.len() + 1 < own.ranks {
        for _ in 0..SERVED {
            let Ok((stream, _)) = listener.accept() else { break };
            if served.fetch_add(1, Ordering::SeqCst) >= SERVED {
                served.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            serve(stream, meeting.token.clone(), sender.clone(), served.clone());
        }
        if let Err(error) = take_in(&greeted, own, &mut come) {
            return Err(told(&mut come, error));
        }
        let gone = come.iter().find(|(_, (link, _))| link.is_closed()).map(|(rank, _)| *rank);
        if let Some(rank) = gone {
            come.remove(&rank);
            let problem = "came, and was lost before all had met";
            return Err(told(&mut come, Error::rank(rank, problem, "see what it said, and start all ranks again")));
        }
        if beaten.elapsed() >= BEAT {
            beaten = Instant::now();
            // Who does not take it is found closed above.
            come.values_mut().for_each(|(link, _)| drop(link.send(&Message::Beat)));
        }
        if Instant::now() >= deadline {
            let missing: Vec<usize> = (1..own.ranks).filter(|rank| !come.contains_key(rank)).collect();
            let others = match missing.len() {
                1 => String::new(),
                _ => format!(", nor has {}", list(&missing[1..])),
            };
            let problem = format!(
                "has not come to {} within {} s{others} ({} of {} ranks are there)",
                meeting.place,
                meeting.limit.as_secs_f64(),
                come.len() + 1,
                own.ranks
            );
            let remedy = "see what it said; all ranks must reach that host and port";
            return Err(told(&mut come, Error::rank(missing[0], problem, remedy)));
        }
    }
    Ok(come)
}

fn list(ranks: &[usize]) -> String {
    let names: Vec<String> = ranks.iter().map(|rank| format!("rank {rank}")).collect();
    names.join(", ")
}

/// Tells all that are there why they do not begin.
fn told(come: &mut Come, error: Error) -> Error {
    if let Error::Rank { rank, problem, remedy } = &error {
        let (problem, remedy) = (problem.clone(), remedy.clone());
        let lost = Message::Lost { rank: *rank, problem, remedy };
        come.values_mut().for_each(|(link, _)| drop(link.send(&lost)));
    }
    error
}

/// Hears who it is, in a thread of its own.
fn serve(stream: TcpStream, token: Token, sender: Sender<(Link, Hello)>, served: Arc<AtomicUsize>) {
    let left = served.clone();
    let greet = move || {
        // Who is no rank of this job is dropped without a word: an answer would tell strangers what listens here.
        if let Ok(greeted) = greeted(stream, &token) {
            let _ = sender.send(greeted);
        }
        served.fetch_sub(1, Ordering::SeqCst);
    };
    if thread::Builder::new().name("greeting".into()).stack_size(1 << 18).spawn(greet).is_err() {
        left.fetch_sub(1, Ordering::SeqCst);
    }
}

fn greeted(stream: TcpStream, token: &Token) -> io::Result<(Link, Hello)> {
    let deadline = Instant::now() + GREETING;
    let mut link = Link::new(stream)?;
    let challenge: [u8; 16] = rand::random();
    link.write(&[&MAGIC[..], &challenge].concat())?;
    let mut answer = [0; 32];
    link.read(&mut answer, deadline)?;
    let said = link.read_long(deadline)?;
    if !token.accepts(&answer, &challenge, &said) {
        return Err(ErrorKind::PermissionDenied.into());
    }
    Ok((link, serde_json::from_slice(&said)?))
}

/// Takes in those who have said who they are.
fn take_in(greeted: &Receiver<(Link, Hello)>, own: &Hello, come: &mut Come) -> Result<()> {
    loop {
        let (mut link, hello) = match greeted.recv_timeout(PAUSE) {
            Ok(greeted) => greeted,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let rank = hello.rank;
        let of_another = |what: &str, is: &str, here: &str| {
            let problem = format!("is of {what} {is}, and rank 0 of {here}");
            Error::rank(rank, problem, "end what is left of the earlier start, and start all ranks again")
        };
        // An earlier start that is not gone yet is none of ours.
        let stale = if hello.job != own.job {
            Some(of_another("job", &hello.job, &own.job))
        } else if hello.restart != own.restart {
            Some(of_another("start", &hello.restart.to_string(), &own.restart.to_string()))
        } else {
            None
        };
        let twice = (rank == 0 || come.contains_key(&rank))
            .then(|| Error::rank(rank, "came twice", "start each rank once: see how many the launcher starts"));
        if let Some(error) = stale.or(twice) {
            tracing::warn!("{error}");
            if let Error::Rank { rank, problem, remedy } = error {
                let _ = link.send(&Message::Lost { rank, problem, remedy });
            }
            continue;
        }
        if hello.ranks != own.ranks || rank >= own.ranks {
            let problem = format!("is one of {} ranks, and rank 0 one of {}", hello.ranks, own.ranks);
            come.insert(rank, (link, hello));
            return Err(Error::rank(rank, problem, "start all ranks by one command of the launcher"));
        }
        come.insert(rank, (link, hello));
    }
}

/// Refuses ranks that were given something else than rank 0, and two that share a card.
fn compare(own: &Hello, come: &Come) -> Result<()> {
    let mut owners: BTreeMap<&str, usize> = own.own.as_deref().map(|own| (own, 0)).into_iter().collect();
    for (rank, (_, hello)) in come {
        let unlike =
            |(name, here, there): (String, &Value, &Value)| format!("`{name}` is {there}, and {here} on rank 0");
        let said = |a, b| differing(a, b).into_iter().map(unlike).collect::<Vec<String>>();
        let found = said(&own.facts, &hello.facts);
        if !found.is_empty() {
            let problem = format!("was given something else: {}", found.join("; "));
            return Err(Error::rank(*rank, problem, "give all ranks the same program, settings and files"));
        }
        for note in said(&own.notes, &hello.notes) {
            tracing::warn!("rank {rank}: {note}");
        }
        if let Some(before) = hello.own.as_deref().and_then(|own| owners.insert(own, *rank)) {
            let problem =
                format!("computes on the card of rank {before} ({})", hello.own.as_deref().unwrap_or_default());
            return Err(Error::rank(*rank, problem, "start as many ranks on a host as it has cards"));
        }
    }
    Ok(())
}

/// Gives all what they need and has them begin.
fn welcome(come: &mut Come, word: Option<&Word<'_>>, gift: Vec<u8>) -> Result<()> {
    let lost = |rank: usize| {
        Error::rank(rank, "was lost before the first step", "see what it said, and start all ranks again")
    };
    let message = Message::Welcome { word: word.map(|word| word.text.clone()), gift };
    for (rank, (link, _)) in come.iter_mut() {
        link.send(&message).map_err(|_| lost(*rank))?;
    }
    for (rank, (link, _)) in come.iter_mut() {
        match link.receive(Instant::now() + SILENT) {
            Ok(Message::Ready) => {}
            Ok(Message::Lost { problem, remedy, .. }) => return Err(Error::rank(*rank, problem, remedy)),
            _ => return Err(lost(*rank)),
        }
    }
    for (rank, (link, _)) in come.iter_mut() {
        link.send(&Message::Begin).map_err(|_| lost(*rank))?;
    }
    Ok(())
}

/// The part of every other rank.
fn join(meeting: &Meeting<'_>, hello: &Hello) -> Result<Connected> {
    let mut link = find(meeting, hello)?;
    let mut gift = Vec::new();
    loop {
        let gone = |_| Error::rank(0, "was lost before all had met", "see what it said, and start all ranks again");
        match link.receive(Instant::now() + SILENT).map_err(gone)? {
            Message::Beat | Message::Ready | Message::Leave => {}
            Message::Lost { rank, problem, remedy } => return Err(Error::rank(rank, problem, remedy)),
            Message::Welcome { word, gift: given } => {
                gift = given;
                let seen = word.zip(meeting.shared).map_or(Ok(()), |(word, dir)| Word::check(dir, &word, hello.rank));
                if let Err(Error::Rank { rank, problem, remedy }) = &seen {
                    let (problem, remedy) = (problem.clone(), remedy.clone());
                    let _ = link.send(&Message::Lost { rank: *rank, problem, remedy });
                }
                seen?;
                link.send(&Message::Ready).map_err(gone)?;
            }
            Message::Begin => return Ok(Connected::new(hello.rank, vec![(0, link)], gift)),
        }
    }
}

/// Rank 0, once it listens.
fn find(meeting: &Meeting<'_>, hello: &Hello) -> Result<Link> {
    let deadline = Instant::now() + meeting.limit;
    let said = serde_json::to_vec(hello).map_err(|e| Error::setting("settings", e.to_string(), "report this"))?;
    loop {
        let error = match greet(meeting, &said) {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            let problem =
                format!("was not found at {} within {} s: {error}", meeting.place, meeting.limit.as_secs_f64());
            return Err(Error::rank(0, problem, "see what it said; all ranks must reach that host and port"));
        }
        thread::sleep(PAUSE);
    }
}

fn greet(meeting: &Meeting<'_>, said: &[u8]) -> io::Result<Link> {
    let mut found = Err(ErrorKind::NotFound.into());
    for address in meeting.place.to_socket_addrs()? {
        found = TcpStream::connect_timeout(&address, GREETING);
        if found.is_ok() {
            break;
        }
    }
    let mut link = Link::new(found?)?;
    let mut first = [0; 24];
    link.read(&mut first, Instant::now() + GREETING)?;
    let (magic, challenge) = first.split_at(8);
    let (true, Ok(challenge)) = (magic == MAGIC, <[u8; 16]>::try_from(challenge)) else {
        return Err(io::Error::new(ErrorKind::InvalidData, "another program listens there"));
    };
    link.write(&meeting.token.answer(&challenge, said))?;
    link.write_long(said)?;
    Ok(link)
}

/// A file that rank 0 writes and all must read; removed when it is dropped.
struct Word<'a> {
    dir: &'a Path,
    text: String,
}

impl<'a> Word<'a> {
    fn write(dir: &'a Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let word = Self { dir, text: Token::random().hex() };
        let path = Self::path(dir, &word.text);
        std::fs::write(&path, &word.text).map_err(|e| Error::io(&path, e))?;
        Ok(word)
    }

    fn path(dir: &Path, text: &str) -> std::path::PathBuf {
        dir.join(format!(".met-{}", &text[..8]))
    }

    fn check(dir: &Path, text: &str, rank: usize) -> Result<()> {
        let read = text.get(..8).and_then(|_| std::fs::read_to_string(Self::path(dir, text)).ok());
        if read.as_deref() == Some(text) {
            return Ok(());
        }
        let problem = format!("does not see in {} what rank 0 wrote there", dir.display());
        Err(Error::rank(rank, problem, "give all ranks one --out on a file system that their hosts share"))
    }
}

impl Drop for Word<'_> {
    fn drop(&mut self) {
        // An empty file too many does no harm.
        let _ = std::fs::remove_file(Self::path(self.dir, &self.text));
    }
}
