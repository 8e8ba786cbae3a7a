//! Ranks that have met stay connected: each is heard every two seconds. One whose connection closes, or that is silent for ten seconds, is named to all.
//!
//! NCCL does not notice a peer that was killed on the same host: its collectives wait for ever. So whoever hears that a rank is lost has to end.
//!
//! ```no_run
//! use tinyonn::ranks::{Connected, Watched, end_now};
//!
//! /// Trains while the others are heard, and says so where it cannot go on.
//! fn train(connected: Connected) -> tinyonn::Result<()> {
//!     if connected.gift().is_empty() {
//!         connected.leave(); // nothing to compute by
//!         return Ok(());
//!     }
//!     let watched: Watched = connected.watch(|lost| end_now(&lost, 1))?;
//!     watched.fail("the disk is full");
//!     Ok(())
//! }
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::io::{ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::message::{Link, Message};
use crate::files::abandon;
use crate::{Error, Result};

/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_secs(2);
/// Who is not heard for so long is lost.
pub(super) const SILENT: Duration = Duration::from_secs(10);

/// Connected to the other ranks: rank 0 to all, all others to rank 0.
#[derive(Debug)]
pub struct Connected {
    rank: usize,
    links: Vec<(usize, Link)>,
    gift: Vec<u8>,
}

impl Connected {
    pub(super) fn new(rank: usize, links: Vec<(usize, Link)>, gift: Vec<u8>) -> Self {
        Self { rank, links, gift }
    }

    /// What rank 0 gave all.
    #[must_use]
    pub fn gift(&self) -> &[u8] {
        &self.gift
    }

    /// Watches the other ranks until what is returned is dropped. `lost` is called once, from another thread, when a rank is lost or says that it cannot
    /// go on: it must end the process, whose main thread may wait for that rank.
    ///
    /// # Errors
    /// The system refuses threads or connections.
    pub fn watch(self, lost: impl Fn(Error) + Send + Sync + 'static) -> Result<Watched> {
        let refused = |e: std::io::Error| Error::setting("ranks", format!("cannot be watched: {e}"), "report this");
        let senders = self.links.iter().map(|(rank, link)| Ok((*rank, link.another()?)));
        let senders = senders.collect::<std::io::Result<Vec<_>>>().map_err(refused)?;
        let shared = Arc::new(Shared {
            rank: self.rank,
            senders: senders.into_iter().map(|(rank, link)| (rank, Mutex::new(link))).collect(),
            ended: AtomicBool::new(false),
            lost: Box::new(lost),
        });
        for (rank, link) in self.links {
            let shared = shared.clone();
            let listen = move || shared.listen(rank, link);
            thread::Builder::new().name(format!("rank {rank}")).spawn(listen).map_err(refused)?;
        }
        let beating = shared.clone();
        let beat = move || {
            while !beating.ended.load(Ordering::SeqCst) {
                beating.tell(&Message::Beat, None);
                thread::sleep(BEAT);
            }
        };
        thread::Builder::new().name("heartbeat".into()).spawn(beat).map_err(refused)?;
        Ok(Watched(shared))
    }

    /// Leaves without having computed anything.
    pub fn leave(mut self) {
        for (_, link) in &mut self.links {
            let _ = link.send(&Message::Leave);
        }
    }
}

/// Ends this process because a rank is lost, which `error` says: with one line on standard error and `code`. What was half written goes, and nothing is waited
/// for: the main thread may wait for that rank.
pub fn end_now(error: &Error, code: u8) -> ! {
    abandon(|_| {
        let _ = writeln!(std::io::stderr(), "error: {error}");
        signal_hook::low_level::exit(code.into())
    })
}

/// Ranks that are watched. Dropped, this rank has left: it is not missed.
pub struct Watched(Arc<Shared>);

impl Watched {
    /// Tells all that this rank cannot go on.
    pub fn fail(&self, problem: &str) {
        let remedy = "mend that, and start all ranks again";
        let (rank, problem, remedy) = (self.0.rank, problem.to_owned(), remedy.to_owned());
        self.0.ended.store(true, Ordering::SeqCst);
        self.0.tell(&Message::Lost { rank, problem, remedy }, None);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.0.ended.swap(true, Ordering::SeqCst) {
            self.0.tell(&Message::Leave, None);
        }
        for (_, link) in &self.0.senders {
            link.lock().unwrap_or_else(PoisonError::into_inner).close();
        }
    }
}

struct Shared {
    rank: usize,
    senders: Vec<(usize, Mutex<Link>)>,
    /// Nobody is missed any more.
    ended: AtomicBool,
    lost: Box<dyn Fn(Error) + Send + Sync>,
}

impl Shared {
    fn tell(&self, message: &Message, but: Option<usize>) {
        for (_, link) in self.senders.iter().filter(|(rank, _)| Some(*rank) != but) {
            // Who does not take it is found closed or silent where it is listened to.
            let _ = link.lock().unwrap_or_else(PoisonError::into_inner).send(message);
        }
    }

    fn listen(&self, rank: usize, mut link: Link) {
        let gone = loop {
            match link.receive(Instant::now() + SILENT) {
                Ok(Message::Leave) => return,
                Ok(Message::Lost { rank, problem, remedy }) => break (rank, problem, remedy),
                Ok(_) => {}
                Err(e) => {
                    let problem = match e.kind() {
                        ErrorKind::TimedOut => format!("was lost: nothing was heard of it for {} s", SILENT.as_secs()),
                        _ => "was lost: its connection closed".to_owned(),
                    };
                    break (rank, problem, "see what it said; what was saved last serves to go on".to_owned());
                }
            }
        };
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        let (lost, problem, remedy) = gone;
        self.tell(&Message::Lost { rank: lost, problem: problem.clone(), remedy: remedy.clone() }, Some(rank));
        (self.lost)(Error::rank(lost, problem, remedy));
    }
}
