"""What drops cost: plain tables of losses and reads by kind of choice, layer and level.

``budgets.marginal`` and ``predict.guessed`` measure them; budget and planner choose by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseflash.sparsity.registry import Method

GRID = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
KINDS = {"attn": ("q", "k", "v"), "o": ("o",), "x": ("xg", "xu"), "ffn": ("act", "h")}
"""Kinds of choice and the sites that each sets."""
KIND = "guess"
"""Of choice, beside ``marginal.KINDS``."""


@dataclass
class Curves:
    """Cost in nats a token and shares of reads, by layer and grid point.

    ``cost[kind]`` (layers, G); for ``ffn`` (layers, G, G) by act, then h. ``kept`` and ``blocks``
    alike for inputs: shares of columns, of groups of 32. ``rows`` (layers, G) by act; ``columns``
    and ``column_blocks`` (layers, G, G).
    """

    cost: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    blocks: dict[str, np.ndarray]
    rows: np.ndarray
    columns: np.ndarray
    column_blocks: np.ndarray

    def plain(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                out[name] = {k: v.tolist() for k, v in value.items()}
            else:
                out[name] = value.tolist()
        return out

    @classmethod
    def of_plain(cls, d: dict[str, Any]) -> Curves:
        def array(v: Any) -> Any:
            return {k: np.array(x) for k, x in v.items()} if isinstance(v, dict) else np.array(v)

        return cls(**{k: array(v) for k, v in d.items()})


@dataclass
class Drift:
    """First-order rise of the loss, nats a token, by kind, layer and grid point; and its error."""

    mean: dict[str, np.ndarray]
    error: dict[str, np.ndarray]

    def plain(self) -> dict[str, Any]:
        return {
            n: {k: np.round(v, 9).tolist() for k, v in t.items()} for n, t in vars(self).items()
        }

    @classmethod
    def of_plain(cls, d: dict[str, Any]) -> Drift:
        return cls(*({k: np.array(v) for k, v in d[n].items()} for n in ("mean", "error")))

    def sure(self) -> dict[str, np.ndarray]:
        """The means, of those that lower the loss only what two standard errors leave.

        A plan picks the lowest of thousands, and so those whose error helps them most.
        """
        out = {}
        for k, mean in self.mean.items():
            out[k] = np.where(mean < 0, np.minimum(mean + 2 * self.error[k], 0), mean)
        return out

    def shrunk(self) -> dict[str, np.ndarray]:
        """The means, each drawn to zero by the share of its square that is error."""
        out = {}
        for k, mean in self.mean.items():
            noise = self.error[k] ** 2 / np.maximum(mean**2, 1e-30)
            out[k] = mean * np.clip(1.0 - noise, 0.0, 1.0)
        return out


Rises = dict[str, tuple[float, float]]
"""By kind, (a, b): the true rise less the drift is a C + b C^2 for a predicted cost C."""
LEAST_SLOPE = 0.05
"""A byte is never free, and never paid for, however the fit of a small rise turns out."""
RISE_COSTS = (0.03, 0.08, 0.2)
"""Predicted costs, in nats, at which each kind's true rise is measured."""


def fit_rises(points: dict[str, list[list[float]]]) -> Rises:
    """a and b of each kind by least squares; the error of a rise grows with the root of its cost.

    A rise that bends downwards is noise: then b is 0.
    """
    out: Rises = {}
    for kind, rows in points.items():
        used = [r for r in rows if r[0] > 0]
        if not used:
            out[kind] = (1.0, 0.0)
            continue
        c, moved, rise = np.array(used).T
        y, w = rise - moved, 1 / np.sqrt(c)
        found = np.linalg.lstsq(np.stack([c * w, c * c * w], 1), y * w, rcond=None)[0]
        a, b = float(found[0]), float(found[1])
        if b < 0:
            a, b = float((c * y * w**2).sum() / (c * c * w**2).sum()), 0.0
        out[kind] = (a, b)
    return out


@dataclass
class Guessed:
    """A predictor's prices: nats and shares of reads a token, (layers, G) each."""

    method: Method
    cost: np.ndarray
    rise: tuple[float, float]
    """As ``marginal.Rises``."""
    kept: np.ndarray
    """Of neurons: gate rows, up rows and down columns."""
    blocks: np.ndarray
    """Of groups of 32 neurons."""
    size: float
    """Bytes of a layer's predictor."""


@dataclass
class Prices:
    """All that the planner chooses by."""

    curves: Curves
    drift: Drift
    rises: Rises
    guesses: list[Guessed] = field(default_factory=list)
    """Of the predictors that the recipe names."""
