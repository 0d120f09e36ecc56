"""Distributions of the scores on calibration text, and thresholds at a level of them.

One streaming pass counts each score of each layer in the bins of ``calibrate``; any level can be
asked afterwards. A key is a tensor (``h``), a tensor times weights (``h*down_proj``: the norms of
its columns; ``h*fisher``), or h as copies of gate and up predict it (``proxy2``, ``svd-64/...``).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import write_bytes
from sparseflash.base.progress import each
from sparseflash.model.torch_model import Hooks, TorchModel, activate
from sparseflash.sparsity.calibrate import BINS, bin_edges, histogram
from sparseflash.sparsity.masks import prediction_of

PLAIN_KEYS = ("attn_in", "heads", "ffn_in", "gate", "act", "up", "h", "down")


def quantile(counts: np.ndarray, level: float) -> float:
    """The score below which a share ``level`` of the counted values lies; 0 gives 0."""
    if not 0.0 <= level < 1.0:
        raise UsageError(f"level {level:g} is not in 0 to 1; 50 % is written 0.5")
    if level == 0.0:
        return 0.0
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = level * below[-1]
    b = int(np.searchsorted(below[1:], wanted, side="left"))
    edges = bin_edges()
    share = (wanted - below[b]) / counts[b]
    return float(edges[b] + share * (edges[b + 1] - edges[b]))


@dataclass
class Scores:
    """Counts by key, int64 (layers, BINS), and what they were counted on."""

    counts: dict[str, np.ndarray] = field(default_factory=dict)
    digest: str = ""
    """Of the model and the tokens."""

    def threshold(self, layer: int, key: str, level: float) -> float:
        """Score below which a share ``level`` of the values of a layer lies."""
        if key not in self.counts:
            raise UsageError(f"scores of {key!r} were not measured")
        return quantile(self.counts[key][layer], level)

    def save(self, path: Path) -> None:
        """Writes ``path`` (.npz); the same counts give the same bytes."""
        data = io.BytesIO()
        arrays = {"digest": np.frombuffer(self.digest.encode(), np.uint8), **self.counts}
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as z:
            for name, array in sorted(arrays.items()):
                item = io.BytesIO()
                np.save(item, array, allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                z.writestr(info, item.getvalue())
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads what :meth:`save` wrote.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as z:
                counts = {k: z[k] for k in z.files}
            digest = counts.pop("digest").tobytes().decode()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise InputError(f"{path} is missing or damaged; remove it and run again") from e
        if any(c.ndim != 2 or c.shape[1] != BINS for c in counts.values()):
            raise InputError(f"{path} was written by another version; remove it and run again")
        return cls(counts, digest)


Pairs = list[tuple[Tensor | None, Tensor | None]]
"""Copies of gate and up (ffn, dim), by layer; signs of gate alone."""


class _Count(Hooks):
    def __init__(
        self,
        runner: TorchModel,
        keys: Sequence[str],
        pairs: Mapping[str, Pairs],
        weights: Mapping[str, Sequence[Tensor | None]],
        ahead: bool,
    ) -> None:
        self.ahead = ahead
        self.runner, self.keys, self.pairs, self.weights = runner, keys, pairs, weights
        self.counts = {k: np.zeros((runner.spec.n_layers, BINS), np.int64) for k in keys}

    def _add(self, layer: int, tensor: str, value: Tensor) -> None:
        for k in self.keys:
            if k.partition("*")[0] == tensor:
                w = self.weights[k][layer] if k in self.weights else None
                self.counts[k][layer] += histogram(value if w is None else value * w)

    def _predict(self, layer: int, x: Tensor) -> None:
        for name, layers in self.pairs.items():
            gate, up = layers[layer]
            prediction = prediction_of(self.runner, layer, x, gate, up)
            self.counts[name][layer] += histogram(prediction)

    def attn_in(self, layer: int, x: Tensor) -> Tensor:
        self._add(layer, "attn_in", x)
        if self.ahead:
            self._predict(layer, x)
        return x

    def attn_out(self, layer: int, heads: Tensor) -> Tensor:
        self._add(layer, "heads", heads)
        return heads

    def ffn_in(self, layer: int, x: Tensor) -> Tensor:
        self._add(layer, "ffn_in", x)
        if not self.ahead:
            self._predict(layer, x)
        return x

    def ffn(self, layer: int, gate: Tensor, up: Tensor, h: Tensor) -> Tensor:
        self._add(layer, "gate", gate)
        if any(k.partition("*")[0] == "act" for k in self.keys):
            self._add(layer, "act", activate(self.runner.spec.activation, gate))
        self._add(layer, "up", up)
        self._add(layer, "h", h)
        return h

    def ffn_out(self, layer: int, o: Tensor) -> Tensor:
        self._add(layer, "down", o)
        return o


def measure_scores(
    runner: TorchModel,
    ids: np.ndarray,
    keys: Sequence[str],
    pairs: Mapping[str, Pairs] | None = None,
    weights: Mapping[str, Sequence[Tensor | None]] | None = None,
    progress: Callable[[], None] = lambda: None,
    ahead: bool = False,
) -> dict[str, np.ndarray]:
    """Counts of each key over windows, integer (n, tokens), of the dense model.

    ``pairs`` holds the copies of gate and up of those keys that predict h, ``weights`` what the
    magnitudes of the others are multiplied by, by layer. ``ahead``: the predictions read the normed
    input of attention.
    """
    hooks = _Count(runner, tuple(dict.fromkeys(keys)), pairs or {}, weights or {}, ahead)
    for window in each("scores of windows", ids):
        runner.hidden(torch.from_numpy(np.asarray(window, np.int64))[None], hooks)
        progress()
    return hooks.counts
