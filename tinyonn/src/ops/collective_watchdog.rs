//! A collective that is queued and never done: NCCL waits for ever for a rank that lives and hangs, and says nothing.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result::event;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent;

use crate::{Error, Result};

/// Between two looks at whether collectives go on.
const LOOK: Duration = Duration::from_millis(100);

/// Called when a collective hangs; it must end the process, whose main thread waits.
pub(crate) type Hung = Arc<dyn Fn(Error) + Send + Sync>;

/// Looks after the collectives, in a thread of its own: one that was queued and is not done after a time is told of.
pub(super) struct Watchdog {
    /// The name of each collective; the thread ends when this is gone.
    queued: Option<Sender<&'static str>>,
    thread: Option<JoinHandle<()>>,
}

/// An event of the context that it was made in, recorded behind the last collective.
struct Done(CUevent);

// SAFETY: the driver lets every thread in which the context is bound ask for an event.
#[allow(unsafe_code)]
unsafe impl Send for Done {}

impl Watchdog {
    pub(super) fn start(
        device: &CudaDevice,
        done: CUevent,
        rank: usize,
        (limit, hung): (Duration, Hung),
    ) -> Result<Self> {
        let ((queued, names), done) = (channel(), Done(done));
        let context = device.cuda_stream().context().clone();
        let watch = move || {
            if context.bind_to_thread().is_ok() {
                done.watch(&names, rank, limit, &hung);
            }
        };
        let refused = |e: std::io::Error| Error::setting("NCCL", format!("cannot be watched: {e}"), "report this");
        let thread = std::thread::Builder::new().name("collectives".into()).spawn(watch).map_err(refused)?;
        Ok(Self { queued: Some(queued), thread: Some(thread) })
    }

    /// Something is about to be queued.
    pub(super) fn begins(&self, what: &'static str) {
        // A thread that has ended has told of a hang: the process ends.
        let _ = self.queued.as_ref().map(|queued| queued.send(what));
    }
}

impl Done {
    fn watch(&self, names: &Receiver<&'static str>, rank: usize, limit: Duration, hung: &Hung) {
        let (mut what, mut number, mut since) = ("", 0u64, Instant::now());
        loop {
            match names.recv_timeout(LOOK) {
                Ok(name) => (what, number, since) = (name, number + 1, Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if self.is_over() => since = Instant::now(),
                Err(RecvTimeoutError::Timeout) if since.elapsed() > limit => {
                    let problem =
                        format!("has waited for {} s to {what} (its collective number {number})", limit.as_secs());
                    return hung(Error::rank(rank, problem, "see which rank hangs; --collective-timeout is the limit"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    #[allow(unsafe_code)]
    fn is_over(&self) -> bool {
        // SAFETY: the event lives until this thread has ended: whoever made it drops the watchdog first.
        unsafe { event::query(self.0) }.is_ok()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.queued = None;
        if let Some(thread) = self.thread.take() {
            // It looks now and then, and then ends.
            let _ = thread.join();
        }
    }
}
