//! The whole suite: one binary, a module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checkpoint;
mod config;
mod data;
mod gradients;
mod lossless;
mod metrics;
mod models;
mod ops;
mod parity;
mod report;
mod settings;
mod upcycle;
mod variants;
mod verify;
