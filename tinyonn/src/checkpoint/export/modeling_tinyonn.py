"""A Tiny-ONN checkpoint in transformers: a dense decoder whose MLPs are banks of experts, taken by routers or all at once.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.force_all_active(True)   # the dense model; False: the experts or neurons that each token takes

Experts are slices: the dense MLP's weights in their order, and for each neuron the expert that it belongs to. A gate w[t, n] acts on the
hidden activation of its neurons, y_t = W_d (h_t * c_t), c_t[i] = w[t, neuron_expert[i]]. Under `neurons = gate | pruned` a token takes single
neurons, and W_d may have a repair beside it. Routers compute in f32 whatever the weights are.

Shapes: t tokens, d hidden, i neurons, n experts, p routers of a level (one for each node of the level above), c choices of each.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .configuration_tinyonn import TinyOnnConfig

# What outputs call keys and values: `past_key_values` in earlier versions of transformers, which later ones warn of.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def f32(*shape):
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


class GaussianRouter(nn.Module):
    """Log-densities of Gaussians: s * mean_j [-(z_j - mu_j)^2 / 2 sigma_j^2 - log sigma_j^2 / 2] + log pi, z = P x; or the sum over j.
    With one full covariance a router, the same of (I + D) z and (I + D) mu, D strictly lower triangular."""

    def __init__(self, d, p, c, form):
        super().__init__()
        r = d if form["project"] == "identity" else min(form["dim"], d)
        if form["project"] != "identity":
            self.projection = f32(r, d)
        variances = {"diag": (p, c, r), "shared": (p, 1, r), "shared_full": (p, 1, r), "isotropic": (p, c, 1)}
        self.mean, self.log_variance, self.log_prior = f32(p, c, r), f32(*variances[form["covariance"]]), f32(p, c)
        self.scale = f32()
        if form["covariance"] == "shared_full":
            self.decorrelation = f32(p, r, r)
        self.sums = form["reduce"] == "sum"

    def forward(self, x_td):
        p, c, r = self.mean.shape
        z_tr = F.linear(x_td, self.projection) if hasattr(self, "projection") else x_td
        if hasattr(self, "decorrelation"):
            # A copy begins where products like to read, wherever the parameter lies: the same bits behind a load.
            below, means = torch.tril(self.decorrelation, -1), self.mean.clone()
            density_ptc = [self.density(z_tr + z_tr @ d.T, m + m @ d.T, v) for d, m, v in zip(below, means, self.log_variance)]
            density = torch.cat(density_ptc, -1)
        else:
            density = self.density(z_tr, self.mean.reshape(p * c, r), self.log_variance.expand(p, c, r).reshape(p * c, r))
        scale = self.scale * r if self.sums else self.scale
        return (scale * density + self.log_prior.reshape(-1)).reshape(-1, p, c)

    @staticmethod
    def density(z_tr, mean, log_variance):
        precision = torch.exp(-log_variance).expand_as(mean)
        square = z_tr.square() @ precision.T - 2 * z_tr @ (mean * precision).T + (mean.square() * precision).sum(-1)
        return -0.5 * (square + log_variance.sum(-1)) / mean.shape[-1]


class LinearRouter(nn.Module):
    """W x + b; of a random router W x. The first of those that read a projection holds it, [r, d]; all of them are given z = P x."""

    def __init__(self, d, p, c, bias, holds=None):
        super().__init__()
        self.shape = (-1, p, c)
        self.weight = f32(p * c, d)
        self.bias = f32(p * c) if bias else None
        if holds is not None:
            self.projection = f32(*holds)

    def forward(self, x_td):
        return F.linear(x_td, self.weight, self.bias).reshape(self.shape)


class CosineRouter(nn.Module):
    """s * cos(x, e)."""

    def __init__(self, d, p, c):
        super().__init__()
        self.shape = (-1, p, c)
        self.weight, self.scale = f32(p * c, d), f32()

    def forward(self, x_td):
        x_td, weight = [rows / (rows.square().sum(-1, keepdim=True) + 1e-12).sqrt() for rows in (x_td, self.weight)]
        return (self.scale * (x_td @ weight.T)).reshape(self.shape)


def is_low_rank(run):
    return isinstance(run["kind"], dict) and "low_rank" in run["kind"]


def router(d, run, holds):
    p, c, kind = run["parents"], run["choices"], run["kind"]
    if is_low_rank(run):
        r = min(kind["low_rank"]["dim"], d)
        return LinearRouter(r, p, c, bias=True, holds=(r, d) if holds else None)
    if kind == "linear" or kind == "random":
        return LinearRouter(d, p, c, bias=kind == "linear")
    if kind == "cosine":
        return CosineRouter(d, p, c)
    if isinstance(kind, dict) and "gaussian" in kind:
        return GaussianRouter(d, p, c, kind["gaussian"])
    raise ValueError(f"no router of kind {kind} is computed here")


def most(pfag, log_p, top_k):
    """How many choices a router takes, [t, p, 1]: `top_k`, or as many as its input is difficult."""
    top_k = min(top_k, log_p.shape[-1])
    p = log_p.exp()
    if pfag == "off" or top_k <= 1:
        return torch.full_like(p[..., :1], top_k)
    if pfag == "entropy":
        entropy = -torch.where(log_p.isfinite(), p * log_p, 0).sum(-1, keepdim=True)
        return (entropy.exp() + 0.5).floor().clamp(1, top_k)
    gathered = p.sort(dim=-1, descending=True).values.cumsum(-1)
    return ((gathered < pfag["nucleus"]["mass"]).sum(-1, keepdim=True) + 1).clamp(max=top_k)


def best(scores, k):
    """Whether each score is among the k largest of its row; ties go to the lower index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices.argsort(-1) < k


class NeuronChoice(nn.Module):
    """Which single neurons a token takes: by its own gate values, a fixed set, or all of its experts; and what is added to the weights and the output."""

    def __init__(self, d, i, by, beside):
        super().__init__()
        self.by_gate = by == "gate"
        if self.by_gate:
            self.mean_up, self.most, self.least_score = f32(i), f32(1), f32(1)
            self.least_hidden = f32(1) if "least_hidden" in beside else None
            self.least_input = f32(1) if "least_input" in beside else None
        self.kept = f32(i) if by == "pruned" or "kept" in beside else None
        self.worth = f32(i) if "worth" in beside else None
        parts = [part for part in ("gate", "up", "down", "bias") if f"repair.{part}" in beside]
        self.repair = nn.ParameterDict({part: f32(d) if part == "bias" else f32(i, d) for part in parts})

    def linear(self, part, x, weight):
        """x W', or with W + delta where there is one; behind `down` the bias is added."""
        if part in self.repair:
            delta = self.repair[part].T if part == "down" else self.repair[part]
            weight = (weight.float() + delta).to(x.dtype)
        bias = self.repair["bias"].to(x.dtype) if part == "down" and "bias" in self.repair else None
        return F.linear(x, weight, bias)

    def read(self, x, gate_id):
        """x with zeros for the channels that the gate's matrix does not read."""
        if not self.by_gate or self.least_input is None:
            return x
        size = x.float().abs() * gate_id.float().square().sum(0).sqrt()
        return x.masked_fill(size < self.least_input.clamp(min=0), 0)

    def size(self, h_ti, down_di):
        """|h| times what a unit of each neuron is worth."""
        worth_i = down_di.float().square().sum(0).sqrt() if self.worth is None else self.worth
        return (h_ti.float().abs() * worth_i).nan_to_num(nan=float("inf"), posinf=float("inf"))

    def scores(self, g_ti, act, down_di):
        """What each neuron is expected to add to the output: its size, were u as large as on average."""
        return self.size(act(g_ti.float()) * self.mean_up, down_di)

    def forward(self, g_ti, h_ti, act, down_di, gate_ti):
        open_ti = None if gate_ti is None else gate_ti != 0
        if self.kept is not None:
            kept_ti = (self.kept != 0).expand(g_ti.shape)
            open_ti = kept_ti if open_ti is None else kept_ti & open_ti
        if not self.by_gate:
            return open_ti
        scores_ti = self.scores(g_ti, act, down_di)
        if open_ti is not None:
            scores_ti = scores_ti.masked_fill(~open_ti, -1)
        taken_ti = scores_ti >= self.least_score.clamp(min=0)
        k = int(self.most)
        if k < g_ti.shape[-1]:
            taken_ti = taken_ti & best(scores_ti, k)
        if self.least_hidden is not None:
            taken_ti = taken_ti & (self.size(h_ti, down_di) >= self.least_hidden.clamp(min=0))
        return taken_ti


class ChoiceBounds(nn.Module):
    """Of each level the number of choices that a router takes at most, and the least score of one that is taken."""

    def __init__(self, levels):
        super().__init__()
        self.most, self.least_score = f32(levels), f32(levels)


class TinyOnnMLP(nn.Module):
    """The experts of a layer and what chooses among them."""

    def __init__(self, config, layer):
        super().__init__()
        spec, d, i = config.tinyonn["spec"], config.hidden_size, config.intermediate_size
        if spec["experts_are"] != "slice" or spec["route_per"] != "token":
            raise ValueError(f"{spec['name']}: only slices that tokens choose are computed here")
        self.gate_proj, self.up_proj = nn.Linear(d, i, bias=False), nn.Linear(d, i, bias=False)
        self.down_proj = nn.Linear(i, d, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        self.levels, self.gate, self.pfag = spec["levels"], spec["gate"], spec["pfag"]
        self.always = sum(group["experts"] for group in spec["always"])
        runs = [run for level in self.levels for run in level["routers"]]
        self.holder = next((run["name"] for run in runs if is_low_rank(run)), None)
        for run in runs:
            setattr(self, f"{run['name']}_router", router(d, run, run["name"] == self.holder))
        beside = config.tinyonn_beside.get(str(layer), ())
        self.choices = ChoiceBounds(len(self.levels)) if "choices" in beside else None
        self.register_buffer("neuron_expert", torch.zeros(i, dtype=torch.uint32))
        self.balance_bias = None
        if isinstance(spec["balance"], dict) and "bias" in spec["balance"]:
            self.balance_bias = f32(sum(run["parents"] * run["choices"] for run in runs))
        self.neurons = None
        by = spec.get("neurons", "all")
        if by != "all" or any(part.startswith("repair.") for part in beside):
            self.neurons = NeuronChoice(d, i, by, beside)
        self.all_active = config.tinyonn["active"] == "all"

    def route(self, x_td):
        """The gates [t, n]; None where no router decides."""
        if not self.levels:
            return None
        taken, joint, first = x_td.new_ones(len(x_td), 1, dtype=torch.bool), x_td.new_zeros(len(x_td), 1), 0
        z_tr = None if self.holder is None else F.linear(x_td, getattr(self, f"{self.holder}_router").projection)
        for at, level in enumerate(self.levels):
            masks, joints, parent = [], [], 0
            for run in level["routers"]:
                logits = getattr(self, f"{run['name']}_router")(z_tr if is_low_rank(run) else x_td)
                log_p, parents = logits.log_softmax(-1), slice(parent, parent + run["parents"])
                scores = logits if self.pfag == "off" else log_p
                if self.balance_bias is not None:
                    nodes = run["parents"] * run["choices"]
                    scores = log_p.exp() + self.balance_bias[first : first + nodes].reshape(logits.shape[1:])
                    first += nodes
                top_k = run["top_k"] if self.choices is None else int(self.choices.most[at])
                mask = best(scores, most(self.pfag, log_p, top_k)) & taken[:, parents, None]
                if self.choices is not None:
                    mask = mask & (logits >= self.choices.least_score[at])
                masks.append(mask.flatten(1))
                joints.append((joint[:, parents, None] + log_p).flatten(1))
                parent += run["parents"]
            taken, joint = torch.cat(masks, 1), torch.cat(joints, 1)
        gate_tn = taken.float()
        if self.gate == "scaled":
            share = joint.masked_fill(~taken, -torch.inf).softmax(-1)
            gate_tn = share * gate_tn.sum(-1, keepdim=True)
        return F.pad(gate_tn, (0, self.always), value=1.0)

    def forward(self, x):
        if self.all_active:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        linear = self.neurons.linear if self.neurons is not None else lambda _, x, weight: F.linear(x, weight)
        read = x if self.neurons is None else self.neurons.read(x, self.gate_proj.weight)
        g, u = linear("gate", read, self.gate_proj.weight), linear("up", x, self.up_proj.weight)
        h = self.act_fn(g) * u
        gate_tn = self.route(x.detach().flatten(0, -2).float())
        gate = None
        if gate_tn is not None:
            gate = gate_tn.to(x.dtype)[:, self.neuron_expert.long()].reshape(h.shape)
        if self.neurons is None:
            return self.down_proj(h if gate is None else h * gate)
        h = h * self.neurons(g, h, self.act_fn, self.down_proj.weight, gate).to(h.dtype)
        return linear("down", h if gate is None else h * gate, self.down_proj.weight)


class TinyOnnForCausalLM(PreTrainedModel, GenerationMixin):
    """The dense family's own decoder with a `TinyOnnMLP` in every layer."""

    config_class = TinyOnnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _keep_in_fp32_modules_strict = ["_router", "neurons", "choices", "balance_bias"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        dense = config.dense_config()
        self.model = MODEL_MAPPING[type(dense)](dense)
        for index, layer in enumerate(self.model.layers):
            layer.mlp = TinyOnnMLP(config, index)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def force_all_active(self, on):
        """All of the model (True), which is the dense one, or the experts or neurons that each token takes (False), whatever the configuration says."""
        declared = self.config.tinyonn["spec"].get("attention", ())
        if not on and "pairs" in (self.config.tinyonn.get("attention") or declared):
            raise ValueError("in a routed pass this model attends to some pairs alone, which is not computed here; leave it all active")
        for layer in self.model.layers:
            layer.mlp.all_active = bool(on)

    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )
