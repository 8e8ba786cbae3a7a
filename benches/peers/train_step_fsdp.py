"""Time a training step of a dense Qwen3-1.7B shape on several cards in PyTorch's FSDP2: the peer of the bench `train_step` on as many ranks.

    torchrun --standalone --nproc-per-node 2 benches/peers/train_step_fsdp.py       # a CUDA card each; torch, transformers

Masters and moments f32, passes and the sums of gradients bf16, as in the bench; 4 x 2048 tokens a card, SDPA, every layer and the loss under torch.compile,
fused AdamW, gradients clipped. Weights are kept whole between forward and backward, then given up between them. Medians of the steps behind the first two.
"""

import os

import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from train_step_torch import LENGTH, ROWS, model, timed, told


def bench(name: str, give_up: bool) -> None:
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    net = model(torch.float32)
    for layer in net.model.layers:
        layer.compile()
        fully_shard(layer, mp_policy=policy, reshard_after_forward=give_up)
    fully_shard(net, mp_policy=policy, reshard_after_forward=False)
    net.loss_function = torch.compile(net.loss_function)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    torch.manual_seed(dist.get_rank())
    ids = torch.randint(0, 151936, (ROWS, LENGTH), device="cuda")

    def step() -> torch.Tensor:
        loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    seconds, loss = timed(step)
    if dist.get_rank() == 0:
        told(f"{name}, {dist.get_world_size()} cards", seconds, loss, ROWS * LENGTH * dist.get_world_size())


if __name__ == "__main__":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    if dist.get_rank() == 0:
        print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}", flush=True)
    bench("dense, FSDP2", give_up=False)
    bench("dense, FSDP2, weights given up", give_up=True)
    dist.destroy_process_group()
