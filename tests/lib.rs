//! The test binary is `suite`; this library only gives the package a target, and the examples of the README a compiler.

/// The README, whose examples are tested like any other documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadMe;
