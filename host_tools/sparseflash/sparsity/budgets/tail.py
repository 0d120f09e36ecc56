"""ActTail (arXiv 2603.12272): levels by the heavy-tail exponent of each projection's spectrum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparseflash.sparsity.budgets.common import HIGHEST, bisect, sizes_of
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.sites import SITES
from sparseflash.sparsity.study import Study

TAIL_SPAN = 0.2
"""Levels lie within 1 - span to 1 + span of the common factor, before it meets the mean."""


def hill_exponent(w: Tensor) -> float:
    """Heavy-tail exponent of the eigenvalues of W^T W by Hill's estimator on the upper half."""
    values = torch.linalg.svdvals(w.float()).double() ** 2
    values = values.sort().values
    k = max(1, len(values) // 2)
    tail = values[-k:].clamp_min(1e-300)
    limit = values[-k - 1] if len(values) > k else values[0]
    total = float(torch.log(tail / limit.clamp_min(1e-300)).sum())
    return 1.0 + k / max(total, 1e-12)


def tail_levels(exponents: np.ndarray, sizes: np.ndarray, level: float) -> np.ndarray:
    """Levels (sites, layers): a lighter tail (larger exponent) drops more; the mean as asked."""
    low, high = exponents.min(), exponents.max()
    shape = 1.0 - TAIL_SPAN + 2 * TAIL_SPAN * (exponents - low) / max(high - low, 1e-12)
    weight = sizes[:, None] / sizes.sum() / exponents.shape[1]

    def at(factor: float) -> np.ndarray:
        return np.clip(factor * shape, 0.0, HIGHEST)

    return at(bisect(lambda f: float((at(f) * weight).sum()), level, 0.0, 4.0))


def tail(study: Study, m: Method, level: float) -> Levels:
    """ActTail's levels from the spectrum of every projection."""

    def make() -> list[list[float]]:
        study.progress("spectra of the weights")
        return [
            [hill_exponent(getattr(w, SITES[s].matrix)) for w in study.runner.layers]
            for s in m.sites
        ]

    exponents = np.array(study.table(f"tail-{'-'.join(m.sites)}", make))
    levels = tail_levels(exponents, sizes_of(study.runner, m.sites), level)
    return {s: levels[k] for k, s in enumerate(m.sites)}
