"""The level at every site and layer."""

from __future__ import annotations

import numpy as np

from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.study import Study


def uniform(study: Study, m: Method, level: float) -> Levels:
    """The level at every site and layer."""
    n = study.model.spec.n_layers
    out = {s: np.full(n, level) for s in m.sites}
    if m.predicts:
        out = {s: np.full(n, level * m.second) for s in m.sites}
        out["proxy"] = np.full(n, level)
    return out
