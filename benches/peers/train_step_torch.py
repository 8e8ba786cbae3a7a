"""Time a training step of a dense Qwen3-1.7B shape in transformers, as its users would make it fast: the peer of the bench `train_step`.

    python benches/peers/train_step_torch.py            # one CUDA card; torch, transformers

Random weights and tokens, bf16 weights, gradients and moments, 4 x 2048 tokens, SDPA, fused AdamW, gradients clipped; eager, then under torch.compile.
Medians of the steps behind the first two.
"""

import statistics
import time

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

ROWS, LENGTH, STEPS = 4, 2048, 10


def model(dtype: torch.dtype = torch.bfloat16) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").to(dtype).train()


def timed(step) -> tuple[float, torch.Tensor]:
    """Seconds of the median step behind the first two, and what the last one returned."""
    times = []
    for _ in range(STEPS + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]), loss


def told(name: str, seconds: float, loss: torch.Tensor, tokens: int = ROWS * LENGTH) -> None:
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"torch/train_step/{name}: {1e3 * seconds:.1f} ms, {tokens / seconds:.0f} tokens/s, loss {loss.item():.3f}, {peak:.1f} GB at most", flush=True)


def bench(name: str, compiled: bool) -> None:
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    net = model()
    step_of = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, 151936, (ROWS, LENGTH), device="cuda")

    def step() -> torch.Tensor:
        loss = step_of(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    told(name, *timed(step))


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}")
    bench("dense, eager", compiled=False)
    bench("dense, torch.compile", compiled=True)
