//! What NVRTC makes of a kernel's text, kept on disk: a program that begins again need not compile.
//!
//! A file is named by the SHA-256 of the text, the architecture and NVRTC's version, and lies in `tinyonn/kernels` under `$XDG_CACHE_HOME` or `~/.cache`;
//! without either, nothing is kept. Its first line has the SHA-256 of the rest: what does not fit is compiled again. A cache that cannot be written is
//! none, and no error.

use std::path::PathBuf;

use crate::files::{self, Digest};

/// The place of an outcome.
pub(super) struct Entry(Option<PathBuf>);

impl Entry {
    /// Of `text` for `architecture`, by this version of the compiler, in a folder of caches.
    pub(super) fn new(cache: Option<PathBuf>, text: &str, architecture: &str, version: (i32, i32)) -> Self {
        let mut digest = Digest::new();
        for part in [text, architecture, &format!("{version:?}")] {
            digest.text(part);
        }
        Self(cache.map(|cache| cache.join("tinyonn/kernels").join(format!("{}.ptx", digest.hex()))))
    }

    /// What was kept, if it is whole.
    pub(super) fn read(&self) -> Option<String> {
        let kept = std::fs::read_to_string(self.0.as_ref()?).ok()?;
        let (sum, ptx) = kept.strip_prefix("// ")?.split_once('\n')?;
        (sum == of(ptx)).then(|| ptx.to_owned())
    }

    /// Keeps it.
    pub(super) fn write(&self, ptx: &str) {
        let Some(path) = &self.0 else { return };
        if path.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok()) {
            // Who cannot keep it compiles it again.
            let _ = files::write(path, format!("// {}\n{ptx}", of(ptx)));
        }
    }
}

/// Where caches of this user lie.
#[cfg(feature = "cuda")]
pub(super) fn folder() -> Option<PathBuf> {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    home("XDG_CACHE_HOME").or_else(|| home("HOME").map(|home| home.join(".cache")))
}

fn of(ptx: &str) -> String {
    let mut digest = Digest::new();
    digest.text(ptx);
    digest.hex()
}

#[cfg(test)]
mod tests {
    use super::Entry;
    use crate::{Error, Result};

    #[test]
    fn what_was_kept_comes_back_whole_or_not_at_all() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", e))?;
        let entry = |text| Entry::new(Some(dir.path().to_owned()), text, "compute_80", (13, 0));
        let one = entry("one");
        assert_eq!(one.read(), None);
        one.write("ptx of one\n");
        assert_eq!(one.read().as_deref(), Some("ptx of one\n"));
        assert_eq!(entry("two").read(), None);
        let path = one.0.as_ref().ok_or_else(|| Error::setting("cache", "has no place", "give one"))?;
        std::fs::write(path, "// 00\nptx of one\n").map_err(|e| Error::io(path, e))?;
        assert_eq!(one.read(), None);
        let nowhere = Entry::new(None, "one", "compute_80", (13, 0));
        nowhere.write("ptx");
        assert_eq!(nowhere.read(), None);
        Ok(())
    }
}
