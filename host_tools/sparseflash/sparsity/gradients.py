"""Gradients of the model's own next tokens, layer by layer, and the score they give.

The model draws a next token at each position of calibration text; the gradient of the summed
log-likelihood of those draws goes back one branch at a time, so no more than one branch's graph is
kept. Its second moments are the diagonal of the Fisher information: dropping x_i costs about
x_i^2 E[g_i^2] / 2 nats. The score ``fisher`` is therefore |x_i| sqrt(E[g_i^2]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.base.progress import each
from sparseflash.model.spec import ModelSpec
from sparseflash.model.torch_model import Hooks, TorchModel, activate
from sparseflash.sparsity.windows import spread

SEED = 1
FISHER_TOKENS = 4096


class _Tap(Hooks):
    """Keeps the tensors that sites look at."""

    def __init__(self) -> None:
        self.at: dict[str, Tensor] = {}

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        self.at["attn_in"] = x
        return x

    def attn_out(self, layer: int, heads: Tensor) -> Tensor:
        self.at["heads"] = heads
        return heads

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        self.at["ffn_in"] = x
        return x

    def matrix_out(self, layer: int, matrix: str, y: Tensor) -> Tensor:
        self.at[matrix] = y
        return y

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        self.at["h"] = h
        return h


@dataclass
class Branch:
    """One branch of one layer on the way back; tensors are (1, T, n)."""

    layer: int
    kind: str
    """ffn or attn."""
    x: Tensor
    """The residual that enters the branch."""
    g: Tensor
    """Gradient at the branch's output."""
    at: dict[str, Tensor]
    """ffn_in, gate, up, h; or attn_in, q, k, v, heads, o."""
    grad: dict[str, Tensor]
    """Gradients of those that were wanted."""


Wanted = dict[str, tuple[str, ...]]
INPUTS: Wanted = {"attn": ("attn_in", "heads"), "ffn": ("ffn_in", "h")}
OUTPUTS: Wanted = {"attn": ("q", "k", "v", "o"), "ffn": ("gate", "up")}
"""Tensors whose gradients are wanted, by kind of branch."""


def walk(
    runner: TorchModel,
    ids: np.ndarray,
    draw: torch.Generator | None = None,
    wanted: Wanted = INPUTS,
) -> Iterator[Branch]:
    """Every branch from the last to the first, for one window of token ids (T,).

    The loss is that of the text's own next tokens, or of tokens that the model draws.
    """
    tap, n = _Tap(), runner.spec.n_layers
    with torch.no_grad():
        x, run = runner.begin(torch.from_numpy(np.asarray(ids, np.int64))[None], tap)
        entering = []
        for i in range(n):
            entering.append(x)
            x = x + runner.attention_branch(i, x, run)
            entering.append(x)
            x = x + runner.ffn_branch(i, x, run)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = F.linear(runner.end(x), runner.head).float()[0]
        if draw is None:
            logits, target = logits[:-1], torch.tensor(np.asarray(ids[1:], np.int64))
        else:
            target = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
        g = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), x)[0]
    for k in reversed(range(2 * n)):
        i, kind = k // 2, "ffn" if k % 2 else "attn"
        branch = runner.ffn_branch if k % 2 else runner.attention_branch
        names = wanted[kind]
        with torch.enable_grad():
            x = entering[k].detach().requires_grad_()
            tap.at = {}
            out = x + branch(i, x, run)
            found = torch.autograd.grad(out, [x, *(tap.at[name] for name in names)], g)
        at = {name: value.detach() for name, value in tap.at.items()}
        with torch.no_grad():
            yield Branch(i, kind, entering[k], g, at, dict(zip(names, found[1:], strict=True)))
        g = found[0]


def fisher_weights(
    runner: TorchModel, calibration_ids: np.ndarray, progress: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    """sqrt(E[g_i^2]) by tensor (attn_in, heads, ffn_in, act, h) and layer."""
    spec = runner.spec
    total: dict[str, list[Tensor | float]] = {
        k: [0.0] * spec.n_layers for k in ("attn_in", "heads", "ffn_in", "act", "h")
    }
    draw = torch.Generator(runner.device).manual_seed(SEED)
    ids = spread(calibration_ids, -(-FISHER_TOKENS // calibration_ids.shape[1]))
    progress("gradients")
    for row in each("gradients of windows", ids):
        for b in walk(runner, row, draw):
            grads = dict(b.grad)
            if b.kind == "ffn":
                grads["act"] = grads["h"] * b.at["up"]
            for name, g in grads.items():
                total[name][b.layer] = total[name][b.layer] + (g[0].float() ** 2).sum(0)
    out: dict[str, list[list[float]]] = {}
    for name, layers in total.items():
        out[name] = []
        for t in layers:
            assert isinstance(t, Tensor)
            out[name].append([float(f"{v:.6g}") for v in (t / ids.size).sqrt().tolist()])
    return out


def neurons(spec: ModelSpec, at: dict[str, Tensor]) -> Tensor:
    """act(gate) (T, ffn) of a branch's tensors."""
    return activate(spec.activation, at["gate"][0])
