"""ASVD's sensitivity (arXiv 2312.05821): each input as far as its loss stays under one limit."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.base.progress import each
from sparseflash.model.torch_model import Hooks, TorchModel
from sparseflash.sparsity.budgets.common import begun, bisect, residuals, sizes_of
from sparseflash.sparsity.masks import Masked
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.sites import key
from sparseflash.sparsity.study import Study
from sparseflash.sparsity.windows import spread

SENSITIVITY_LEVELS = (0.0, 0.25, 0.5, 0.75)
SENSITIVITY_TOKENS = 512
SHARED = (("q", "k", "v"), ("o",), ("xg", "xu"), ("h",))
"""Sites that see one tensor and are tried together."""


@torch.no_grad()
def loss_from(
    runner: TorchModel, layer: int, x: Tensor, ids: Tensor, hooks: Hooks | None = None
) -> float:
    """Mean loss when layer ``layer`` gets the residual ``x`` (B, T, dim)."""
    run = begun(runner, x, hooks or Hooks())
    for i in range(layer, runner.spec.n_layers):
        x = x + runner.attention_branch(i, x, run)
        x = x + runner.ffn_branch(i, x, run)
    logits = runner.logits(runner.end(x)[:, :-1]).float()
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def sensitivity_table(study: Study, m: Method) -> dict[str, list[list[float]]]:
    """Rise of the loss (layers, SENSITIVITY_LEVELS) when one group of sites of a layer drops."""
    runner, n = study.runner, study.model.spec.n_layers
    rows = max(1, SENSITIVITY_TOKENS // study.calibration_ids.shape[1])
    picked = spread(study.calibration_ids, rows)
    inputs = residuals(runner, picked)
    ids = torch.tensor(picked)
    base = loss_from(runner, n, inputs[n], ids)
    out: dict[str, list[list[float]]] = {}
    for group in SHARED:
        sites = [s for s in group if s in m.sites]
        if not sites:
            continue
        table = []
        study.progress(f"sensitivity of {'+'.join(sites)}")
        for i in each(f"sensitivity of {'+'.join(sites)} in layers", range(n)):
            row = [0.0]
            for level in SENSITIVITY_LEVELS[1:]:
                levels = {s: np.where(np.arange(n) == i, level, 0.0) for s in sites}
                hooks = Masked(runner, study.rules(m, levels), count=False)
                row.append(loss_from(runner, i, inputs[i], ids, hooks) - base)
            table.append(row)
        out[sites[0]] = table
    return out


def sensitivity(study: Study, m: Method, level: float) -> Levels:
    """Each input as far as its own loss allows: one limit on the rise of the loss for all."""
    study.need_scores([key(s, m.score) for s in m.sites])
    name = f"sensitivity-{m.score}-{'-'.join(m.sites)}"
    table = {
        k: np.array(v) for k, v in study.table(name, lambda: sensitivity_table(study, m)).items()
    }
    groups = [tuple(s for s in g if s in m.sites) for g in SHARED]
    groups = [g for g in groups if g]
    sizes = np.array([sizes_of(study.runner, g).sum() for g in groups])
    found = sensitivity_levels(np.array([table[g[0]] for g in groups]), sizes, level)
    return {s: found[k] for k, g in enumerate(groups) for s in g}


def sensitivity_levels(table: np.ndarray, sizes: np.ndarray, level: float) -> np.ndarray:
    """Levels (groups, layers) from rises (groups, layers, levels) at the common limit.

    Rises are made to grow with the level (noise can make them fall); between the measured levels
    they are straight lines.
    """
    rising = np.maximum.accumulate(table, axis=-1)
    rising = rising + 1e-12 * np.arange(table.shape[-1])
    weight = sizes[:, None] / sizes.sum() / table.shape[1]
    top = SENSITIVITY_LEVELS[-1] + 0.15

    def at(limit: float) -> np.ndarray:
        out = np.empty(table.shape[:2])
        for g in range(table.shape[0]):
            for i in range(table.shape[1]):
                out[g, i] = np.interp(limit, rising[g, i], SENSITIVITY_LEVELS, right=top)
        return out

    return at(bisect(lambda t: float((at(t) * weight).sum()), level, 0.0, float(rising.max()) + 1))
