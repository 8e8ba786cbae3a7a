//! The signals that ask a program to stop.

use std::fmt;

/// What asked a program to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: `kill`, Slurm, a container that is stopped.
    Terminate,
    /// SIGUSR1: Slurm, some time before a job's time is up (`--signal=USR1@120`).
    Requeue,
}

impl Signal {
    /// What a shell shows of a program that such a signal ended, 128 + its number: 130 or 143; 85 asks whoever started it to queue it again.
    ///
    /// ```
    /// use tinyonn::interrupt::Signal;
    /// assert_eq!((Signal::Interrupt.exit_code(), Signal::Terminate.exit_code()), (130, 143));
    /// assert_eq!(Signal::Requeue.exit_code(), 85);
    /// ```
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::Requeue => 85,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Requeue => "SIGUSR1",
        })
    }
}
