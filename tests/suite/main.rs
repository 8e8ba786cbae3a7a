//! The whole suite: one binary, a module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checkpoint;
mod config;
mod data;
mod gradients;
mod imaging;
mod metrics;
mod ops;
mod report;
mod tiny;
mod variants;
