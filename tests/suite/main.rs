//! The whole suite: one binary, a module a subject.

mod metrics;
mod report;
