"""TEAL's greedy split (arXiv 2408.14690): in each block, step by step the matrix whose input costs
least output error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sparseflash.base.progress import each
from sparseflash.sparsity.budgets.common import HIGHEST, begun, residuals, sizes_of
from sparseflash.sparsity.masks import LayerRules, Masked, Rule
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.sites import key
from sparseflash.sparsity.study import Study

GREEDY_STEP = 0.02
"""Share of a block's weights that one step drops."""
GREEDY_TOKENS = 256


def greedy_path(
    study: Study, m: Method, layer: int, x: Tensor, step: float = GREEDY_STEP, until: float = 0.7
) -> list[list[float]]:
    """Levels (steps + 1, sites) of one block for its dense input ``x`` (B, T, dim).

    From all dense, each step tries for every site a rise that drops ``step`` of the block's
    weights, and takes the one whose block output is nearest to the dense output (least squares).
    """
    sites = m.sites
    sizes = sizes_of(study.runner, sites)
    rises = step * sizes.sum() / sizes
    runner, n = study.runner, study.model.spec.n_layers

    def output(levels: np.ndarray) -> Tensor:
        rules = [LayerRules() for _ in range(n)]
        for s, level in zip(sites, levels):
            if level > 0:
                w = study.weights(layer, key(s, m.score))
                t = study.scores.threshold(layer, key(s, m.score), float(level))
                rules[layer].sites[s] = Rule(threshold=t, weight=w)
        run = begun(runner, x, Masked(runner, rules, count=False))
        y = x + runner.attention_branch(layer, x, run)
        return y + runner.ffn_branch(layer, y, run)

    with torch.no_grad():
        levels = np.zeros(len(sites))
        dense = output(levels)
        path = [levels.tolist()]
        while (levels * sizes).sum() / sizes.sum() < until:
            best, error = None, math.inf
            for i in range(len(sites)):
                if levels[i] >= HIGHEST:
                    continue
                tried = levels.copy()
                tried[i] = min(tried[i] + rises[i], HIGHEST)
                e = float(((output(tried) - dense) ** 2).sum())
                if e < error:
                    best, error = tried, e
            if best is None:
                break
            levels = best
            path.append(levels.tolist())
    return path


def greedy(study: Study, m: Method, level: float) -> Levels:
    """Each block's greedy path, stopped where the block has dropped the level of its weights."""
    study.need_scores([key(s, m.score) for s in m.sites])

    def make() -> list[list[list[float]]]:
        ids = study.calibration_ids[:1, :GREEDY_TOKENS]
        inputs = residuals(study.runner, ids)
        paths = []
        study.progress("greedy split")
        for i in each("greedy split of layers", range(study.model.spec.n_layers)):
            paths.append(greedy_path(study, m, i, inputs[i]))
        return paths

    paths = study.table(f"greedy-{m.score}-{'-'.join(m.sites)}", make)
    sizes = sizes_of(study.runner, m.sites)
    rows = [path_at(np.array(p), sizes, level) for p in paths]
    return {s: np.array([r[k] for r in rows]) for k, s in enumerate(m.sites)}


def path_at(path: np.ndarray, sizes: np.ndarray, level: float) -> np.ndarray:
    """Levels (sites,) on a path (steps, sites) where the weighted mean is ``level``."""
    share = path @ sizes / sizes.sum()
    i = int(np.searchsorted(share, level))
    if i == 0:
        return np.asarray(path[0])
    if i >= len(share):
        return np.asarray(path[-1])
    part = (level - share[i - 1]) / (share[i] - share[i - 1])
    return np.asarray(path[i - 1] + part * (path[i] - path[i - 1]))
