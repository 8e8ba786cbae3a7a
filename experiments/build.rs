//! Records what a run folder must name: the compiler, and candle's version as locked.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../Cargo.lock");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo::rustc-env=EXPERIMENTS_RUSTC={}", version.unwrap_or_else(|| "unknown".into()));
    let lock = std::fs::read_to_string("../Cargo.lock").unwrap_or_default();
    let candle = lock.split("[[package]]").find(|package| package.contains("name = \"candle-core\""));
    let version = candle.and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")));
    println!("cargo::rustc-env=EXPERIMENTS_CANDLE={}", version.unwrap_or("unknown").trim_matches('"'));
}
