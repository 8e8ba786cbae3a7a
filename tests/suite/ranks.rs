//! Several processes that train one model: how they are started, and how they meet.

mod launchers;
#[cfg(unix)]
mod meeting;
