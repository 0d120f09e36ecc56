"""What several budgets use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseflash.model.torch_model import Hooks, TorchModel
from sparseflash.sparsity.sites import SITES

HIGHEST = 0.99
"""No budget drops more of a site than this."""


def bisect(f: Callable[[float], float], target: float, low: float, high: float) -> float:
    """x in [low, high] where the rising function f reaches ``target``."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < target else (low, middle)
    return high


def sizes_of(runner: TorchModel, sites: tuple[str, ...]) -> np.ndarray:
    """Weights that each site's projection holds, (sites,); 1 where it has none of its own."""
    layer = runner.layers[0]
    return np.array(
        [getattr(layer, SITES[s].matrix).numel() if SITES[s].matrix else 1 for s in sites], float
    )


def begun(runner: TorchModel, x: Tensor, hooks: Hooks) -> Any:
    """What the branches share for residuals ``x`` (B, T, dim) from position 0."""
    return runner.begin(torch.zeros(x.shape[:2], dtype=torch.long), hooks)[1]


@torch.no_grad()
def residuals(runner: TorchModel, ids: np.ndarray) -> list[Tensor]:
    """Dense input (B, T, dim) of every layer, and of the final norm last."""
    x, run = runner.begin(torch.from_numpy(np.asarray(ids, np.int64)))
    out = [x]
    for i in range(runner.spec.n_layers):
        x = x + runner.attention_branch(i, x, run)
        x = x + runner.ffn_branch(i, x, run)
        out.append(x)
    return out
