//! The test binary is `suite`; this empty library only gives the package a target.
