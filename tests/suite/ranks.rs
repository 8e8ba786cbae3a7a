//! Several processes that train one model: how they are started, how they meet, and who owns what.

mod launchers;
#[cfg(unix)]
mod meeting;
#[cfg(feature = "cuda")]
mod over_nccl;
mod owners;
mod resumed;
mod training;
