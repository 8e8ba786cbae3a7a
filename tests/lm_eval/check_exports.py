"""Have lm-evaluation-harness answer the items that exp_benchmark answers, with exports of the same checkpoint, and hold one against the other.

    bash scripts/fetch_material.sh material
    cargo build --release
    pip install "lm-eval[hf]" torch transformers
    python tests/lm_eval/check_exports.py --programs target/release --material material --work DIR [--limit 24] [--only CHECKPOINT] [--write]

Made in DIR: SmolLM2 taken apart (`TinyOnn`, all active) and exported as `dense` and `tinyonn`; a small Qwen3 of `exp_phase2 --quick` with routers (`Mixtral`, without the constants that
a linear router has beside its matrix, and Qwen3MoE has no place for), exported as `qwen3-moe`, `tinyonn` and, all active, `dense`; and SmolLM2 whose tokens take half of the MLPs'
operations by thresholds, repaired (`exp_sparsify`, on little text), exported as `tinyonn`, routed. --write keeps the figures in results.json beside this script; with --only the rows of other checkpoints stay.

Both programs add up the same products in another order. Log-likelihoods agree within TOLERANCE, but for those of thresholds: a neuron whose score is its threshold to roundings is taken
by one program and not by the other, and what it adds moves all tokens behind it. So of that checkpoint the choices that are apart by more are counted, and required is that an item with
none is answered alike. That nothing but such neurons sets them apart is what tests/transformers/check_choices.py shows, neuron by neuron.
Where other work shares the machine, OMP_NUM_THREADS=1: PyTorch's threads wait for each other.
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
# The checkpoint whose tokens take neurons by thresholds, and how little text it is made of: two programs are compared here, not what a share costs.
THRESHOLDS = "smollm2-half"
SPARSIFY = "length = 256\nbatch = 4\ncalibration_tokens = 4096\nvalidation_tokens = 512\ntest_tokens = 2048\n"


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


def sparsified(arguments: argparse.Namespace) -> None:
    """SmolLM2 at half of its MLPs' operations, by each token's own gates."""
    (arguments.work / "sparsify.toml").write_text(SPARSIFY)
    texts = [flag for kind in ("english", "python") for flag in ("--data", f"{kind}={arguments.material / 'text' / kind}")]
    flags = ["--model", arguments.material / SMOLLM2, "--active-share", "0.5", "--seed", "1", "--config", "sparsify.toml", "--out", "sparsified"]
    run(arguments, "exp_sparsify", *flags, *texts)
    (arguments.work / "sparsified" / "tiny-onn").rename(arguments.work / THRESHOLDS)


def taken_apart(arguments: argparse.Namespace) -> None:
    run(arguments, "exp_upcycle", "--model", arguments.material / SMOLLM2, "--variant", "TinyOnn", "--out", "smollm2")


def with_routers(arguments: argparse.Namespace) -> None:
    run(arguments, "exp_phase2", "--quick", "--variant", "Mixtral", "--out", "pretrained")
    without_constants(arguments.work / "pretrained" / "tiny-onn", arguments.work / "qwen3")


CHECKPOINTS = {"smollm2": taken_apart, "qwen3": with_routers, THRESHOLDS: sparsified}


def made(arguments: argparse.Namespace) -> list[tuple[str, str, str, Path]]:
    """Checkpoint, mode, format, folder of every export."""
    work, only, found = arguments.work, arguments.only, []
    for name, mode, form in [
        ("smollm2", "all", "dense"),
        ("smollm2", "all", "tinyonn"),
        ("qwen3", "all", "dense"),
        ("qwen3", "routed", "qwen3-moe"),
        ("qwen3", "routed", "tinyonn"),
        (THRESHOLDS, "routed", "tinyonn"),
    ]:
        if only not in (None, name):
            continue
        if not (work / name).exists():
            CHECKPOINTS[name](arguments)
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
    """What lm-evaluation-harness says of an export: by task its accuracies, and by item those of the item and the log-likelihoods of its choices."""
    model = {"pretrained": str(folder), "dtype": "float32", "trust_remote_code": True}
    manager = TaskManager(include_path=str(HERE), include_defaults=False)
    found = lm_eval.simple_evaluate(
        "hf", model_args=model, tasks=[f"tinyonn_{task}" for task in TASKS], task_manager=manager, limit=arguments.limit, device="cpu", batch_size=1,
        log_samples=True, bootstrap_iters=0,
    )
    answers = {}
    for task in TASKS:
        samples = sorted(found["samples"][f"tinyonn_{task}"], key=lambda sample: sample["doc"]["id"])
        # Of each filter's answers the first: pairs of log-likelihood and greedy match.
        items = [{"item": sample["doc"]["id"], "log_likelihoods": [float(pair[0]) for pair in sample["filtered_resps"]]} for sample in samples]
        for item, sample in zip(items, samples):
            item |= {metric: sample[metric] for metric in METRICS.values()}
        answers[task] = found["results"][f"tinyonn_{task}"], items
    return answers


def differences(task: str, one: list[dict], other: list[dict]) -> list[list[float]]:
    """By item, how far each choice's log-likelihoods are apart."""
    assert [item["item"] for item in one] == [item["item"] for item in other], f"{task}: other items"
    pairs = [(a["log_likelihoods"], b["log_likelihoods"]) for a, b in zip(one, other)]
    assert all(len(a) == len(b) for a, b in pairs), f"{task}: other choices"
    return [[abs(x - y) for x, y in zip(a, b)] for a, b in pairs]


def compared(arguments: argparse.Namespace, name: str, mode: str, form: str, folder: Path) -> tuple[list[dict], list[str]]:
    """The rows of an export, and what differs in them: an item answered otherwise or a choice that is apart; of thresholds, an item answered otherwise without one."""
    own, other = ours(arguments, name, mode), theirs(arguments, folder)
    rows, wrong = [], []
    for task in TASKS:
        (figures, answers), (results, items) = own[task], other[task]
        config = json.loads((arguments.material / "benchmarks" / task / "rc_0shot/config.json").read_text())
        metric = METRICS[config["task_config"]["primary_metric"]]
        found = differences(task, answers, items)
        accuracy, largest = results[f"{metric},none"], max(max(item) for item in found)
        row = {"checkpoint": name, "active": mode, "format": form, "task": task, "items": len(items), "choices": sum(map(len, found))}
        row |= {"accuracy": figures["accuracy"]["mean"], "lm_eval": {metric: accuracy}, "largest_difference": largest}
        otherwise = [at for at, (answer, item) in enumerate(zip(answers, items)) if answer["right"] != bool(item[metric])]
        said = f"{row['accuracy']:.4f} {accuracy:.4f} ({metric}) max |difference| {largest:.1e}"
        if name == THRESHOLDS:
            row |= {"apart": sum(difference > TOLERANCE for item in found for difference in item), "answered_otherwise": len(otherwise)}
            said += f", {row['apart']} of {row['choices']} apart, {len(otherwise)} items otherwise"
            unlike = [at for at in otherwise if max(found[at]) <= TOLERANCE]
        else:
            unlike = otherwise or [at for at, item in enumerate(found) if max(item) > TOLERANCE]
        print(f"{name:12} {form:10} {mode:7} {task:11} {said}", flush=True)
        if unlike:
            wrong.append(f"{name} as {form}, {task}: item {answers[unlike[0]]['item']}")
        rows.append(row)
    return rows, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--programs", "--material", "--work"):
        parser.add_argument(flag, type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--only", metavar="CHECKPOINT", choices=("smollm2", "qwen3", THRESHOLDS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    os.environ["TINYONN_MATERIAL"] = str(arguments.material)
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = [compared(arguments, *export) for export in made(arguments)]
    rows, wrong = [row for rows, _ in found for row in rows], [said for _, wrong in found for said in wrong]
    if arguments.write:
        kept = HERE / "results.json"
        others = [row for row in json.loads(kept.read_text())["rows"] if row["checkpoint"] != arguments.only] if arguments.only else []
        versions = {"lm_eval": lm_eval.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        lines = ",\n".join(f"  {json.dumps(row)}" for row in others + rows)
        kept.write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    if wrong:
        sys.exit(f"error: {len(wrong)} figures differ, the first: {wrong[0]}")
    print(f"lm-evaluation-harness {lm_eval.__version__}: {len(rows)} figures are exp_benchmark's")


main()
