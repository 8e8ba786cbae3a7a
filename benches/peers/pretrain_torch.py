"""Time dense Qwen3 pretraining in PyTorch on the CPU: the peer of this library's CPU training.

    pip install torch==2.15.0 transformers==5.23.0
    python benches/peers/pretrain_torch.py --threads 2

One step is what a training loop does: clear the gradients, forward with the next-token loss, backward, clip, AdamW. The model is
transformers' `Qwen3ForCausalLM` in f32 with a tied head, its tokens are random and differ each step.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

WARM_UP = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time a full training step of a dense Qwen3 model (f32, tied head, AdamW) in PyTorch on the CPU.",
        epilog="Example: pretrain_torch.py --hidden 128 --layers 4 --batch 8 --length 128 --threads 2 --json. "
        "On a shared machine other work only ever adds time: repeat and compare minima.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    shape = parser.add_argument_group("model")
    shape.add_argument("--hidden", type=positive, default=128, metavar="D", help="width of the residual stream")
    shape.add_argument("--intermediate", type=positive, default=384, metavar="I", help="neurons of each MLP")
    shape.add_argument("--layers", type=positive, default=4, metavar="L", help="decoder layers")
    shape.add_argument("--heads", type=positive, default=4, metavar="H", help="query heads")
    shape.add_argument("--kv-heads", type=positive, default=2, metavar="K", help="key and value heads; divides --heads")
    shape.add_argument("--head-dim", type=positive, default=32, metavar="W", help="width of a head; even")
    shape.add_argument("--vocab", type=positive, default=2048, metavar="V", help="vocabulary")
    work = parser.add_argument_group("work")
    work.add_argument("--batch", type=positive, default=8, metavar="B", help="sequences a step")
    work.add_argument("--length", type=positive, default=128, metavar="T", help="tokens a sequence")
    work.add_argument("--steps", type=positive, default=20, metavar="N", help=f"timed steps, after {WARM_UP} that are not")
    work.add_argument("--seed", type=int, default=0, help="of the weights and the tokens")
    how = parser.add_argument_group("how PyTorch runs it")
    how.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads within an operation")
    how.add_argument(
        "--attention", choices=["fastest", "sdpa", "eager"], default="fastest",
        help="attention kernel; 'fastest' times both and reports both, the faster first",
    )  # fmt: skip
    how.add_argument(
        "--adamw", choices=["default", "foreach", "fused"], default="default",
        help="AdamW implementation; 'default' is torch's own choice, a loop over the tensors on a CPU",
    )  # fmt: skip
    how.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler); a failure is reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object a run instead of text")
    args = parser.parse_args()
    if args.heads % args.kv_heads:
        parser.error(f"--heads {args.heads} is not a multiple of --kv-heads {args.kv_heads}")
    if args.head_dim % 2:
        parser.error(f"--head-dim {args.head_dim} is odd; rotary embeddings pair the halves of a head")
    if args.length < 2:
        parser.error("--length 1 leaves no next token to predict; use 2 or more")
    return args


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def build(args: argparse.Namespace, attention: str) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=args.vocab, hidden_size=args.hidden, intermediate_size=args.intermediate,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim, max_position_embeddings=args.length, tie_word_embeddings=True, use_cache=False,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(args.seed)
    return Qwen3ForCausalLM(config).float().train()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def measure(args: argparse.Namespace, attention: str) -> dict:
    """Times the steps of a fresh model."""
    model = build(args, attention)
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1,
        **({} if args.adamw == "default" else {args.adamw: True}),
    )  # fmt: skip
    run = torch.compile(model) if args.compile else model
    rng = torch.Generator().manual_seed(args.seed)
    seconds, losses = [], []
    for _ in range(WARM_UP + args.steps):
        ids = torch.randint(args.vocab, (args.batch, args.length), generator=rng)
        start = time.perf_counter()
        losses.append(step(run, optimizer, ids))
        seconds.append(time.perf_counter() - start)
    timed = seconds[WARM_UP:]
    tokens = args.batch * args.length
    return {
        "attention": attention,
        "compile": args.compile,
        "adamw": args.adamw,
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "tokens_per_step": tokens,
        "median_s": statistics.median(timed),
        "min_s": min(timed),
        "tokens_per_s_median": tokens / statistics.median(timed),
        "tokens_per_s_best": tokens / min(timed),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def text(r: dict) -> str:
    compiled = ", compiled" if r["compile"] else ""
    return (
        f"{r['attention']}{compiled}: median {r['median_s'] * 1e3:.1f} ms a step ({r['tokens_per_s_median']:,.0f} tokens/s), "
        f"min {r['min_s'] * 1e3:.1f} ms ({r['tokens_per_s_best']:,.0f} tokens/s); {r['parameters']:,} parameters, "
        f"{r['tokens_per_step']} tokens a step, {r['threads']} threads, loss {r['first_loss']:.3f} to {r['last_loss']:.3f}"
    )


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    kinds = ["sdpa", "eager"] if args.attention == "fastest" else [args.attention]
    try:
        results = [measure(args, kind) for kind in kinds]
    except Exception as error:
        if not args.compile:
            raise
        # Any layer of the compiler can fail, each with its own type; the first line says which.
        first = str(error).strip().splitlines()[:1]
        sys.exit(f"error: torch.compile failed: {type(error).__name__}: {' '.join(first)}; run without --compile")
    for result in sorted(results, key=lambda r: r["min_s"]):
        print(json.dumps(result) if args.json else text(result))


if __name__ == "__main__":
    main()
