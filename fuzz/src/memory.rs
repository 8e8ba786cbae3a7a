//! A bound on what a parser may hold: a constant, and so many bytes for each byte of its input.

use std::alloc::System;
use std::sync::Once;

use cap::Cap;

/// Counts what is held, and refuses what goes beyond a bound: the process then aborts, which the fuzzer takes for a crash.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Runs `parse` on an input of `length` bytes; at no time may it hold more than `base` bytes and `each` for every byte of the input.
pub fn bounded(length: usize, (base, each): (usize, usize), parse: impl FnOnce()) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // What a panic has to say takes memory as well.
        let said = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |about| {
            let _ = ALLOCATOR.set_limit(usize::MAX);
            said(about);
        }));
    });
    let bound = ALLOCATOR.allocated() + base + each * length;
    // It cannot fail: no less than what is held is asked for.
    let _ = ALLOCATOR.set_limit(bound);
    parse();
    let _ = ALLOCATOR.set_limit(usize::MAX);
}

/// A megabyte.
pub const MB: usize = 1 << 20;
