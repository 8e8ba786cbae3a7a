"""Hold an export whose tokens take single neurons by a threshold (`exp_sparsify`, `exp_export --format tinyonn --active routed`) against transformers, choice by choice.

    TINYONN_EXPORT=DIR TINYONN_CHOICES=FILE cargo test --release -p tests --test suite -- export::choices
    python tests/transformers/check_choices.py DIR FILE

Both programs add up the same products in another order, so that a score differs by some roundings. Where it lies that close to the threshold the neuron is taken by one
and not by the other, and logits differ by what the neuron adds. Required here: with the choices of the library logits are the library's within TOLERANCE at every
token; every choice that falls otherwise is of a score within BORDER of the threshold; and before the first of them logits agree by themselves.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4  # max |difference| of a logit, in f32
BORDER = 1e-5  # |score / threshold - 1|: roundings of some hundred products, and of the layers before


def require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"error: {what}")


@torch.no_grad()
def main() -> None:
    folder, ours = Path(sys.argv[1]), load_file(sys.argv[2])
    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    model.force_all_active(False)
    ids = ours["input_ids"]
    alone = (model(ids).logits - ours["logits"]).abs().amax(-1)[0]
    flips, choices = [], 0

    def as_ours(layer, choice):
        own = choice.forward

        def forward(g, h, act, down, gate):
            taken, wanted = own(g, h, act, down, gate), ours[f"taken.{layer}"].bool().reshape(g.shape)
            from_threshold = (choice.scores(g, act, down) / choice.least_score - 1).abs()
            if choice.least_hidden is not None:
                from_threshold = torch.minimum(from_threshold, (choice.size(h, down) / choice.least_hidden - 1).abs())
            for at in (taken != wanted).reshape(-1, g.shape[-1]).nonzero().tolist():
                flips.append((at[0], layer, at[1], from_threshold.reshape(-1, g.shape[-1])[at[0], at[1]].item()))
            return wanted

        choice.forward = forward

    for layer, block in enumerate(model.model.layers):
        require(block.mlp.neurons is not None and block.mlp.neurons.by_gate, f"layer {layer} chooses no neurons by its gate")
        choices += ids.numel() * block.mlp.neurons.mean_up.numel()
        as_ours(layer, block.mlp.neurons)
    agreed = (model(ids).logits - ours["logits"]).abs().amax(-1)[0]
    first = min((flip[0] for flip in flips), default=ids.numel())
    tokens = len({flip[0] for flip in flips})
    print(f"{choices} choices, {len(flips)} of them otherwise, at {tokens} of {ids.numel()} tokens, the first at token {first}")
    print(f"max |difference|: {alone[:first].max() if first else 0:.2e} before it, {alone.max():.2e} in all, {agreed.max():.2e} with the same choices")
    print(f"farthest from its threshold: {max((flip[3] for flip in flips), default=0):.1e} of it")
    require(agreed.max() <= TOLERANCE, "with the same choices logits differ")
    require(all(flip[3] <= BORDER for flip in flips), "a choice falls otherwise that is not at the threshold")
    require(first == 0 or alone[:first].max() <= TOLERANCE, "logits differ before a choice does")


main()
