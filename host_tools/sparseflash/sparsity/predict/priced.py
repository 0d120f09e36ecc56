"""What it costs to let a predictor choose a layer's neurons, at every level of ``marginal``'s grid.

The model of the loss is that of ``marginal``: the Fisher information along what the dropped neurons
change, and a fit of the true rise when every layer is predicted alike. There is no drift: a trained
predictor has seen the text that it would be measured on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparseflash.base.progress import each
from sparseflash.sparsity.drops import RISE_WINDOWS, TOKENS, bins_of, dropped_sums
from sparseflash.sparsity.evaluate import losses
from sparseflash.sparsity.gradients import SEED, walk
from sparseflash.sparsity.masks import Masked, live_blocks, prediction_of
from sparseflash.sparsity.prices import GRID, KIND, RISE_COSTS, PredictorPrices, fit_rises
from sparseflash.sparsity.registry import Method
from sparseflash.sparsity.study import Study
from sparseflash.sparsity.windows import spread


def _measure(study: Study, m: Method) -> dict[str, Any]:
    """Costs and reads, (layers, G) each."""
    runner, spec, name = study.runner, study.model.spec, study.prediction_key(m)
    n, size, ffn = spec.n_layers, len(GRID), spec.ffn_dim
    study.need_scores([name], m)
    pairs = study.copies(m)
    limits = [torch.tensor([study.scores.threshold(i, name, t) for t in GRID]) for i in range(n)]
    cost, kept, blocks = (np.zeros((n, size)) for _ in range(3))
    ids = spread(study.calibration_ids, -(-TOKENS // study.calibration_ids.shape[1]))
    draw = torch.Generator(runner.device).manual_seed(SEED)
    study.progress(f"costs of what {m.name} drops")
    for row in each(f"costs of what {m.name} drops in windows", ids):
        for b in walk(runner, row, draw):
            if b.kind == "ffn":
                prediction = prediction_of(runner, b.layer, b.at["ffn_in"][0], *pairs[b.layer])
                bins = bins_of(prediction.abs(), limits[b.layer])
                moved = dropped_sums(bins, (b.at["h"][0] * b.grad["h"][0]).float())
                cost[b.layer] += (moved**2).sum(0).double().cpu().numpy() / 2
                for j in range(size):
                    kept[b.layer, j] += float((bins >= j).sum()) / ffn
                    blocks[b.layer, j] += live_blocks(bins >= j) / -(-ffn // 32)
    cost, kept, blocks = cost / ids.size, kept / ids.size, blocks / ids.size
    return {"cost": cost.tolist(), "kept": kept.tolist(), "blocks": blocks.tolist()}


def _rises(study: Study, m: Method, cost: np.ndarray) -> list[list[float]]:
    """Points (predicted cost, 0, true rise) of the same level in every layer."""
    windows = spread(study.calibration_ids, RISE_WINDOWS)
    base = losses(study.runner, windows).mean
    out = []
    for goal in RISE_COSTS:
        j = max(1, int(np.searchsorted(cost.sum(0), goal)) - 1)
        study.progress(f"rise of the loss by {m.name} alone")
        levels = {"proxy": np.full(len(cost), GRID[j])}
        hooks = Masked(study.runner, study.rules(m, levels), count=False)
        rise = losses(study.runner, windows, hooks).mean - base
        out.append([float(cost[:, j].sum()), 0.0, rise])
    return out


def priced(study: Study, m: Method) -> PredictorPrices:
    """The prices of a predictor that reads the FFN's input, measured once for a model."""
    name = f"picked-{study.prediction_key(m).replace('/', '-')}"
    found = study.table(name, lambda: _measure(study, m))
    cost = np.array(found["cost"])
    points = study.table(f"{name}-rise", lambda: _rises(study, m, cost))
    return PredictorPrices(
        m,
        cost,
        fit_rises({KIND: points})[KIND],
        np.array(found["kept"]),
        np.array(found["blocks"]),
        study.extra(m).proxy,
    )
