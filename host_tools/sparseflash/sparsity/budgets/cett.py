"""CETT of the Sparsing Law (arXiv 2411.02335): one for all layers, the mean level as asked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparseflash.model.torch_model import Hooks
from sparseflash.sparsity.budgets.common import bisect
from sparseflash.sparsity.masks import Rule
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.sites import key
from sparseflash.sparsity.study import Study
from sparseflash.sparsity.windows import spread

CETT_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
CETT_TOKENS = 2048


def cett_of(h: Tensor, down: Tensor, mask: Tensor) -> float:
    """CETT of dropping: mean over tokens of norm(dropped sum) / norm(whole sum).

    h (T, ffn), down (dim, ffn), mask (T, ffn) true where a neuron lives.
    """
    dropped = torch.linalg.vector_norm((h * ~mask) @ down.T, dim=-1)
    whole = torch.linalg.vector_norm(h @ down.T, dim=-1)
    return float((dropped / whole.clamp_min(1e-20)).mean())


def cett_curves(study: Study, m: Method) -> np.ndarray:
    """CETT (layers, CETT_LEVELS) when each layer alone drops a level of its scores."""
    n = study.model.spec.n_layers
    out = np.zeros((n, len(CETT_LEVELS)))
    runner, name = study.runner, key("h", m.score)

    class Measure(Hooks):
        def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
            flat, w = h.reshape(-1, h.shape[-1]), study.weights(layer, name)
            for k, level in enumerate(CETT_LEVELS):
                if level > 0:
                    rule = Rule(study.scores.threshold(layer, name, level), weight=w)
                    down = runner.layers[layer].down_proj.float()
                    out[layer, k] += len(flat) * cett_of(flat, down, rule.mask(flat))
            return h

    rows = -(-CETT_TOKENS // study.calibration_ids.shape[1])
    ids = spread(study.calibration_ids, rows)
    for row in ids:
        runner.hidden(torch.from_numpy(row)[None], Measure())
    return out / ids.size


def cett(study: Study, m: Method, level: float) -> Levels:
    """One CETT for all layers, found so that the mean level is as asked."""
    study.need_scores([key("h", m.score)])
    curves = np.array(study.table(f"cett-{m.score}", lambda: cett_curves(study, m).tolist()))
    return {"h": cett_levels(curves, level)}


def cett_levels(curves: np.ndarray, level: float) -> np.ndarray:
    """Level of each layer where its curve (layers, CETT_LEVELS) meets the common CETT."""

    def at(c: float) -> np.ndarray:
        return np.array([np.interp(c, row, CETT_LEVELS) for row in curves])

    return at(bisect(lambda c: float(at(c).mean()), level, 0.0, float(curves.max())))
