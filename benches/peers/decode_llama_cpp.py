"""Time tokens written one by one by this library (the bench `decode`) and by llama.cpp in turns, on the same threads.

    pip install llama-cpp-python==0.3.36 gguf
    bash scripts/fetch_smollm2.sh
    python benches/peers/decode_llama_cpp.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf --threads 2

Both sides have SmolLM2-135M's shape: 64 tokens are read, then written greedily, one prompt and eight, and the time from a token to the next of 32 counts. llama.cpp
computes the model of the file in f32 (its weights dequantised), and as the file has them (Q4_1). Sides run as separate processes, one after the other, round by
round, so that other work on the machine meets all of them.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[2]
PROMPT, TOKENS, BATCHES = 64, 33, (1, 8)


def written(batch: int, model: pathlib.Path, threads: int) -> float:
    """Seconds from a token to the next of each of `batch` prompts, by llama.cpp."""
    import llama_cpp as ll
    import numpy

    weights = ll.llama_model_load_from_file(str(model).encode(), ll.llama_model_default_params())
    how = ll.llama_context_default_params()
    how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = batch * (PROMPT + TOKENS), batch * PROMPT, batch * PROMPT, batch
    how.n_threads = how.n_threads_batch = threads
    context = ll.llama_init_from_model(weights, how)
    vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(weights))
    rows = ll.llama_batch_init(batch * PROMPT, 0, 1)

    def read(tokens: list[tuple[int, int, int, bool]]) -> None:
        rows.n_tokens = len(tokens)
        for at, (token, position, sequence, wanted) in enumerate(tokens):
            rows.token[at], rows.pos[at], rows.n_seq_id[at], rows.logits[at] = token, position, 1, wanted
            rows.seq_id[at][0] = sequence
        if ll.llama_decode(context, rows):
            sys.exit("error: llama.cpp cannot decode")

    def best(at: int) -> int:
        return int(numpy.ctypeslib.as_array(ll.llama_get_logits_ith(context, at), (vocabulary,)).argmax())

    read([(7 * at + row, at, row, at == PROMPT - 1) for row in range(batch) for at in range(PROMPT)])
    tokens = [best((row + 1) * PROMPT - 1) for row in range(batch)]
    start = time.perf_counter()
    for step in range(TOKENS - 1):
        read([(token, PROMPT + step, row, True) for row, token in enumerate(tokens)])
        tokens = [best(row) for row in range(batch)]
    return (time.perf_counter() - start) / (TOKENS - 1)


def in_f32(model: pathlib.Path, out: pathlib.Path) -> None:
    """A copy of a GGUF file with its weights in f32."""
    import gguf

    reader = gguf.GGUFReader(model)
    field = {name: part.contents() for name, part in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(out, field.pop("general.architecture"))
    for name, part in reader.fields.items():
        if name not in field or name == "general.file_type":
            continue
        kind, *of = part.types
        writer.add_key_value(name, field[name], kind, of[-1] if of else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(command: list[str], **variables: str) -> str:
    outcome = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    if outcome.returncode:
        sys.exit(f"error: {' '.join(command)}\n{outcome.stderr.strip()}")
    return outcome.stdout


def built() -> str:
    """The bench's program."""
    messages = run(["cargo", "bench", "--locked", "-p", "benches", "--bench", "decode", "--no-run", "--message-format", "json"])
    parts = [json.loads(line) for line in messages.splitlines()]
    return next(part["executable"] for part in parts if part.get("executable") and part["target"]["name"] == "decode")


def ours(program: str, threads: int) -> dict[tuple[int, str], float]:
    """Seconds a step by batch and kind of model."""
    said = run([program, "--rounds", "1"], RAYON_NUM_THREADS=str(threads))
    found = re.findall(r"^cpu/decode: (\d+) × (.+): ([\d.]+) ms a step", said, re.MULTILINE)
    return {(int(rows), kind): float(milliseconds) / 1e3 for rows, kind, milliseconds in found}


def theirs(threads: int, models: dict[str, pathlib.Path]) -> dict[tuple[int, str], float]:
    found = {}
    for kind, model in models.items():
        for rows in BATCHES:
            command = [sys.executable, str(HERE), "--model", str(model), "--threads", str(threads), "--batch", str(rows)]
            found[rows, kind] = json.loads(run(command))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=lambda path: pathlib.Path(path).resolve(), required=True, help="SmolLM2-135M, a GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either side")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs")
    parser.add_argument("--batch", type=int, help="print what llama.cpp takes for a token of so many prompts, once")
    args = parser.parse_args()
    if args.batch:
        print(json.dumps(written(args.batch, args.model, args.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        full = pathlib.Path(folder) / "f32.gguf"
        in_f32(args.model, full)
        program = built()
        models = {"llama.cpp, f32": full, "llama.cpp, Q4_1": args.model}
        rounds = []
        for number in range(args.rounds):
            rounds.append(ours(program, args.threads) | theirs(args.threads, models))
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    print("| prompts | model | ms a step | tokens/s | ÷ dense |\n|--:|---|--:|--:|--:|")
    for rows, kind in rounds[0]:
        seconds = statistics.median(one[rows, kind] for one in rounds)
        # Of the same round, then the median.
        ratio = statistics.median(one[rows, kind] / one[rows, "dense"] for one in rounds)
        print(f"| {rows} | {kind} | {1e3 * seconds:.1f} | {rows / seconds:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
