"""Budget for a device that pins part of its weights: pinned bytes cost nothing, for none is read.

Each unit (q, k, v; o; the FFN of a layer) is either pinned and dense, or streamed at one of the
levels of ``marginal``. Pinned it takes RAM for its rows; streamed by columns it takes RAM for its
tables of scales, which are pinned first. What is left is a sum of costs under two sums, bytes
streamed a token and RAM, so it has two prices: for a price of streamed bytes the price of RAM is
bisected until the pinned units fit, and the first price until the streamed bytes are as asked. The
head is pinned before all units: it has no sparse form, and no unit saves more bytes for its RAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sparseflash.columns import column_bytes
from sparseflash.methods.bytes import bytes_a_token
from sparseflash.methods.marginal import (
    GRID,
    KINDS,
    LEAST_SLOPE,
    Curves,
    Rises,
    model_of,
)
from sparseflash.methods.masks import Reads
from sparseflash.methods.registry import method
from sparseflash.quantize import row_bytes
from sparseflash.reference import INPUTS

if TYPE_CHECKING:
    from sparseflash.methods.study import Levels, Study

STEPS = 24


@dataclass
class Units:
    """Choices of a kind of unit; the first is pinned. (layers, choices) each."""

    cost: dict[str, np.ndarray]
    """Predicted nats by kind of ``marginal``."""
    drift: np.ndarray
    streamed: np.ndarray
    ram: np.ndarray


@dataclass
class Planned:
    """What was chosen: levels, shares of rows read, and what they should cost."""

    levels: Levels
    use: dict[str, np.ndarray]
    pinned: dict[str, np.ndarray]
    """Units that are pinned and dense, bool (layers,) by kind."""
    streamed: float
    """Bytes a token, head included."""
    rise: float
    """Of the loss, nats a token."""


@dataclass
class Prices:
    """What does not depend on the RAM: the model of the loss and the units' choices."""

    curves: Curves
    rises: Rises
    units: dict[str, Units]


class _Stored:
    """Bytes of an image that stores the matrices ``columns`` by columns in every layer."""

    def __init__(self, study: Study, columns: str) -> None:
        self.spec = spec = study.model.spec
        lines = (columns,) * spec.n_layers if columns else ()
        self.formats = replace(study.formats, columns=lines)
        self.none = {s: np.zeros(spec.n_layers) for s in INPUTS}
        dense = Reads.dense(spec.n_layers, spec.ffn_dim)
        bare = replace(dense, blocks=self.none)
        self.tables = self._of(dense) - self._of(bare)
        """Of scales of input columns, (layers,)."""

    def _of(self, reads: Reads) -> np.ndarray:
        return bytes_a_token(self.spec, self.formats, reads).by_layer

    def streamed(self, reads: Reads) -> np.ndarray:
        """(layers,), every table being pinned."""
        blocks = np.zeros(self.spec.n_layers)
        return self._of(replace(reads, blocks=self.none, column_blocks=blocks))


def units_of(study: Study, curves: Curves, drift: dict[str, np.ndarray]) -> dict[str, Units]:
    """The units ``attn``, ``o`` and ``ffn``; choice 0 is pinned, choice 1 streamed and dense."""
    spec = study.model.spec
    n, size = spec.n_layers, len(GRID)
    dense = Reads.dense(n, spec.ffn_dim)
    base = _Stored(study, "").streamed(dense)
    widths = {"attn": ("qkv", spec.dim), "o": ("o", spec.q_dim)}
    matrices = {"attn": spec.q_dim + 2 * spec.kv_dim, "o": spec.dim}
    out = {}
    rest = base.copy()
    for kind, (name, width) in widths.items():
        cols = spec.dim if kind == "attn" else spec.q_dim
        row = np.full(n, float(matrices[kind] * row_bytes(cols, study.formats.attn)))
        stored = _Stored(study, name)
        streamed, ram = np.zeros((n, size + 1)), np.zeros((n, size + 1))
        ram[:, 0] = streamed[:, 1] = row
        for j in range(1, size):
            kept = {s: curves.kept[kind][:, j] * width for s in KINDS[kind]}
            one = stored.streamed(replace(dense, kept=kept))
            streamed[:, 1 + j], ram[:, 1 + j] = row + one - base, stored.tables
        out[kind] = Units(
            {kind: np.pad(curves.cost[kind], ((0, 0), (1, 0)))},
            np.pad(drift[kind], ((0, 0), (1, 0))),
            streamed,
            ram,
        )
        rest -= row
    shape = (n, size, size, size)
    streamed, ram = np.zeros(shape), np.zeros(shape)
    by_rows, *by_columns = (_Stored(study, names) for names in ("", "gate", "gate up"))
    for j in range(size):
        for a in range(size):
            for s in range(size):
                kept = {i: curves.kept["x"][:, j] * spec.dim for i in KINDS["x"]} if j else {}
                reads = replace(
                    dense,
                    kept=kept,
                    up_rows=curves.rows[:, a] * spec.ffn_dim,
                    columns=curves.columns[:, a, s] * spec.ffn_dim,
                )
                ways = by_columns if j else [by_rows]
                found = [w.streamed(reads) for w in ways]
                which = np.argmin(found, axis=0)
                streamed[:, j, a, s] = np.choose(which, found) - (base - rest)
                ram[:, j, a, s] = np.choose(which, [w.tables for w in ways])

    def flat(x: np.ndarray) -> np.ndarray:
        return np.pad(np.broadcast_to(x, shape).reshape(n, -1), ((0, 0), (1, 0)))

    ram = flat(ram)
    ram[:, 0] = rest
    x = curves.cost["x"][:, :, None, None]
    out["ffn"] = Units(
        {"x": flat(x), "ffn": flat(curves.cost["ffn"][:, None])},
        flat(drift["x"][:, :, None, None] + drift["ffn"][:, None]),
        flat(streamed),
        ram,
    )
    return out


def _pick(
    units: dict[str, Units], slopes: dict[str, float], price: float, budget: float
) -> dict[str, np.ndarray]:
    """Choices (layers,) by kind at a price of streamed bytes; the price of RAM is bisected."""
    value = {
        kind: sum(slopes[k] * c for k, c in u.cost.items()) + u.drift + price * u.streamed
        for kind, u in units.items()
    }

    def at(ram_price: float) -> dict[str, np.ndarray]:
        return {k: np.argmin(v + ram_price * units[k].ram, axis=1) for k, v in value.items()}

    def fits(pick: dict[str, np.ndarray]) -> bool:
        return _sum(units, pick, "ram") <= budget

    best = at(0.0)
    if fits(best):
        return best
    low, high = np.log10(price) - 8.0, np.log10(price) + 4.0
    best = at(10.0**high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        pick = at(10.0**middle)
        best, low, high = (pick, low, middle) if fits(pick) else (best, middle, high)
    return best


def _sum(units: dict[str, Units], pick: dict[str, np.ndarray], name: str) -> float:
    at = np.arange(len(next(iter(pick.values()))))
    return float(sum(getattr(units[k], name)[at, p].sum() for k, p in pick.items()))


def _costs(units: dict[str, Units], pick: dict[str, np.ndarray]) -> dict[str, float]:
    at = np.arange(len(next(iter(pick.values()))))
    return {k: float(c[at, pick[u]].sum()) for u in units for k, c in units[u].cost.items()}


def settle(
    units: dict[str, Units], rises: Rises, price: float, budget: float
) -> dict[str, np.ndarray]:
    """The choice at a price when costs have the slopes of the true rises at that choice."""
    slopes = dict.fromkeys(rises, 1.0)
    for _ in range(STEPS):
        costs = _costs(units, _pick(units, slopes, price, budget))
        for k, (a, b) in rises.items():
            slopes[k] = 0.6 * slopes[k] + 0.4 * max(a + 2 * b * costs[k], LEAST_SLOPE)
    return _pick(units, slopes, price, budget)


def prices_of(study: Study) -> Prices:
    """The model of the loss of ``marginal``, and what each choice costs by it."""
    curves, drift, rises = model_of(study, method("marginal"))
    return Prices(curves, rises, units_of(study, curves, drift))


def plan_levels(study: Study, prices: Prices, budget: float, head: float, goal: float) -> Planned:
    """Levels that stream at most ``goal`` bytes a token, head included, for the least loss.

    budget: bytes of RAM for weights; head: those of the head. If no levels stream so little, those
    that stream least.
    """
    spec, units, rises = study.model.spec, prices.units, prices.rises
    tables = bytes_a_token(
        spec, study.formats, Reads.dense(spec.n_layers, spec.ffn_dim)
    ).down - spec.n_layers * spec.ffn_dim * column_bytes(spec.dim, study.formats.ffn)
    left = budget - tables
    rest = max(0.0, head - max(left, 0.0))
    left = max(0.0, left - head)

    def rise_of(pick: dict[str, np.ndarray]) -> float:
        costs = _costs(units, pick)
        fitted = sum(a * costs[k] + b * costs[k] ** 2 for k, (a, b) in rises.items())
        return fitted + _sum(units, pick, "drift")

    low, high = -16.0, 0.0
    seen = [settle(units, rises, 10.0**p, left) for p in (low, high)]
    for _ in range(STEPS):
        middle = (low + high) / 2
        seen.append(settle(units, rises, 10.0**middle, left))
        enough = _sum(units, seen[-1], "streamed") + rest <= goal
        low, high = (low, middle) if enough else (middle, high)
    good = [p for p in seen if _sum(units, p, "streamed") + rest <= goal]
    best = min(good or seen[1:2], key=rise_of)
    out = _levels(study, prices.curves, best)
    out.streamed, out.rise = _sum(units, best, "streamed") + rest, rise_of(best)
    return out


def _levels(study: Study, curves: Curves, pick: dict[str, np.ndarray]) -> Planned:
    """Levels of the choices, and what they leave to read."""
    spec, size, grid = study.model.spec, len(GRID), np.array(GRID)
    at = np.arange(spec.n_layers)
    j = {k: np.maximum(pick[k] - 1, 0) for k in ("attn", "o")}
    x, a, s = np.unravel_index(np.maximum(pick["ffn"] - 1, 0), (size, size, size))
    up_rows = curves.rows[at, a]
    # As units_of prices it: up by rows where that reads less.
    by_rows = up_rows * row_bytes(spec.dim, study.formats.ffn) * spec.ffn_dim < (
        curves.kept["x"][at, x] * spec.dim * column_bytes(spec.ffn_dim, study.formats.ffn)
    )
    levels = {site: grid[j["attn"]] for site in KINDS["attn"]}
    levels |= {"o": grid[j["o"]], "xg": grid[x], "xu": np.where(by_rows, 0.0, grid[x])}
    levels |= {"act": grid[a], "h": grid[s]}
    kept, blocks = curves.kept, curves.blocks
    use = {site: kept["attn"][at, j["attn"]] for site in KINDS["attn"]}
    use |= {f"{site}_scales": blocks["attn"][at, j["attn"]] for site in KINDS["attn"]}
    use |= {"o": kept["o"][at, j["o"]], "o_scales": blocks["o"][at, j["o"]]}
    use |= {"xg": kept["x"][at, x], "xu": kept["x"][at, x], "up": up_rows}
    use |= {f"{m}_scales": blocks["x"][at, x] for m in ("gate", "up")}
    use |= {"down": curves.columns[at, a, s], "scales": curves.column_blocks[at, a, s]}
    use = {k: np.minimum(v, 1.0) for k, v in use.items()}
    pinned = {k: p == 0 for k, p in pick.items()}
    return Planned({k: v for k, v in levels.items() if v.any()}, use, pinned, 0.0, 0.0)
