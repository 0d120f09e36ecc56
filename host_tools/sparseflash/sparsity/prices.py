"""What drops cost: plain tables of losses and reads by kind of choice, layer and level.

``budgets.marginal`` and ``predict.priced`` measure them; budget and planner choose by them.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.files import write_arrays
from sparseflash.sparsity.registry import Method

VERSION = 1
"""Of what prices mean; raise it when a definition changes."""
BROKEN = (zipfile.BadZipFile, zlib.error)

GRID = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
KINDS = {"attn": ("q", "k", "v"), "o": ("o",), "x": ("xg", "xu"), "ffn": ("act", "h")}
"""Kinds of choice and the sites that each sets."""
KIND = "prediction"
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
class PredictorPrices:
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
    """All that the planner chooses by, and what its choices compare with."""

    curves: Curves
    drift: Drift
    rises: Rises
    thresholds: dict[str, np.ndarray]
    """Of each site, float32 (layers, G)."""
    predictions: list[PredictorPrices] = field(default_factory=list)
    """Of the predictors that the recipe names; they are not kept in a file."""

    def threshold(self, site: str, levels: np.ndarray) -> np.ndarray:
        """What a site compares with at levels (layers,) of GRID; 0 where nothing is dropped."""
        at = np.searchsorted(GRID, levels)
        found = self.thresholds[site][np.arange(len(levels)), at]
        return np.where(levels > 0, found, np.float32(0))

    def save(self, path: Path, digest: str) -> None:
        """An .npz. Thresholds are kept whole; all else as binary16 in units of its own greatest."""
        arrays: dict[str, np.ndarray] = {"digest": np.array(digest), "version": np.array(VERSION)}
        for name, value in self._tables().items():
            top = float(np.abs(value).max(initial=0.0)) or 1.0
            arrays[name] = (value / top).astype(np.float16)
            arrays[f"{name}/top"] = np.array(top)
        arrays |= {f"rise/{k}": np.array(v) for k, v in self.rises.items()}
        arrays |= {f"threshold/{k}": v.astype(np.float32) for k, v in self.thresholds.items()}
        write_arrays(path, **arrays)

    def _tables(self) -> dict[str, np.ndarray]:
        curves, drift = vars(self.curves), vars(self.drift)
        out: dict[str, np.ndarray] = {}
        for part, tables in (("curves", curves), ("drift", drift)):
            for name, value in tables.items():
                each = value if isinstance(value, dict) else {"": value}
                out |= {f"{part}/{name}/{k}": v for k, v in each.items()}
        return out

    @classmethod
    def load(cls, path: Path, digest: str) -> Prices | None:
        """Those of a file; None when they were measured for another source or calibration.

        Raises:
            InputError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as z:
                if str(z["digest"]) != digest or int(z["version"]) != VERSION:
                    return None
                found: dict[str, dict[str, Any]] = {"curves": {}, "drift": {}}
                rises, thresholds = {}, {}
                for key in z.files:
                    part, _, rest = key.partition("/")
                    if part == "rise":
                        rises[rest] = (float(z[key][0]), float(z[key][1]))
                    elif part == "threshold":
                        thresholds[rest] = z[key]
                    elif part in found and not key.endswith("/top"):
                        name, _, kind = rest.partition("/")
                        value = z[key].astype(np.float64) * float(z[f"{key}/top"])
                        if kind:
                            found[part].setdefault(name, {})[kind] = value
                        else:
                            found[part][name] = value
                curves, drift = Curves(**found["curves"]), Drift(**found["drift"])
                return cls(curves, drift, rises, thresholds)
        except (OSError, ValueError, KeyError, TypeError, EOFError, *BROKEN) as e:
            raise InputError(
                f"{path} is damaged ({e}); sparseflash prices measures it again"
            ) from e
