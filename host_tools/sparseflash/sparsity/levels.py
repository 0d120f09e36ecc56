"""How a level becomes levels for each site and layer: the budgets by name.

``uniform``      the level everywhere
``greedy``       TEAL: in each block, step by step the matrix whose input costs least output error
``cett``         Sparsing Law: one CETT for all layers, the mean level as asked
``tail``         ActTail: by the heavy-tail exponent of each projection's spectrum, no data
``sensitivity``  ASVD: each input as far as its own loss stays under one limit
``marginal``     ours: equal loss for each byte saved; its level is the share of layer bytes saved

A budget receives the study; adding one is a file of ``budgets`` with a function of its name.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.sparsity.registry import Levels, Method, method
from sparseflash.sparsity.study import Result, Study


def levels_of(study: Study, m: Method | str, level: float) -> Levels:
    """The method's budget at a level; nothing at 0."""
    m = method(m) if isinstance(m, str) else m
    if not 0.0 <= level < 1.0:
        raise UsageError(f"level {level:g} is not in 0 to 1; 50 % is written 0.5")
    if level == 0.0:
        return {}
    m.check(study.model.spec, study.model.name)
    way = getattr(import_module(f"sparseflash.sparsity.budgets.{m.budget}"), m.budget)
    found: Levels = way(study, m, level)
    return found


def measured(
    study: Study, m: Method | str, level: float, windows: np.ndarray | None = None
) -> Result:
    """``Study.measure`` at the levels of the method's budget."""
    m = method(m) if isinstance(m, str) else m
    return study.measure(m, level, levels_of(study, m, level), windows)


STEPS = 6
"""Of the bisection for PPL-p %."""


def ppl_level(
    study: Study,
    m: Method,
    percent: float,
    windows: np.ndarray,
    low: float = 0.0,
    high: float = 0.9,
) -> float:
    """PPL-p % (Sparsing Law): the highest level whose perplexity is within ``percent`` of dense.

    Bisection, to (high - low) / 2^STEPS; the level returned was measured and holds. ``windows`` are
    text that neither calibration nor evaluation uses. For ``cett`` the level stands for the common
    CETT, which grows with it.
    """
    base = measured(study, "dense", 0.0, windows).losses
    for _ in range(STEPS):
        middle = (low + high) / 2
        try:
            ratio, _ = measured(study, m, middle, windows).losses.ratio(base)
            holds = ratio <= 1.0 + percent / 100
        except UsageError:
            holds = False
        low, high = (middle, high) if holds else (low, middle)
    return low
