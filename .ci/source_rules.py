"""Rules for the sources that neither the compiler nor clippy knows. Prints `file:line: what is wrong; what to do`, exit code 1.

    python3 .ci/source_rules.py [ROOT]
"""

import pathlib
import re
import subprocess
import sys

from example_rule import unshown
from rust_text import code, line_of, test_modules

LONGEST = 500
# A tool writes it, and nobody's hand splits it.
WRITTEN_BY_TOOLS = ("RESULTS.md", "results/compare.md")
LIBRARIES = ("tinyonn/src/", "tinyonn-spec/src/", "tinyonn-macros/src/", "experiments/src/")
UNSAFE = ("tinyonn/src/ops/", "tinyonn/src/checkpoint/mmap.rs")

# (pattern, what it is, what to do, files that may). Calls whose gradient candle 0.11 drops without a word, or gets wrong.
GRADIENTS = [
    (r"\bsoftmax_last_dim\b", "has no gradient", "use candle_nn::ops::softmax(x, D::Minus1)", ()),
    (r"\bcandle_nn::(?:ops::)?rms_norm\b|\bcandle_nn::RmsNorm\b", "has no gradient", "use tinyonn::ops::rms_norm::forward", ()),
    (r"\bcandle_nn::(?:ops::)?layer_norm\b|\bcandle_nn::LayerNorm\b", "has no gradient", "use layer_norm_slow", ()),
    (r"\brotary_emb::rope(?:_i|_thd)?\b", "has no gradient", "use tinyonn::ops::rope::forward", ()),
    (r"\bapply_op[123]_no_bwd\b", "has no gradient", "write a pair of functions: see ops/mod.rs", ()),
    (r"\bsdpa\b|\bcandle_nn::moe\b|\bflash_attn\b", "has no gradient", "use tinyonn::ops::attention, tinyonn::moe", ()),
    (
        r"\buse\s+candle_nn::[^;]*\b(?:ops|moe|rotary_emb|rms_norm|layer_norm|RmsNorm|LayerNorm)\b",
        "hides which of candle's operations are called",
        "write the path in full at the call",
        (),
    ),
    (
        r"\.\s*backward\s*\(\s*\)",
        "misses what our operations compute",
        "call their backwards; candle's tape is for islands of its own operations",
        (
            "tinyonn/src/moe/router.rs",  # A user's router.
            "tinyonn/src/moe/routing.rs",  # From scores to gates and to auxiliary losses.
            "tinyonn/src/train/router_tuning.rs",  # From scores to labels.
        ),
    ),
    (r"\.\s*scatter(?:_add)?\s*\(", "has a wrong gradient", "gather, or write the derivative by hand in ops/", ()),
    (
        r"\.\s*index_add\s*\(",
        "is serial on a GPU",
        "use a product, or say here why not: .ci/source_rules.py",
        (
            "tinyonn/src/ops/embedding.rs",  # The derivative of a gather is a scatter.
            "tinyonn/src/ops/glu_mlp.rs",  # The sum over an expert's neurons.
            "tinyonn/src/moe/learning.rs",  # One row: the neurons of a layer into its experts.
        ),
    ),
]
# Copies to the host wait for the device: all of a step, a task or a batch go through one door, which counts them.
HOST = re.compile(r"\.\s*to_(?:vec[0-3]|scalar)\b")
HOST_FREE = ("tinyonn/src/ops/", "tinyonn/src/decoder/", "tinyonn/src/moe/", "tinyonn/src/imaging/", "tinyonn/src/train/")
HOST_ALLOWED = (
    "tinyonn/src/ops/host.rs",  # The door.
    "tinyonn/src/moe/expert.rs",  # Once, when a layer is made.
    "tinyonn/src/imaging/partition.rs",  # What lies on the host already.
    "tinyonn/src/train/router_fit.rs",  # What lies on the host already.
)
PANICS = re.compile(r"\.\s*(?:unwrap|expect)\s*\(|\b(?:panic|todo|unimplemented|dbg)!")


def rust_rules(name: str, text: str, is_test: bool) -> list[tuple[int, str]]:
    """(line, message) of every violation in a Rust file."""
    found = []
    blanked = code(text)
    for match in re.finditer(r"\bunsafe\b", blanked):
        line = line_of(blanked, match.start())
        if not name.startswith(UNSAFE):
            found.append((line, f"`unsafe` belongs in {' and '.join(UNSAFE)}; move it there, or do without"))
        elif not explained(text.splitlines(), line):
            found.append((line, "`unsafe` without a `// SAFETY:` line above it; say why it is sound"))
    if not name.startswith(LIBRARIES) or is_test:
        return found
    library, _ = test_modules(blanked)
    for pattern, problem, remedy, allowed in GRADIENTS:
        if name not in allowed:
            for match in re.finditer(pattern, library):
                found.append((line_of(library, match.start()), f"`{squeezed(match[0])}` {problem}; {remedy}"))
    if name.startswith(HOST_FREE) and name not in HOST_ALLOWED:
        for match in HOST.finditer(library):
            found.append((line_of(library, match.start()), f"`{squeezed(match[0])}` waits for the device; use tinyonn::ops::host"))
    for match in PANICS.finditer(library):
        found.append((line_of(library, match.start()), f"`{squeezed(match[0])}` can stop a user's program; return a tinyonn::Error"))
    return found


def explained(lines: list[str], line: int) -> bool:
    """Whether the comment above the statement of this line holds `SAFETY:`."""
    above = line - 2
    for _ in range(3):  # A statement may begin up to three lines before the word.
        if above >= 0 and not lines[above].lstrip().startswith("//") and not re.search(r"[;{}]\s*$", lines[above]):
            above -= 1
    while above >= 0 and lines[above].lstrip().startswith("//"):
        if "SAFETY:" in lines[above]:
            return True
        above -= 1
    return False


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def violations(root: pathlib.Path, names: list[str]) -> list[str]:
    """`file:line: message` for every violation in the files `names` under `root`."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in names if name.endswith((".rs", ".py", ".sh", ".md"))}
    tests = set()
    for name, text in texts.items():
        if name.endswith(".rs"):
            folder, stem = name.rsplit("/", 1) if "/" in name else ("", name)
            folder = folder if stem in ("lib.rs", "main.rs", "mod.rs") else name.removesuffix(".rs")
            tests.update(f"{folder}/{module}" for module in test_modules(code(text))[1])
    found = []
    for name, text in sorted(texts.items()):
        count = len(text.splitlines())
        if count > LONGEST and name not in WRITTEN_BY_TOOLS:
            found.append(f"{name}:{LONGEST + 1}: {count} lines, {LONGEST} are allowed; split the file by concept")
        if name.endswith(".rs"):
            is_test = any(name == f"{test}.rs" or name.startswith(f"{test}/") for test in tests)
            found += [f"{name}:{line}: {message}" for line, message in sorted(rust_rules(name, text, is_test))]
    return found + unshown(texts)


def main() -> None:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
    listing = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    names = [name for name in listing.split("\0") if name and (root / name).is_file()]
    found = violations(root, names)
    print("\n".join(found) if found else f"source rules: {len(names)} files, nothing found")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
