//! The whole suite: one binary, a module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adamw;
mod checkpoint;
mod config;
mod data;
mod gradients;
mod imaging;
mod labels;
mod lossless;
mod metrics;
mod models;
mod ops;
mod parity;
mod partition;
mod report;
mod router_fit;
mod settings;
mod smk;
mod tiny;
mod training;
mod upcycle;
mod variants;
mod verify;
