//! Ctrl-C and TERM, taken over once for every program.

use std::sync::OnceLock;

use tinyonn::interrupt::Interrupt;

static INTERRUPT: OnceLock<Interrupt> = OnceLock::new();

/// The handle that the loops of this program are given. It is asked by SIGINT and SIGTERM once [`main_with`](crate::main_with) runs.
#[must_use]
pub fn interrupt() -> Interrupt {
    INTERRUPT
        .get_or_init(|| {
            Interrupt::on_signals().unwrap_or_else(|error| {
                // The program can do its work; signals end it as they always have.
                tracing::warn!("{error}");
                Interrupt::default()
            })
        })
        .clone()
}
