//! Where inputs are written, so that they are read as a user's files are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A folder of this process's own, in main memory where the system has a file system there.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let root = std::env::var_os("TINYONN_FUZZ_DIR").map(PathBuf::from);
        let root = root.unwrap_or_else(|| if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() });
        let folder = root.join(format!("tinyonn-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("no folder for inputs: name one with TINYONN_FUZZ_DIR");
        folder
    })
}

/// Writes a file below [`folder`], and the folders that it lies in.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("a folder for inputs");
    }
    fs::write(&path, bytes).expect("room for inputs");
    path
}

/// Removes a file or folder below [`folder`], if it is there.
pub fn clear(name: &str) {
    let path = folder().join(name);
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}
