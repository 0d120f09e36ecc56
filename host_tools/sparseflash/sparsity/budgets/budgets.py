"""How a level becomes levels for each site and layer.

``uniform``      the level everywhere
``greedy``       TEAL: in each block, step by step the matrix whose input costs least output error
``cett``         Sparsing Law: one CETT for all layers, the mean level as asked
``tail``         ActTail: by the heavy-tail exponent of each projection's spectrum, no data
``sensitivity``  ASVD: each input as far as its own loss stays under one limit
``marginal``     ours: equal loss for each byte saved; its level is the share of layer bytes saved
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.model.torch_model import Hooks, TorchModel
from sparseflash.sparsity.evaluate import spread
from sparseflash.sparsity.masks import LayerRules, Masked, Rule
from sparseflash.sparsity.registry import Method
from sparseflash.sparsity.sites import SITES, key

if TYPE_CHECKING:
    from sparseflash.sparsity.study import Levels, Study

HIGHEST = 0.99
"""No budget drops more of a site than this."""


def _bisect(f: Callable[[float], float], target: float, low: float, high: float) -> float:
    """x in [low, high] where the rising function f reaches ``target``."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < target else (low, middle)
    return high


def _sizes(study: Study, sites: tuple[str, ...]) -> np.ndarray:
    """Weights that each site's projection holds, (sites,); 1 where it has none of its own."""
    layer = study.runner.layers[0]
    return np.array(
        [getattr(layer, SITES[s].matrix).numel() if SITES[s].matrix else 1 for s in sites], float
    )


def uniform(study: Study, m: Method, level: float) -> Levels:
    """The level at every site and layer."""
    n = study.model.spec.n_layers
    out = {s: np.full(n, level) for s in m.sites}
    if m.guess:
        out = {s: np.full(n, level * m.second) for s in m.sites}
        out["proxy"] = np.full(n, level)
    return out


# --- TEAL's greedy split ------------------------------------------------------------------------

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
    sizes = _sizes(study, sites)
    rises = step * sizes.sum() / sizes
    runner, n = study.runner, study.model.spec.n_layers

    def output(levels: np.ndarray) -> Tensor:
        rules = [LayerRules() for _ in range(n)]
        for s, level in zip(sites, levels):
            if level > 0:
                w = study.weights(layer, key(s, m.score))
                t = study.scores.threshold(layer, key(s, m.score), float(level))
                rules[layer].sites[s] = Rule(threshold=t, weight=w)
        run = _pass(runner, x, Masked(runner, rules, count=False))
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


def _pass(runner: TorchModel, x: Tensor, hooks: Hooks) -> Any:
    """What the branches share for residuals ``x`` (B, T, dim) from position 0."""
    return runner.begin(torch.zeros(x.shape[:2], dtype=torch.long), hooks)[1]


@torch.no_grad()
def residuals(runner: TorchModel, ids: np.ndarray) -> list[Tensor]:
    """Dense input (B, T, dim) of every layer, and of the final norm last."""
    x, run = runner.begin(torch.from_numpy(np.asarray(ids, np.int64)))
    out = [x]
    for i in range(runner.spec.n_layers):
        x = x + runner.attention_branch(i, x, run)
        x = x + runner.ffn_branch(i, x, run)
        out.append(x)
    return out


def greedy(study: Study, m: Method, level: float) -> Levels:
    """Each block's greedy path, stopped where the block has dropped the level of its weights."""
    study.need_scores([key(s, m.score) for s in m.sites])

    def make() -> list[list[list[float]]]:
        ids = study.calibration_ids[:1, :GREEDY_TOKENS]
        inputs = residuals(study.runner, ids)
        paths = []
        for i in range(study.model.spec.n_layers):
            study.progress(f"greedy split, layer {i}")
            paths.append(greedy_path(study, m, i, inputs[i]))
        return paths

    paths = study.table(f"greedy-{m.score}-{'-'.join(m.sites)}", make)
    sizes = _sizes(study, m.sites)
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


# --- CETT ---------------------------------------------------------------------------------------

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

    return at(_bisect(lambda c: float(at(c).mean()), level, 0.0, float(curves.max())))


# --- ActTail ------------------------------------------------------------------------------------

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

    return at(_bisect(lambda f: float((at(f) * weight).sum()), level, 0.0, 4.0))


def tail(study: Study, m: Method, level: float) -> Levels:
    """ActTail's levels from the spectrum of every projection."""

    def make() -> list[list[float]]:
        study.progress("spectra of the weights")
        return [
            [hill_exponent(getattr(w, SITES[s].matrix)) for w in study.runner.layers]
            for s in m.sites
        ]

    exponents = np.array(study.table(f"tail-{'-'.join(m.sites)}", make))
    levels = tail_levels(exponents, _sizes(study, m.sites), level)
    return {s: levels[k] for k, s in enumerate(m.sites)}


# --- ASVD's sensitivity -------------------------------------------------------------------------

SENSITIVITY_LEVELS = (0.0, 0.25, 0.5, 0.75)
SENSITIVITY_TOKENS = 512
SHARED = (("q", "k", "v"), ("o",), ("xg", "xu"), ("h",))
"""Sites that see one tensor and are tried together."""


@torch.no_grad()
def loss_from(
    runner: TorchModel, layer: int, x: Tensor, ids: Tensor, hooks: Hooks | None = None
) -> float:
    """Mean loss when layer ``layer`` gets the residual ``x`` (B, T, dim)."""
    run = _pass(runner, x, hooks or Hooks())
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
        for i in range(n):
            study.progress(f"sensitivity of {'+'.join(sites)}, layer {i}")
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
    sizes = np.array([_sizes(study, g).sum() for g in groups])
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

    return at(_bisect(lambda t: float((at(t) * weight).sum()), level, 0.0, float(rising.max()) + 1))


def marginal(study: Study, m: Method, level: float) -> Levels:
    """Ours (``marginal.py``)."""
    from sparseflash.sparsity.budgets.marginal import marginal_levels

    return marginal_levels(study, m, level)


BUDGETS: dict[str, Callable[[Study, Method, float], Levels]] = {
    "uniform": uniform,
    "greedy": greedy,
    "cett": cett,
    "tail": tail,
    "sensitivity": sensitivity,
    "marginal": marginal,
}
