"""Budget by marginal cost: a byte saved costs the same loss at every site and layer.

The loss that a drop costs is measured without running the rest of the model again. Take text, let
the model draw a next token at each position, and let g be the gradient of the log-likelihood of
those draws at a branch's output. If a drop changes the output by d, the expected divergence from
the dense model is, to second order, E[(g . d)^2] / 2 (Fisher information along d). One backward
pass gives g for every layer, and each level of each site costs its own branch only:

* inputs of the FFN, and of q, k, v: the branch runs again with the mask, d is the difference;
* inputs of o, and the pair (act, h): the output is linear in them, so g . d is the sum over dropped
  entries of value times gradient, and all levels come from one sorting of the entries into bins.

Bytes of each choice come from ``bytes`` with the reads counted on the same text. Where act drops,
up is stored by rows or by columns, whichever reads less; by rows its inputs are not dropped, though
their cost still counts. What remains is a
sum of costs under a sum of bytes: for a price a byte each layer takes its cheapest choice, the pair
act and h together with the FFN input since they share rows and columns; the price is bisected.

The divergence from the dense model is not yet the loss on text. A drop can move the model nearer to
the text or away from it: the first-order part of its loss, its *drift*, is the gradient with the
text's own next tokens times the change, averaged over calibration text and shrunk by its error. And
drops together can cost more than their sum: for each kind of site alone the true rise of the loss,
less the drift, is measured at a few budgets and fitted by a C + b C^2 for a predicted cost C;
prices act on the slopes of these fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflash.base.errors import UsageError
from sparseflash.base.progress import each
from sparseflash.image.needs import Needs
from sparseflash.sparsity.bytes import bytes_a_token
from sparseflash.sparsity.drops import RISE_WINDOWS, TOKENS, bins_of, dropped_sums
from sparseflash.sparsity.evaluate import losses
from sparseflash.sparsity.gradients import SEED, Branch, neurons, walk
from sparseflash.sparsity.masks import LayerRules, Masked, Rule, live_blocks
from sparseflash.sparsity.prices import (
    GRID,
    KINDS,
    LEAST_SLOPE,
    RISE_COSTS,
    Curves,
    Drift,
    Rises,
    fit_rises,
)
from sparseflash.sparsity.reads import Reads
from sparseflash.sparsity.registry import Levels, Method
from sparseflash.sparsity.sites import key
from sparseflash.sparsity.study import Study
from sparseflash.sparsity.windows import spread

RUN_AGAIN = (1, 2, 4, 6, 8, 11, 13, 15)
"""Grid points at which a branch runs again; the root of the cost is straight between them."""


def _limits(study: Study, m: Method, layer: int, site: str) -> tuple[Tensor, Tensor | None]:
    """Thresholds (G,) of the grid, and the weights of the score."""
    name = key(site, m.score)
    t = [study.scores.threshold(layer, name, level) for level in GRID]
    return torch.tensor(t), study.weights(layer, name)


def measure_curves(study: Study, m: Method) -> Curves:
    """Costs and reads of every kind that the method's sites touch, at every grid level."""
    runner, spec = study.runner, study.model.spec
    n, size = spec.n_layers, len(GRID)
    kinds = {k: tuple(s for s in v if s in m.sites) for k, v in KINDS.items()}
    kinds = {k: v for k, v in kinds.items() if v}
    cost = {k: np.zeros((n, size, size) if k == "ffn" else (n, size)) for k in kinds}
    kept = {k: np.zeros((n, size)) for k in kinds if k != "ffn"}
    blocks = {k: np.zeros((n, size)) for k in kinds if k != "ffn"}
    rows = np.zeros((n, size))
    columns, column_blocks = np.zeros((n, size, size)), np.zeros((n, size, size))
    draw = torch.Generator(runner.device).manual_seed(SEED)
    ids = spread(study.calibration_ids, -(-TOKENS // study.calibration_ids.shape[1]))

    def branch_costs(layer: int, kind: str, x: Tensor, g: Tensor, tensor: Tensor) -> None:
        """A kind whose branch runs again with the mask; ``tensor`` is what it masks."""
        sites = kinds[kind]
        run_dense = runner.begin(torch.zeros(x.shape[:2], dtype=torch.long))[1]
        branch = runner.ffn_branch if kind == "x" else runner.attention_branch
        dense = branch(layer, x, run_dense)
        limits = {s: _limits(study, m, layer, s) for s in sites}
        for j in range(size):
            rules = [LayerRules() for _ in range(n)]
            for s, (t, w) in limits.items():
                rules[layer].sites[s] = Rule(threshold=float(t[j]), weight=w)
            _count_kept(kind, layer, j, tensor, rules[layer].sites[sites[0]])
            if j in RUN_AGAIN:
                hooks = Masked(runner, rules, count=False)
                run = runner.begin(torch.zeros(x.shape[:2], dtype=torch.long), hooks)[1]
                d = branch(layer, x, run) - dense
                cost[kind][layer, j] += float(((g * d).sum(-1) ** 2).sum()) / 2

    def _count_kept(kind: str, layer: int, j: int, tensor: Tensor, rule: Rule) -> None:
        mask = rule.mask(tensor)
        kept[kind][layer, j] += float(mask.sum()) / tensor.shape[-1]
        blocks[kind][layer, j] += live_blocks(mask) / -(-tensor.shape[-1] // 32)

    def o_costs(b: Branch) -> None:
        heads, g = b.at["heads"][0], b.grad["heads"][0]
        limits, w = _limits(study, m, b.layer, "o")
        bins = bins_of(heads.abs() if w is None else heads.abs() * w, limits)
        cost["o"][b.layer] += (dropped_sums(bins, heads * g) ** 2).sum(0).cpu().numpy() / 2
        for j in range(size):
            rule = Rule(threshold=float(limits[j]), weight=w)
            _count_kept("o", b.layer, j, b.at["heads"], rule)

    study.progress("costs of single drops")
    for row in each("costs of single drops in windows", ids):
        for b in walk(runner, row, draw):
            if b.kind == "ffn":
                if "ffn" in kinds:
                    act, h = neurons(study.model.spec, b.at), b.at["h"][0]
                    found = _ffn_costs(study, m, b.layer, act, h, b.grad["h"][0])
                    sums = (cost["ffn"], rows, columns, column_blocks)
                    for total, part in zip(sums, found, strict=True):
                        total[b.layer] += part
                if "x" in kinds:
                    branch_costs(b.layer, "x", b.x, b.g, b.at["ffn_in"])
            else:
                if "o" in kinds:
                    o_costs(b)
                if "attn" in kinds:
                    branch_costs(b.layer, "attn", b.x, b.g, b.at["attn_in"])
    count = ids.size
    every = [*cost.values(), *kept.values(), *blocks.values(), rows, columns, column_blocks]
    for values in every:
        np.divide(values, count, out=values)
    for kind in ("x", "attn"):
        if kind in cost:
            cost[kind] = between(cost[kind])
    return Curves(cost, kept, blocks, rows, columns, column_blocks)


def between(cost: np.ndarray) -> np.ndarray:
    """Costs (layers, G) at every grid point from those of RUN_AGAIN; beyond them, straight on."""
    grid, at = np.array(GRID), [0, *RUN_AGAIN]
    out = np.empty_like(cost)
    for i, row in enumerate(cost):
        root = np.sqrt(np.where(grid == 0, 0.0, row))[at]
        slope = (root[-1] - root[-2]) / (grid[at[-1]] - grid[at[-2]])
        line = np.interp(grid, grid[at], root) + np.maximum(grid - grid[at[-1]], 0) * slope
        out[i] = line**2
    return out


def _cells(study: Study, m: Method, layer: int, act: Tensor, h: Tensor) -> Tensor:
    """Highest act level times G plus highest h level at which each neuron lives, (T, ffn)."""
    size = len(GRID)
    a = s = torch.full_like(h, size - 1, dtype=torch.long)
    if "act" in m.sites:
        limits, w = _limits(study, m, layer, "act")
        a = bins_of(act.abs() if w is None else act.abs() * w, limits)
    if "h" in m.sites:
        limits, w = _limits(study, m, layer, "h")
        s = bins_of(h.abs() if w is None else h.abs() * w, limits)
    return a * size + s


def _ffn_costs(
    study: Study, m: Method, layer: int, act: Tensor, h: Tensor, g: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Summed over tokens for every (act, h) level: cost, rows (act), columns, column blocks.

    act, h and the gradient g at h are (T, ffn).
    """
    size, t, ffn = len(GRID), h.shape[0], h.shape[1]
    cell = _cells(study, m, layer, act, h)
    a, s = cell // size, cell % size

    def above(values: Tensor) -> Tensor:
        """Sums (T, G, G) over entries that live at each pair of levels."""
        table = torch.zeros(t, size * size).scatter_add_(1, cell, values).view(t, size, size)
        return table.flip(1).cumsum(1).flip(1).flip(2).cumsum(2).flip(2)

    value = (h * g).float()
    live = above(value)
    cost = ((value.sum(-1)[:, None, None] - live) ** 2).sum(0).double().cpu().numpy() / 2
    count = above(torch.ones_like(value)).sum(0).double().cpu().numpy() / ffn
    rows = count[:, 0] if "act" in m.sites else np.full(size, float(t))
    # A group of 32 is read if any of its neurons lives at both levels.
    groups = -(-ffn // 32)
    pad = groups * 32 - ffn
    a32 = F.pad(a, (0, pad), value=-1).view(t, groups, 32)
    s32 = F.pad(s, (0, pad), value=-1).view(t, groups, 32)
    best = torch.full((t, groups, size), -1, dtype=torch.long)
    best.scatter_reduce_(2, a32.clamp_min(0), s32, "amax")
    best = best.flip(2).cummax(2).values.flip(2)
    touched = torch.stack([(best >= k).sum((0, 1)) for k in range(size)], dim=1)
    return cost, rows, count, touched.double().cpu().numpy() / groups


DRIFT_TOKENS = 8192


def measure_drift(study: Study, m: Method) -> Drift:
    """The drift of every kind that the method's sites touch, with its error over windows."""
    n, size = study.model.spec.n_layers, len(GRID)
    kinds = {k: [s for s in v if s in m.sites] for k, v in KINDS.items()}
    kinds = {k: v for k, v in kinds.items() if v}
    ids = spread(study.calibration_ids, -(-DRIFT_TOKENS // study.calibration_ids.shape[1]))
    shape = {k: (len(ids), n, size, size) if k == "ffn" else (len(ids), n, size) for k in kinds}
    found = {k: np.zeros(v) for k, v in shape.items()}

    def line(kind: str, layer: int, x: Tensor, g: Tensor) -> np.ndarray:
        limits, w = _limits(study, m, layer, kinds[kind][0])
        bins = bins_of(x.abs() if w is None else x.abs() * w, limits).flatten()
        sums = torch.zeros(size).scatter_add_(0, bins, (x * g).flatten())
        return -(sums.cumsum(0) - sums).double().cpu().numpy() / len(x)

    study.progress("drift of single drops")
    for w, row in enumerate(each("drift of single drops in windows", ids)):
        for b in walk(study.runner, row):
            for kind, tensor in (("x", "ffn_in"), ("o", "heads"), ("attn", "attn_in")):
                if kind in kinds and tensor in b.grad:
                    found[kind][w, b.layer] = line(
                        kind, b.layer, b.at[tensor][0], b.grad[tensor][0]
                    )
            if b.kind == "ffn" and "ffn" in kinds:
                cell = _cells(study, m, b.layer, neurons(study.model.spec, b.at), b.at["h"][0])
                value = (b.at["h"][0] * b.grad["h"][0]).float()
                table = torch.zeros(size * size).scatter_add_(0, cell.flatten(), value.flatten())
                live = table.view(size, size).flip(0, 1).cumsum(0).cumsum(1).flip(0, 1)
                found["ffn"][w, b.layer] = -(value.sum() - live).double().cpu().numpy() / len(row)
    root = np.sqrt(max(len(ids), 1))
    return Drift(
        {k: v.mean(0) for k, v in found.items()},
        {k: v.std(0, ddof=1) / root if len(ids) > 1 else np.abs(v[0]) for k, v in found.items()},
    )


# --- choosing -----------------------------------------------------------------------------------


def _layer_bytes(study: Study, reads: Reads, columns: str = "") -> np.ndarray:
    """Bytes (layers,) when every layer stores the named matrices by columns."""
    lines = (columns,) * study.model.spec.n_layers if columns else ()
    needs = Needs(columns=lines, factors=study.factors)
    return bytes_a_token(study.model.spec, study.formats, needs, reads).by_layer


def choices(study: Study, m: Method, curves: Curves) -> dict[str, np.ndarray]:
    """Bytes of each choice, (layers, G) for attn and o, (layers, X, A, S) for the FFN.

    ``up_rows`` (layers, X, A, S) is 1 where up by rows reads less than by columns.
    """
    spec = study.model.spec
    n, size = spec.n_layers, len(GRID)
    dense = Reads.dense(n, spec.ffn_dim)
    base = _layer_bytes(study, dense)
    out: dict[str, np.ndarray] = {}
    for kind, name, width in (("attn", "qkv", spec.dim), ("o", "o", spec.q_dim)):
        if kind not in curves.cost:
            continue
        table = np.zeros((n, size))
        for j in range(size):
            reads = Reads.dense(n, spec.ffn_dim)
            for s in KINDS[kind]:
                if s in m.sites and j:
                    reads.kept[s] = curves.kept[kind][:, j] * width
                    reads.blocks[s] = curves.blocks[kind][:, j] * -(-width // 32)
            table[:, j] = _layer_bytes(study, reads, name if j else "") - base
        out[kind] = table
    xs = range(size) if "x" in curves.cost else range(1)
    many = range(size) if "ffn" in curves.cost else range(1)
    acts = many if "act" in m.sites else range(1)
    hs = many if "h" in m.sites else range(1)
    table = np.zeros((n, len(xs), len(acts), len(hs)))
    up_rows = np.zeros(table.shape)
    for j in xs:
        for a in acts:
            for b in hs:
                reads = Reads.dense(n, spec.ffn_dim)
                if j:
                    for site in KINDS["x"]:
                        reads.kept[site] = curves.kept["x"][:, j] * spec.dim
                        reads.blocks[site] = curves.blocks["x"][:, j] * -(-spec.dim // 32)
                if a or b:
                    reads.up_rows = curves.rows[:, a] * spec.ffn_dim
                    reads.columns = curves.columns[:, a, b] * spec.ffn_dim
                    reads.column_blocks = curves.column_blocks[:, a, b] * -(-spec.ffn_dim // 32)
                if j:
                    rows, columns = (
                        _layer_bytes(study, reads, names) for names in ("gate", "gate up")
                    )
                    up_rows[:, j, a, b] = rows < columns
                    table[:, j, a, b] = np.minimum(rows, columns) - base
                else:
                    table[:, j, a, b] = _layer_bytes(study, reads) - base
    return out | {"ffn": table, "up_rows": up_rows}


@dataclass
class Choice:
    """Levels by site, bytes a token less the dense ones, predicted cost and drift by kind."""

    levels: Levels
    size: float
    cost: dict[str, float]
    drift: dict[str, float]


def choose(
    curves: Curves,
    size: dict[str, np.ndarray],
    slopes: dict[str, float],
    price: float,
    drift: dict[str, np.ndarray] | None = None,
) -> Choice:
    """The cheapest choice of every layer at a price in nats a byte.

    ``slopes`` multiply the costs of each kind; a kind without one counts as predicted. ``drift`` is
    added as it is.
    """
    out = Choice({}, 0.0, {}, {})
    grid = np.array(GRID)
    move = {k: np.zeros_like(v) for k, v in curves.cost.items()} | (drift or {})
    for kind in ("attn", "o"):
        if kind in curves.cost:
            cost = curves.cost[kind]
            value = slopes.get(kind, 1.0) * cost + move[kind]
            pick = np.argmin(value + price * size[kind], axis=1)
            layers = np.arange(len(pick))
            out.size += float(size[kind][layers, pick].sum())
            out.cost[kind] = float(cost[layers, pick].sum())
            out.drift[kind] = float(move[kind][layers, pick].sum())
            out.levels |= {s: grid[pick] for s in KINDS[kind]}
    table = size["ffn"]
    n, xs, acts, hs = table.shape
    cost = np.zeros(table.shape)
    if "x" in curves.cost:
        part = slopes.get("x", 1.0) * curves.cost["x"] + move["x"]
        cost += part[:, :xs, None, None]
    if "ffn" in curves.cost:
        # A method without act has one act level (0), one without h one h level.
        part = slopes.get("ffn", 1.0) * curves.cost["ffn"] + move["ffn"]
        cost += part[:, None, :acts, :hs]
    pick = np.argmin((cost + price * table).reshape(n, -1), axis=1)
    layers = np.arange(n)
    x, a, s = np.unravel_index(pick, table.shape[1:])
    out.size += float(table[layers, x, a, s].sum())
    if "x" in curves.cost:
        out.cost["x"] = float(curves.cost["x"][layers, x].sum())
        out.drift["x"] = float(move["x"][layers, x].sum())
        by_rows = size["up_rows"][layers, x, a, s] > 0
        out.levels |= {"xg": grid[x], "xu": np.where(by_rows, 0.0, grid[x])}
    if "ffn" in curves.cost:
        out.cost["ffn"] = float(curves.cost["ffn"][layers, a, s].sum())
        out.drift["ffn"] = float(move["ffn"][layers, a, s].sum())
        out.levels |= {"act": grid[a], "h": grid[s]}
    return out


def settle(
    curves: Curves,
    size: dict[str, np.ndarray],
    rises: Rises,
    price: float,
    drift: dict[str, np.ndarray] | None = None,
    steps: int = 40,
) -> Choice:
    """The choice at a price when costs have the slopes of the true rises at that choice."""
    slopes = {k: 1.0 for k in curves.cost}
    for _ in range(steps):
        found = choose(curves, size, slopes, price, drift)
        for k, (a, b) in rises.items():
            slope = max(a + 2 * b * found.cost[k], LEAST_SLOPE)
            slopes[k] = 0.7 * slopes[k] + 0.3 * slope
    return choose(curves, size, slopes, price, drift)


def allocate(
    curves: Curves,
    size: dict[str, np.ndarray],
    rises: Rises,
    saved: float,
    drift: dict[str, np.ndarray] | None = None,
) -> Choice:
    """The cheapest choice that saves at least ``saved`` bytes a token, by bisecting the price."""
    low, high = -16.0, 0.0
    best = settle(curves, size, rises, 10.0**high, drift)
    for _ in range(30):
        middle = (low + high) / 2
        found = settle(curves, size, rises, 10.0**middle, drift)
        if -found.size >= saved:
            best, high = found, middle
        else:
            low = middle
    return best


def measure_rises(
    study: Study, m: Method, curves: Curves, drift: dict[str, np.ndarray]
) -> dict[str, list[list[float]]]:
    """Points (predicted cost, drift, true rise of the loss on calibration text), a kind alone."""
    size = choices(study, m, curves)
    windows = spread(study.calibration_ids, RISE_WINDOWS)
    base = losses(study.runner, windows).mean
    out: dict[str, list[list[float]]] = {}
    for kind in curves.cost:
        only = {k: 1.0 if k == kind else 1e9 for k in curves.cost}
        out[kind] = []
        for goal in RISE_COSTS:
            low, high = -16.0, 0.0
            for _ in range(40):
                middle = (low + high) / 2
                cost = choose(curves, size, only, 10.0**middle, drift).cost[kind]
                low, high = (middle, high) if cost < goal else (low, middle)
            found = choose(curves, size, only, 10.0**low, drift)
            study.progress(f"rise of the loss by {kind} alone")
            levels = {s: v for s, v in found.levels.items() if s in m.sites}
            hooks = Masked(study.runner, study.rules(m, levels), count=False)
            rise = losses(study.runner, windows, hooks).mean - base
            out[kind].append([found.cost[kind], found.drift[kind], rise])
    return out


def model_of(study: Study, m: Method) -> tuple[Curves, Drift, Rises]:
    """What drops cost: curves, drifts and fitted rises, measured once for a model."""
    study.need_scores([key(s, m.score) for s in m.sites])
    name = f"marginal-{m.score}-{'-'.join(m.sites)}"
    curves = Curves.of_plain(study.table(name, lambda: measure_curves(study, m).plain()))
    drift = Drift.of_plain(study.table(f"{name}-drift", lambda: measure_drift(study, m).plain()))
    points = study.table(f"{name}-rise", lambda: measure_rises(study, m, curves, drift.shrunk()))
    return curves, drift, fit_rises(points)


def marginal(study: Study, m: Method, level: float) -> Levels:
    """Levels that save a share ``level`` of the layers' dense bytes a token."""
    curves, drift, rises = model_of(study, m)
    size = choices(study, m, curves)
    saved = level * study.dense_bytes().layers
    found = allocate(curves, size, rises, saved, drift.shrunk())
    if -found.size < saved * (1 - 1e-9):
        reach = -found.size / study.dense_bytes().layers
        raise UsageError(f"{m.name} saves at most {100 * reach:.0f} % of the layers' bytes")
    return {s: v for s, v in found.levels.items() if s in m.sites and not math.isclose(v.max(), 0)}
