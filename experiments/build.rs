//! Records what a run folder must name: the compiler, and candle's version as locked; and the sources by which a comparison computes.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

/// What decides the records of a comparison, beside the library. What draws and narrates them is not among it.
const COMPUTING: [&str; 5] =
    ["src/causal", "src/compare/cell.rs", "src/compare/grid.rs", "src/compare/record.rs", "src/compare/subject.rs"];

fn files_of(path: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        found.push(path.to_path_buf());
        return Ok(());
    }
    std::fs::read_dir(path)?.try_for_each(|entry| files_of(&entry?.path(), found))
}

fn hash_of_study() -> std::io::Result<String> {
    let mut found = Vec::new();
    for path in COMPUTING {
        println!("cargo::rerun-if-changed={path}");
        files_of(Path::new(path), &mut found)?;
    }
    found.sort();
    let mut hash = Sha256::new();
    for path in found {
        hash.update(path.to_string_lossy().as_bytes());
        hash.update(std::fs::read(&path)?);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn main() -> std::io::Result<()> {
    println!("cargo::rustc-env=EXPERIMENTS_STUDY_SHA256={}", hash_of_study()?);
    println!("cargo::rerun-if-changed=../Cargo.lock");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo::rustc-env=EXPERIMENTS_RUSTC={}", version.unwrap_or_else(|| "unknown".into()));
    let lock = std::fs::read_to_string("../Cargo.lock").unwrap_or_default();
    let candle = lock.split("[[package]]").find(|package| package.contains("name = \"candle-core\""));
    let version = candle.and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")));
    println!("cargo::rustc-env=EXPERIMENTS_CANDLE={}", version.unwrap_or("unknown").trim_matches('"'));
    Ok(())
}
