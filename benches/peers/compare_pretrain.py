"""Time a training step of this library and of PyTorch in turns, on the same threads, and print the ratio.

    pip install torch==2.15.0 transformers==5.23.0
    python benches/peers/compare_pretrain.py --threads 2

Both sides train the same model (hidden 128, 4 layers, f32, tied head) on batches of 8 x 128 random tokens: forward, backward, clip, AdamW.
They run as separate processes, one after the other, round by round, so that other work on the machine meets both.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = 1.3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time a training step of this library and of PyTorch in turns and print the ratio.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=5, help="how often each side runs")
    parser.add_argument("--steps", type=positive, default=40, help="timed steps a run (10 or more)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="threads of either side")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="attention of PyTorch")
    parser.add_argument("--adamw", choices=["default", "foreach", "fused"], default="fused", help="AdamW of PyTorch")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def run(command: list[str], threads: int, **variables: str) -> str:
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), **variables}
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if outcome.returncode:
        sys.exit(f"error: {' '.join(command)}\n{outcome.stderr.strip()}")
    return outcome.stdout


def ours(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as home:
        # One step a sample: the time to fill is shorter than the steps take.
        options = ["--sample-size", str(max(args.steps, 10)), "--warm-up-time", "0.3", "--measurement-time", "0.1", "cpu/pretrain"]
        run(["cargo", "bench", "-q", "-p", "benches", "--bench", "pretrain", "--", *options], args.threads, CRITERION_HOME=home)
        sample = json.loads(next(pathlib.Path(home).rglob("new/sample.json")).read_text())
    seconds = [nanoseconds / steps / 1e9 for nanoseconds, steps in zip(sample["times"], sample["iters"])]
    return {"median_s": statistics.median(seconds), "min_s": min(seconds)}


def theirs(args: argparse.Namespace) -> dict:
    script = [sys.executable, str(HERE / "pretrain_torch.py"), "--json", "--steps", str(args.steps)]
    options = ["--threads", str(args.threads), "--attention", args.attention, "--adamw", args.adamw]
    return json.loads(run([*script, *options], args.threads))


def main() -> None:
    args = arguments()
    run(["cargo", "bench", "-q", "-p", "benches", "--bench", "pretrain", "--no-run"], args.threads)
    rounds = []
    for number in range(args.rounds):
        pair = {"ours": ours(args), "torch": theirs(args)}
        rounds.append(pair)
        ratio = pair["ours"]["median_s"] / pair["torch"]["median_s"]
        print(f"round {number + 1}: ours {in_ms(pair['ours'])}, torch {in_ms(pair['torch'])}, ratio of medians {ratio:.3f}", flush=True)
    median = statistics.median(pair["ours"]["median_s"] / pair["torch"]["median_s"] for pair in rounds)
    least = [min(pair[side]["min_s"] for pair in rounds) for side in ("ours", "torch")]
    print(
        f"ours / torch: {median:.3f} (median of {len(rounds)} rounds), {least[0] / least[1]:.3f} (minima: {least[0] * 1e3:.1f} and "
        f"{least[1] * 1e3:.1f} ms a step); target at most {TARGET}"
    )
    if args.json:
        figures = {"threads": args.threads, "ratio_of_medians": median, "ratio_of_minima": least[0] / least[1], "rounds": rounds}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def in_ms(side: dict) -> str:
    return f"{side['median_s'] * 1e3:.1f} ms (min {side['min_s'] * 1e3:.1f})"


if __name__ == "__main__":
    main()
