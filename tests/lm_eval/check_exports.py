"""Have lm-evaluation-harness answer the items that exp_benchmark answers, with exports of the same checkpoint, and hold one against the other.

    bash scripts/fetch_material.sh material
    cargo build --release
    pip install "lm-eval[hf]" torch transformers
    python tests/lm_eval/check_exports.py --programs target/release --material material --work DIR [--limit 24] [--write]

Made in DIR: SmolLM2 taken apart (`TinyOnn`, all active) and exported as `dense` and `tinyonn`; a small Qwen3 of `exp_phase2 --quick` with routers (`Mixtral`, without the constants that
a linear router has beside its matrix, and Qwen3MoE has no place for), exported as `qwen3-moe`, `tinyonn` and, all active, `dense`. --write keeps the figures in results.json beside this script.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lm_eval
import torch
import transformers
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
TASKS = ("arc_easy", "hellaswag", "openbookqa", "piqa", "sciq")
# By which of the harness' metrics a task is answered by exp_benchmark.
METRICS = {"acc_raw": "acc", "acc_per_char": "acc_norm"}
# Sums of some tens of log-likelihoods, in f32 and in another order of products.
TOLERANCE = 1e-3
SMOLLM2 = "model/SmolLM2-135M-Instruct.Q4_1.gguf"


def run(arguments: argparse.Namespace, program: str, *flags: str | Path) -> None:
    subprocess.run([arguments.programs / program, *flags], check=True, cwd=arguments.work, stdout=subprocess.DEVNULL)


def without_constants(folder: Path, out: Path) -> None:
    """A copy of a checkpoint whose routers are their matrices alone, with the end of text that a model pretrained here does not name for transformers."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    constants = [name for name in tensors if "router" in name and name.endswith(".bias")]
    assert constants, "the routers have no constants"
    for name in constants:
        tensors[name].zero_()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (out / "tokenizer_config.json").write_text(json.dumps(named))


def made(arguments: argparse.Namespace) -> list[tuple[str, str, str, Path]]:
    """Checkpoint, mode, format, folder of every export."""
    work, found = arguments.work, []
    if not (work / "smollm2").exists():
        run(arguments, "exp_upcycle", "--model", arguments.material / SMOLLM2, "--variant", "TinyOnn", "--out", "smollm2")
    if not (work / "qwen3").exists():
        run(arguments, "exp_phase2", "--quick", "--variant", "Mixtral", "--out", "pretrained")
        without_constants(work / "pretrained" / "tiny-onn", work / "qwen3")
    for name, mode, form in [
        ("smollm2", "all", "dense"),
        ("smollm2", "all", "tinyonn"),
        ("qwen3", "all", "dense"),
        ("qwen3", "routed", "qwen3-moe"),
        ("qwen3", "routed", "tinyonn"),
    ]:
        out = work / f"{name}-{form}"
        if not out.exists():
            run(arguments, "exp_export", "--model", name, "--format", form, "--active", mode, "--out", out)
        found.append((name, mode, form, out))
    return found


def ours(arguments: argparse.Namespace, name: str, mode: str) -> dict:
    """What exp_benchmark says of a checkpoint in a mode: by task its accuracy and the log-likelihoods of each item's choices."""
    out = arguments.work / f"{name}-{mode}-benchmark-{arguments.limit}"
    if not out.exists():
        flags = ["--material", arguments.material, "--active", mode, "--dtype", "f32", "--limit", str(arguments.limit)]
        run(arguments, "exp_benchmark", name, *flags, "--tasks", ",".join(TASKS), "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    found = {}
    for task in summary["tasks"]:
        lines = (out / "answers" / f"{task['task']}.jsonl").read_text().splitlines()
        found[task["task"]] = (task, [json.loads(line) for line in lines])
    return found


def theirs(arguments: argparse.Namespace, folder: Path) -> dict:
    model = {"pretrained": str(folder), "dtype": "float32", "trust_remote_code": True}
    manager = TaskManager(include_path=str(HERE), include_defaults=False)
    tasks = [f"tinyonn_{task}" for task in TASKS]
    return lm_eval.simple_evaluate(
        "hf", model_args=model, tasks=tasks, task_manager=manager, limit=arguments.limit, device="cpu", batch_size=1,
        log_samples=True, bootstrap_iters=0,
    )


def compared(arguments: argparse.Namespace, name: str, mode: str, form: str, folder: Path) -> list[dict]:
    own, other = ours(arguments, name, mode), theirs(arguments, folder)
    rows = []
    for task in TASKS:
        figures, answers = own[task]
        samples = sorted(other["samples"][f"tinyonn_{task}"], key=lambda sample: sample["doc"]["id"])
        assert [sample["doc"]["id"] for sample in samples] == [answer["item"] for answer in answers], f"{task}: other items"
        config = json.loads((arguments.material / "benchmarks" / task / "rc_0shot/config.json").read_text())
        metric = METRICS[config["task_config"]["primary_metric"]]
        apart, count = 0.0, 0
        for sample, answer in zip(samples, answers):
            # Of each filter's answers the first: pairs of log-likelihood and greedy match.
            likelihoods = [float(pair[0]) for pair in sample["filtered_resps"]]
            assert len(likelihoods) == len(answer["log_likelihoods"]), f"{task}: other choices"
            count += len(likelihoods)
            apart = max(apart, *(abs(a - b) for a, b in zip(likelihoods, answer["log_likelihoods"])))
        accuracy = other["results"][f"tinyonn_{task}"][f"{metric},none"]
        row = {"checkpoint": name, "active": mode, "format": form, "task": task, "items": len(samples), "choices": count}
        row |= {"accuracy": figures["accuracy"]["mean"], "lm_eval": {metric: accuracy}, "largest_difference": apart}
        rows.append(row)
        print(f"{name:8} {form:10} {mode:7} {task:11} {row['accuracy']:.4f} {accuracy:.4f} ({metric}) max |difference| {apart:.1e}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--programs", "--material", "--work"):
        parser.add_argument(flag, type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    os.environ["TINYONN_MATERIAL"] = str(arguments.material)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = [row for export in made(arguments) for row in compared(arguments, *export)]
    wrong = [row for row in rows if row["largest_difference"] > TOLERANCE or row["accuracy"] not in row["lm_eval"].values()]
    if arguments.write:
        versions = {"lm_eval": lm_eval.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        (HERE / "results.json").write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    if wrong:
        sys.exit(f"error: {len(wrong)} of {len(rows)} figures differ, the first: {wrong[0]}")
    print(f"lm-evaluation-harness {lm_eval.__version__}: {len(rows)} figures are exp_benchmark's")


main()
