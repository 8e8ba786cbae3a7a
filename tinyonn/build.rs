//! Hashes the sources of the crate and of the declarations it stands on: what is half done says by which it was begun.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let mut found = Vec::new();
    println!("cargo::rerun-if-changed=src");
    sources(Path::new("src"), &mut found)?;
    // Of a package by itself they lie elsewhere, and their version, which Cargo.toml pins, is this one's.
    for dir in ["../tinyonn-linalg/src", "../tinyonn-spec/src"].into_iter().filter(|dir| Path::new(dir).is_dir()) {
        println!("cargo::rerun-if-changed={dir}");
        sources(Path::new(dir), &mut found)?;
    }
    found.sort();
    let mut hash = Sha256::new();
    for path in found {
        hash.update(path.to_string_lossy().as_bytes());
        hash.update(std::fs::read(&path)?);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=TINYONN_SOURCES_SHA256={hex}");
    Ok(())
}
