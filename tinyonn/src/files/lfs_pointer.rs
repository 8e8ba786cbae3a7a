//! What stands in the place of a file that `git lfs` did not fetch: a few lines of text.

/// How it begins.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// What it is.
pub(crate) const IS_LFS_POINTER: &str = "is a Git LFS pointer: the content itself was not downloaded";
/// What to do about it.
pub(crate) const PULL: &str = "run `git lfs pull` where it came from";
