//! The whole suite: one binary, a module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checkpoint;
mod config;
mod data;
mod gradients;
mod imaging;
mod labels;
mod metrics;
mod ops;
mod partition;
mod report;
mod tiny;
mod variants;
