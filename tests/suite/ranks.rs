//! Several processes that train one model or read one text: how they are started, how they meet, who owns what, and what they bring together.

mod gathered;
mod launchers;
#[cfg(unix)]
mod meeting;
#[cfg(feature = "cuda")]
mod over_nccl;
mod owners;
mod resumed;
mod training;
