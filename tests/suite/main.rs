//! The whole suite: one binary, a module a subject.

mod gradients;
mod ops;
