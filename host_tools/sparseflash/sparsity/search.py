"""PPL-p % (Sparsing Law): the sparsest setting of a method within p % of the dense perplexity."""

from __future__ import annotations

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.sparsity.registry import Method
from sparseflash.sparsity.study import Study

STEPS = 6


def ppl_level(
    study: Study,
    m: Method,
    percent: float,
    windows: np.ndarray,
    low: float = 0.0,
    high: float = 0.9,
) -> float:
    """The highest level whose perplexity on ``windows`` is at most (1 + percent/100) of dense.

    Bisection, to (high - low) / 2^STEPS; the level returned was measured and holds. ``windows`` are
    text that neither calibration nor evaluation uses. For ``cett`` the level stands for the common
    CETT, which grows with it.
    """
    base = study.measure("dense", 0.0, windows).losses
    for _ in range(STEPS):
        middle = (low + high) / 2
        try:
            ratio, _ = study.measure(m, middle, windows).losses.ratio(base)
            holds = ratio <= 1.0 + percent / 100
        except UsageError:
            holds = False
        low, high = (middle, high) if holds else (low, middle)
    return low
