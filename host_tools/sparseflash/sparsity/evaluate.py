"""Perplexity of the float model under masks, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparseflash.base.progress import each
from sparseflash.model.torch_model import Hooks, TorchModel
from sparseflash.sparsity.masks import LayerRules, Masked
from sparseflash.sparsity.reads import Reads


@dataclass
class Losses:
    """Sums of losses in nats and tokens that were predicted, by window."""

    sums: np.ndarray
    sizes: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.mean, 700.0))

    @property
    def error(self) -> float:
        """One standard error of the perplexity, over windows (``stats`` gives the formula)."""
        return self.perplexity * _error(self.sums, self.sizes)

    def ratio(self, base: Losses) -> tuple[float, float]:
        """Perplexity over that of ``base`` on the same windows, and its paired standard error."""
        paired = self.sums - base.sums
        value = math.exp(min(float(paired.sum() / self.sizes.sum()), 700.0))
        return value, value * _error(paired, self.sizes)

    def plain(self) -> dict[str, Any]:
        return {"sums": self.sums.tolist(), "sizes": self.sizes.tolist()}

    @classmethod
    def of_plain(cls, d: dict[str, Any]) -> Losses:
        return cls(np.array(d["sums"]), np.array(d["sizes"]))


def _error(sums: np.ndarray, sizes: np.ndarray) -> float:
    m, n = len(sums), sizes.sum()
    if m < 2:
        return math.nan
    mean = sums.sum() / n
    return float(math.sqrt(m / (m - 1) * float(((sums - mean * sizes) ** 2).sum())) / n)


def losses(
    runner: TorchModel,
    windows: np.ndarray,
    hooks: Hooks | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Losses:
    """Losses of the next token over windows, integer (n, tokens)."""
    sums = np.zeros(len(windows))
    for i, window in enumerate(each("evaluating windows", windows)):
        ids = torch.from_numpy(np.asarray(window, np.int64))[None]
        hidden = runner.hidden(ids, hooks)[0, :-1]
        target = ids[0, 1:].to(hidden.device)
        for start in range(0, len(target), 256):
            part = runner.logits(hidden[start : start + 256]).float()
            sums[i] += float(F.cross_entropy(part, target[start : start + 256], reduction="sum"))
        progress()
    return Losses(sums, np.full(len(windows), float(windows.shape[1] - 1)))


def evaluate(
    runner: TorchModel,
    windows: np.ndarray,
    rules: list[LayerRules],
    progress: Callable[[], None] = lambda: None,
) -> tuple[Losses, Reads]:
    """Losses under the rules, and what they leave to read."""
    hooks = Masked(runner, rules)
    found = losses(runner, windows, hooks, progress)
    return found, hooks.reads


def ratio_of(
    runner: TorchModel, rules: list[LayerRules], windows: np.ndarray
) -> tuple[float, float]:
    """Perplexity under the rules over that without, and its paired error."""
    base = losses(runner, windows)
    return losses(runner, windows, Masked(runner, rules, count=False)).ratio(base)
