"""What each level of the grid of prices drops, and on how much text prices are measured."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflash.sparsity.prices import GRID

TOKENS = 2048
"""Of calibration text, for costs of single drops."""
RISE_WINDOWS = 8
"""Of calibration text, for true rises of the loss."""


def bins_of(score: Tensor, limits: Tensor) -> Tensor:
    """Number of grid levels that keep an entry, minus one: it is dropped at levels above it."""
    return torch.bucketize(score.float(), limits, right=True) - 1


def dropped_sums(bins: Tensor, value: Tensor) -> Tensor:
    """Sums (T, G) of ``value`` (T, n) over the entries that each grid level drops."""
    sums = torch.zeros(len(value), len(GRID)).scatter_add_(1, bins, value)
    return sums.cumsum(1) - sums
