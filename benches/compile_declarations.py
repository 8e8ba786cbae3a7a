"""Time what 20 declarations cost the compiler: `cargo check` of a crate with them, minus one without, in turns.

    python benches/compile_declarations.py --rounds 5

The crates are made in a temporary folder and take the library by its path; all they depend on is checked before the first round.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = 1.0
# Forms of the grammar, over and over.
FORMS = [
    "#[moe(groups = 10, experts = 10, router = gaussian)]\npub struct {name};",
    "#[moe(levels = [4, 5, 5], router = [linear, gaussian, cosine], top_k = [2, 2, 2], pfag = nucleus(0.9))]\npub struct {name};",
    "#[moe(groups = 4, experts = 16, always = 2, top_k = [2, 3], router = linear, gate = scaled, balance = bias(0.001))]\npub struct {name};",
    "#[moe(levels = [8], top_k = 8, router = linear, experts_are = replicate, route_per = segment(256))]\npub struct {name};",
    "#[moe(router = gaussian(dim = 32), top_k = 2)]\npub enum {name} {{\n    #[group(experts = 10, top_k = 4)]\n    Language,\n"
    "    #[group(experts = 6, router = cosine)]\n    Arithmetic,\n    #[group(experts = 2, always)]\n    Shared,\n}}",
]


def crate(folder: pathlib.Path, name: str, declarations: int) -> pathlib.Path:
    path = folder / name
    (path / "src").mkdir(parents=True)
    (path / "Cargo.toml").write_text(
        f'[package]\nname = "{name}"\nversion = "0.0.0"\nedition = "2024"\n\n[dependencies]\ntinyonn = {{ path = "{ROOT}/tinyonn" }}\n\n[workspace]\n'
    )
    shutil.copy(ROOT / "Cargo.lock", path / "Cargo.lock")
    source = ["use tinyonn::moe::moe;"] if declarations else ["pub use tinyonn::moe::moe;"]
    source += [FORMS[i % len(FORMS)].format(name=f"Variant{i}") for i in range(declarations)]
    (path / "src/lib.rs").write_text("\n\n".join(source) + "\n")
    return path


def check(path: pathlib.Path) -> float:
    os.utime(path / "src/lib.rs")
    environment = {"CARGO_TARGET_DIR": str(ROOT / "target"), **os.environ}
    start = time.monotonic()
    outcome = subprocess.run(["cargo", "check", "-q", "--release"], cwd=path, env=environment, capture_output=True, text=True)
    if outcome.returncode:
        sys.exit(f"error: cargo check in {path}\n{outcome.stderr.strip()}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Time what declarations cost the compiler, over a crate without any.")
    parser.add_argument("--declarations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        empty = crate(pathlib.Path(folder), "empty", 0)
        full = crate(pathlib.Path(folder), "full", args.declarations)
        check(empty), check(full)
        pairs = [(check(empty), check(full)) for _ in range(args.rounds)]
    for empty_s, full_s in pairs:
        print(f"empty {empty_s:.2f} s, {args.declarations} declarations {full_s:.2f} s")
    more = statistics.median(full_s - empty_s for empty_s, full_s in pairs)
    print(f"{args.declarations} declarations: {more:.2f} s more (median of {args.rounds} rounds); target at most {TARGET} s")


if __name__ == "__main__":
    main()
