//! Several processes that train one model: how they are started, how they meet, and who owns what.

mod launchers;
#[cfg(unix)]
mod meeting;
mod owners;
mod resumed;
mod training;
