//! A collective that is queued and never done: NCCL waits for ever for a rank that lives and hangs, and says nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result::event;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent;

use crate::{Error, Result};

/// Between two looks at whether collectives go on.
const LOOK: Duration = Duration::from_millis(100);

/// Called when a collective hangs; it must end the process, whose main thread waits.
pub(crate) type Hung = Arc<dyn Fn(Error) + Send + Sync>;

/// Looks after the collectives: one that was queued and is not done after a time is told of. NCCL itself waits for ever for a rank that lives and hangs.
pub(super) struct Watchdog {
    queued: Arc<Queued>,
    thread: Option<JoinHandle<()>>,
}

/// What was queued last.
struct Queued {
    /// How many collectives there were.
    number: AtomicU64,
    what: Mutex<&'static str>,
    ended: AtomicBool,
    /// Recorded behind the last of them.
    done: Done,
}

/// An event of the context that it was made in.
struct Done(CUevent);

// SAFETY: the driver lets every thread in which the context is bound ask for an event.
#[allow(unsafe_code)]
unsafe impl Send for Done {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Done {}

impl Watchdog {
    pub(super) fn start(
        device: &CudaDevice,
        done: CUevent,
        rank: usize,
        (limit, hung): (Duration, Hung),
    ) -> Result<Self> {
        let queued = Arc::new(Queued {
            number: AtomicU64::new(0),
            what: Mutex::new(""),
            ended: AtomicBool::new(false),
            done: Done(done),
        });
        let (watched, context) = (queued.clone(), device.cuda_stream().context().clone());
        let watch = move || {
            if context.bind_to_thread().is_ok() {
                watched.watch(rank, limit, &hung);
            }
        };
        let refused = |e: std::io::Error| Error::setting("NCCL", format!("cannot be watched: {e}"), "report this");
        let thread = std::thread::Builder::new().name("collectives".into()).spawn(watch).map_err(refused)?;
        Ok(Self { queued, thread: Some(thread) })
    }

    /// Something is about to be queued.
    pub(super) fn begins(&self, what: &'static str) {
        *self.queued.what.lock().unwrap_or_else(PoisonError::into_inner) = what;
        self.queued.number.fetch_add(1, Ordering::SeqCst);
    }
}

impl Queued {
    fn watch(&self, rank: usize, limit: Duration, hung: &Hung) {
        let (mut seen, mut since) = (0, Instant::now());
        while !self.ended.load(Ordering::SeqCst) {
            sleep(LOOK);
            let number = self.number.load(Ordering::SeqCst);
            if number != seen || self.is_done() {
                (seen, since) = (number, Instant::now());
            } else if since.elapsed() > limit {
                let what = *self.what.lock().unwrap_or_else(PoisonError::into_inner);
                let problem =
                    format!("has waited for {} s to {what} (its collective number {number})", limit.as_secs());
                return hung(Error::rank(rank, problem, "see which rank hangs; --collective-timeout is the limit"));
            }
        }
    }

    #[allow(unsafe_code)]
    fn is_done(&self) -> bool {
        // SAFETY: the event lives until this thread has ended: whoever made it drops this first.
        unsafe { event::query(self.done.0) }.is_ok()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.queued.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It looks now and then, and then ends.
            let _ = thread.join();
        }
    }
}
