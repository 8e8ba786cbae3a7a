"""Time a step of Surprise Min-K on a dense Qwen3-1.7B shape as PyTorch users would write it: the peer of the row `Min-K` of the bench `train_step`.

    python benches/peers/min_k_torch.py                 # one CUDA card; torch, transformers

All experts are active and everything but the MLPs is frozen. The gradient of the whole MLP is formed, its norm is taken by expert (100 slices, drawn at
random, of every layer), and the ten with the least are stepped: AdamW with a mask by neuron, f32 masters and moments, gradients in bf16. Forward, backward
and update are under torch.compile. Random weights and tokens, bf16, 4 x 2048 tokens, SDPA. Medians of the steps behind the first two.
"""

import torch
import transformers

from train_step_torch import LENGTH, ROWS, model, timed, told

EXPERTS, LEARN, RATE, BETAS, EPS = 100, 10, 1e-5, (0.9, 0.999), 1e-8


class Bank:
    """The three matrices of a layer's MLP, a row a neuron, with masters and moments."""

    def __init__(self, mlp, expert_i):
        self.weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
        self.expert_i = expert_i
        self.masters = [w.detach().float().clone() for w in self.weights]
        self.m = [torch.zeros_like(w) for w in self.masters]
        self.v = [torch.zeros_like(w) for w in self.masters]
        self.steps_i = torch.zeros(len(expert_i), device="cuda")


@torch.compile
def update(weights, grads, masters, m, v, steps_i, expert_i):
    squares_i = grads[0].float().square().sum(1) + grads[1].float().square().sum(1) + grads[2].float().square().sum(0)
    norms_n = torch.zeros(EXPERTS, device="cuda").index_add_(0, expert_i, squares_i)
    limit = norms_n.topk(LEARN, largest=False).values[-1]
    learns_i = (norms_n <= limit)[expert_i]
    steps_i += learns_i
    total = squares_i.sum()
    for w, g, master, a, b, by_row in zip(weights, grads, masters, m, v, (True, True, False)):
        mask, count = (learns_i[:, None], steps_i[:, None]) if by_row else (learns_i[None, :], steps_i[None, :])
        g = g.float()
        a.copy_(torch.where(mask, BETAS[0] * a + (1 - BETAS[0]) * g, a))
        b.copy_(torch.where(mask, BETAS[1] * b + (1 - BETAS[1]) * g * g, b))
        change = RATE * (a / (1 - BETAS[0] ** count)) / ((b / (1 - BETAS[1] ** count)).sqrt() + EPS)
        master.copy_(torch.where(mask, master - change, master))
        w.copy_(master)
    return total


def main() -> None:
    torch.manual_seed(0)
    net = model()
    net.requires_grad_(False)
    banks = []
    for layer in net.model.layers:
        layer.mlp.requires_grad_(True)
        neurons = layer.mlp.gate_proj.weight.shape[0]
        banks.append(Bank(layer.mlp, (torch.randperm(neurons, device="cuda") % EXPERTS)))
    step_of = torch.compile(net)
    ids = torch.randint(0, 151936, (ROWS, LENGTH), device="cuda")

    def step() -> torch.Tensor:
        loss = step_of(input_ids=ids, labels=ids).loss
        loss.backward()
        with torch.no_grad():
            for bank in banks:
                update(bank.weights, [w.grad for w in bank.weights], bank.masters, bank.m, bank.v, bank.steps_i, bank.expert_i)
                for weight in bank.weights:
                    weight.grad = None
        return loss

    told("Min-K, torch.compile", *timed(step))


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}")
    main()
