//! Ctrl-C, TERM and USR1: a run is asked to stop where it can go on later, and ends at once if it is asked again.
//!
//! The library never takes a signal over by itself: a program's `main` does, by [`Interrupt::on_signals`], and gives the handle to the loops it calls.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::files::{Abandoned, abandon};
pub use crate::signal::Signal;
use crate::{Error, Result};

/// Whether a run is asked to stop. Copies are one and the same; one that nobody asks (the default) never stops anything.
///
/// A loop that can go on later takes [`heed`](Self::heed) for as long as it runs, and looks at [`requested`](Self::requested) at each step
/// boundary, behind its last step too: then it saves and returns [`Error::interrupted`], which says what was saved and how to go on. While no
/// such loop runs the first signal ends the program at once.
///
/// ```
/// use tinyonn::interrupt::{Interrupt, Signal};
///
/// fn train(from: u64, interrupt: &Interrupt) -> tinyonn::Result<()> {
///     let _heeded = interrupt.heed();
///     for done in from + 1..=100 {
///         // … a step …
///         if let Some(signal) = interrupt.requested() {
///             // … save …
///             let saved = format!("step {done} of 100 is saved");
///             return Err(tinyonn::Error::interrupted(signal, saved, "the same command goes on from it"));
///         }
///     }
///     Ok(())
/// }
///
/// let interrupt = Interrupt::default();
/// train(0, &interrupt)?;
/// interrupt.request(Signal::Interrupt);
/// let stopped = train(40, &interrupt).unwrap_err();
/// assert_eq!(stopped.to_string(), "stopped by SIGINT: step 41 of 100 is saved; the same command goes on from it");
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

/// Read at every step, written once: no lock.
#[derive(Debug, Default)]
struct Shared {
    interrupted: AtomicBool,
    terminated: AtomicBool,
    requeued: AtomicBool,
    /// Loops that look.
    heeding: AtomicUsize,
}

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGUSR1 over, for the rest of the program.
    ///
    /// The first one asks the loops that heed it to stop. A second one, or the first where no loop heeds it, ends the program at once,
    /// with [`Signal::exit_code`] and one line on standard error: files and folders that were not whole are removed ([`abandon`]).
    ///
    /// ```no_run
    /// use tinyonn::interrupt::Interrupt;
    ///
    /// fn main() -> tinyonn::Result<()> {
    ///     let interrupt = Interrupt::on_signals()?;
    ///     while interrupt.requested().is_none() {
    ///         // … a step, under `interrupt.heed()` …
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// The system refuses it.
    pub fn on_signals() -> Result<Self> {
        let refused = |e: std::io::Error| {
            Error::setting("signals", format!("cannot be taken over: {e}"), "do without Interrupt::on_signals")
        };
        let interrupt = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(refused)?;
        let asked = interrupt.clone();
        // A thread of its own may take locks, remove files and print, which a signal handler may not.
        let listen = move || {
            for number in signals.forever() {
                asked.receive(match number {
                    SIGINT => Signal::Interrupt,
                    SIGUSR1 => Signal::Requeue,
                    _ => Signal::Terminate,
                });
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(refused)?;
        Ok(interrupt)
    }

    fn receive(&self, signal: Signal) {
        if self.requested().is_none() && self.shared.heeding.load(Ordering::SeqCst) > 0 {
            self.request(signal);
            say(&format!("{signal}: stopping behind this step; once more, and it ends at once"));
            return;
        }
        abandon(|found| {
            say(&ended(signal, found));
            // As if the signal had not been taken over: nothing else is run, which might wait for a thread at work.
            signal_hook::low_level::exit(signal.exit_code().into())
        });
    }

    /// The signal that asked to stop, if one did.
    #[must_use]
    pub fn requested(&self) -> Option<Signal> {
        if self.shared.interrupted.load(Ordering::Relaxed) {
            Some(Signal::Interrupt)
        } else if self.shared.terminated.load(Ordering::Relaxed) {
            Some(Signal::Terminate)
        } else if self.shared.requeued.load(Ordering::Relaxed) {
            Some(Signal::Requeue)
        } else {
            None
        }
    }

    /// Asks to stop as `signal` does: for programs that hear of it in another way.
    pub fn request(&self, signal: Signal) {
        let flag = match signal {
            Signal::Interrupt => &self.shared.interrupted,
            Signal::Terminate => &self.shared.terminated,
            Signal::Requeue => &self.shared.requeued,
        };
        flag.store(true, Ordering::Relaxed);
    }

    /// Says that a loop looks at [`requested`](Self::requested), until what is returned is dropped.
    #[must_use = "a signal is heeded as long as this is kept"]
    pub fn heed(&self) -> Heeded {
        self.shared.heeding.fetch_add(1, Ordering::SeqCst);
        Heeded { shared: self.shared.clone() }
    }
}

/// Kept by a loop that stops when it is asked to: [`Interrupt::heed`].
///
/// ```
/// use tinyonn::interrupt::{Heeded, Interrupt};
///
/// struct Training {
///     interrupt: Interrupt,
///     _heeded: Heeded, // as long as the training lives, the first Ctrl-C does not end the program
/// }
///
/// let interrupt = Interrupt::default();
/// let training = Training { _heeded: interrupt.heed(), interrupt };
/// assert_eq!(training.interrupt.requested(), None);
/// ```
#[derive(Debug)]
pub struct Heeded {
    shared: Arc<Shared>,
}

impl Drop for Heeded {
    fn drop(&mut self) {
        self.shared.heeding.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The last line of a program that ends at once.
fn ended(signal: Signal, found: &Abandoned) -> String {
    let list = |paths: &[std::path::PathBuf]| {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    match (found.removed.as_slice(), found.left.as_slice()) {
        ([], []) => format!("ended by {signal}: nothing was half written; give the same command again"),
        (removed, []) => {
            format!("ended by {signal}: removed what was not whole, {}; give the same command again", list(removed))
        }
        (_, left) => {
            format!("ended by {signal}: could not remove what was not whole, {}; remove it yourself", list(left))
        }
    }
}

/// A line for whoever still reads.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
