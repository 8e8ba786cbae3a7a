"""Hold exports of Tiny-ONN checkpoints against transformers: the logits of both modes, generation with a cache, saving and loading, bf16.

    TINYONN_EXPORTS=DIR cargo test -p tests --test suite -- export::transformers::exports_for_the_script
    python tests/transformers/check_exports.py DIR            # the committed logits were made with torch 2.15.0, transformers 5.24.0
    python tests/transformers/check_exports.py DIR --write    # write tests/fixtures/exports.json

Every folder in DIR has the library's own logits beside it, NAME.safetensors.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

KEPT = Path(__file__).parents[1] / "fixtures" / "exports.json"
TOLERANCE = 1e-4  # max |difference| of a logit, in f32
BF16 = 0.35  # bf16 rounds to 1/256; logits of these models are of order one, and a choice may fall otherwise


def require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"error: {what}")


class Deprecations(logging.Handler):
    """What transformers says that it will do without: the code of an export calls nothing of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            self.said.append(record.getMessage())


def load(folder: Path, **how):
    remote = json.loads((folder / "config.json").read_text())["model_type"] == "tinyonn"
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote, output_loading_info=True, **how)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        require(not info[kind], f"{folder.name}: {kind} {info[kind]}")
    return model.eval(), remote


def logits_of(model, remote: bool, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for mode in ("all", "routed") if remote else ("own",):
        if remote:
            model.force_all_active(mode == "all")
        found[mode] = model(ids).logits
    return found


def check_cache(name: str, model, ids: torch.Tensor) -> None:
    """Token by token with a cache is the whole text at once, and `generate` gives the same tokens either way."""
    past, steps = {}, []
    for at in range(ids.shape[1]):
        output = model(ids[:, at : at + 1], use_cache=True, **past)
        past = {key: value for key, value in output.items() if key in ("cache", "past_key_values")}  # the second in earlier versions
        steps.append(output.logits)
    apart = (torch.cat(steps, 1) - model(ids).logits).abs().max().item()
    require(apart <= TOLERANCE, f"{name}: with a cache logits differ by {apart}")
    written = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=0) for cached in (True, False)]
    require(torch.equal(*written), f"{name}: generated {written}")
    require(written[0].shape[1] == ids.shape[1] + 6, f"{name}: generated {written[0].shape}")


@torch.no_grad()
def check(root: Path, name: str) -> dict[str, list[list[float]]]:
    folder, ours = root / name, load_file(root / f"{name}.safetensors")
    ids = ours["input_ids"]
    model, remote = load(folder)
    require(model.dtype == torch.float32, f"{name}: is {model.dtype}")
    theirs = logits_of(model, remote, ids)
    for mode, logits in theirs.items():
        apart = (logits - ours[mode]).abs().max().item()
        print(f"{name:15}{mode:8}max |difference| {apart:.2e}")
        require(apart <= TOLERANCE, f"{name}, {mode}: logits differ by {apart}")
    check_cache(name, model, ids)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        again, _ = load(Path(saved))
        for mode, logits in logits_of(again, remote, ids).items():
            require(torch.equal(logits, theirs[mode]), f"{name}, {mode}: saved and loaded it computes otherwise")
        if remote:
            before, after = [json.loads((path / "config.json").read_text())["tinyonn"] for path in (folder, Path(saved))]
            require(before == after, f"{name}: the object `tinyonn` of config.json changed")
            before, after = [load_file(path / "model.safetensors") for path in (folder, Path(saved))]
            require(before.keys() == after.keys(), f"{name}: saved {before.keys() ^ after.keys()}")
            require(all(before[key].dtype == after[key].dtype for key in before), f"{name}: saved in other types")
            require(all(torch.equal(before[key], after[key]) for key in before), f"{name}: saved other values")
    narrow, _ = load(folder, dtype=torch.bfloat16)
    kept = [key for key, value in narrow.named_parameters() if "_router" in key or ".neurons." in key]
    require(all(narrow.get_parameter(key).dtype == torch.float32 for key in kept), f"{name}: routers are not f32")
    for mode, logits in logits_of(narrow, remote, ids).items():
        apart = (logits.float() - theirs[mode]).abs().mean().item()
        require(logits.dtype == torch.bfloat16 and apart <= BF16, f"{name}, {mode}: in bf16 logits are {apart} away on average")
    return {mode: logits[:, -1].tolist() for mode, logits in theirs.items()}


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_default_handler()
    transformers.logging.disable_progress_bar()
    deprecations = Deprecations()
    transformers.logging.add_handler(deprecations)
    found = {name: check(root, name) for name in json.loads((root / "cases.json").read_text())}
    require(not deprecations.said, f"transformers warns: {deprecations.said}")
    if "--write" in sys.argv[2:]:
        rounded = {name: {mode: [[float(f"{x:.7g}") for x in row] for row in rows] for mode, rows in modes.items()} for name, modes in found.items()}
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(modes)}" for name, modes in rounded.items())
        versions = json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})
        KEPT.write_text(f'{{"versions": {versions}, "logits": {{\n{lines}\n}}}}\n')
    print(f"transformers {transformers.__version__}: {len(found)} exports compute what they were made of")


main()
