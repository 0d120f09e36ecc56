"""What the methods of a plan ask of an image, beside the formats that a person chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sparseflash.base.errors import UnsupportedError
from sparseflash.image.formats import BY_ROWS, FACTORED, MATRICES, Formats
from sparseflash.model.spec import Layer, ModelSpec

Part = tuple[str, str, np.ndarray, int]
"""Of a predictor: its role, grid, stored rows and inputs."""


class Chooser(Protocol):
    """A predictor that an image stores: proxies, signs or low-rank factors."""

    @property
    def digest(self) -> str:
        """Tells it from every other predictor of the same model."""

    @property
    def ahead(self) -> bool:
        """It reads the normed input of attention, not of the FFN."""

    def check(self, spec: ModelSpec, where: str) -> None:
        """Refuses a model that it does not fit."""

    def parts(self, layer: Layer, i: int) -> Iterator[Part]:
        """What is stored of layer ``i``. Rows of the roles ``predictor_gate`` and ``predictor_up``
        are one a neuron."""


class Pairs(Protocol):
    """Two factors in place of some projections (``factors.Factors``)."""

    @property
    def digest(self) -> str:
        """Tells them from all others."""

    @property
    def rows(self) -> dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]:
        """Stored rows of B and A, by layer and projection."""

    def rank(self, layer: int, name: str) -> int:
        """0 for a projection that stays whole."""


@dataclass(frozen=True)
class Needs:
    """Nothing by default: whole matrices, of which only down_proj is stored by columns."""

    columns: tuple[str, ...] = ()
    """By layer, which of MATRICES are stored by columns, with spaces between (``"qkv gate"``), for
    methods that drop their inputs; empty when no layer has any."""
    down: str = "columns"
    """down_proj by ``columns``, so that those of dropped neurons are not read, or by ``rows``."""
    predictor: Chooser | None = None
    """Chooses neurons before they are read."""
    predicted: tuple[bool, ...] = ()
    """Layers that have the predictor; empty when all have."""
    factors: Pairs | None = None
    """Replace projections."""
    norms: tuple[str, ...] = ()
    """Of MET, where scores are magnitudes times the norms of the columns that the entries meet."""
    top_k: bool = False
    """Thresholds of MET count the largest scores that each token keeps."""

    def for_experts(self) -> Needs:
        """Those of a model with a router: columns of down of other experts stay unread."""
        return replace(self, down="columns")

    def by_columns(self, layer: int, matrix: str) -> bool:
        """Whether a layer stores one of MATRICES by columns."""
        return bool(self.columns) and matrix in self.columns[layer].split()

    def with_gate_by_columns(self, layers: int) -> Needs:
        """Those of a model with thresholds on the inputs of gate: its columns are read alone."""
        lines = self.columns or ("",) * layers
        return replace(self, columns=tuple(" ".join(sorted({*x.split(), "gate"})) for x in lines))

    def rank_of(self, layer: int, name: str) -> int:
        """Rank of a projection; 0 for a whole matrix."""
        return self.factors.rank(layer, name) if self.factors and name in FACTORED else 0

    def predicts(self, layer: int) -> bool:
        """Whether a layer's neurons can be chosen before they are read."""
        return self.predictor is not None and (not self.predicted or self.predicted[layer])

    def plain(self) -> dict[str, Any]:
        """For META: equal for images that store a model alike."""
        scores = {"norms": list(self.norms), "top_k": self.top_k}
        return {
            "columns": list(self.columns),
            "down": self.down,
            "predictor": self.predictor.digest if self.predictor else "",
            "ahead": self.predictor is not None and self.predictor.ahead,
            "predicted": list(self.predicted),
            "factors": self.factors.digest if self.factors else "",
            **(scores if self.norms or self.top_k else {}),
        }

    def check(self, spec: ModelSpec, formats: Formats) -> None:
        """Raises UnsupportedError or InputError when one image cannot have all of it."""
        names = {m for line in self.columns for m in line.split()}
        if self.columns and (
            len(self.columns) != spec.n_layers or not names or not names <= set(MATRICES)
        ):
            raise UnsupportedError(
                f"columns {self.columns} are not a line of {', '.join(MATRICES)} for each of "
                f"{spec.n_layers} layers; leave them out where there are none"
            )
        if "r8" in (formats.attn, formats.ffn) and names:
            raise UnsupportedError(
                f"format r8 has no columns of {', '.join(sorted(names))}; a method that drops "
                "inputs takes q4 or q8"
            )
        if self.down not in ("columns", "rows"):
            raise UnsupportedError(f"down_proj by {self.down!r}; there are columns and rows")
        if spec.own_thresholds and not all(
            self.by_columns(i, "gate") for i in range(spec.n_layers)
        ):
            raise UnsupportedError(
                "thresholds on the inputs of gate need gate by columns in every layer; say so"
            )
        if self.factors is not None and self.columns:
            raise UnsupportedError(BY_ROWS)
        if (self.norms or self.top_k) and (spec.own_thresholds or self.factors is not None):
            what = "projections in factors" if self.factors else "thresholds of its own"
            raise UnsupportedError(
                f"a model with {what} drops entries by their magnitude; choose a method without "
                "top-k and column norms"
            )
        if self.down == "rows" and spec.experts:
            raise UnsupportedError("a router chooses columns of down, which is by rows; choose one")
        if self.predictor is None:
            return
        self.predictor.check(spec, "predictor")
        if names & {"gate", "up"}:
            raise UnsupportedError(
                "a predictor chooses rows of gate and up, which this image stores by columns; "
                "choose one"
            )
        if self.down == "rows":
            raise UnsupportedError(
                "a predictor chooses columns of down, which is by rows; choose one"
            )
