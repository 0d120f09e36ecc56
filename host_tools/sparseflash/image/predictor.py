"""Low-rank predictors of the FFN's neurons: one file for what is trained and what is stored.

z = B x, g' = A_gate z, u' = A_up z, and a neuron is read when |act(g') u'| reaches a threshold
(docs/SPEC.md). All three are on the q4 grid. ``<name>.npz`` holds the packed rows as the image
stores them, ``<name>.json`` beside it where they come from.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, UnsupportedError
from sparseflash.base.files import parse_json, write_arrays, write_json
from sparseflash.image.bfp import GROUP
from sparseflash.image.grids import HALF_LIMIT, Blocks, row_bytes, unpack_rows
from sparseflash.model.spec import Layer, ModelSpec

NAMES = ("b", "gate", "up")


@dataclass(frozen=True)
class Predictor:
    """Packed q4 rows of every layer, uint8 (layers, rows, row bytes).

    ``b`` has ``rank`` rows of dim weights; ``gate`` and ``up`` have ffn rows of rank weights, and
    gate has none where the model has no gate.
    """

    b: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    ahead: bool = False
    """x is the normed input of the layer's attention, not of its FFN."""

    @property
    def rank(self) -> int:
        return int(self.b.shape[1])

    @property
    def digest(self) -> str:
        """Of the rows and of where x is taken, 16 hexadecimal digits."""
        h = hashlib.sha256(bytes([self.ahead]))
        for name in NAMES:
            h.update(getattr(self, name).tobytes())
        return h.hexdigest()[:16]

    def blocks(self, layer: int, dim: int) -> tuple[Blocks, Blocks | None, Blocks]:
        """B (rank, dim), A_gate and A_up (ffn, rank); no A_gate without a gate."""
        return (
            unpack_rows(self.b[layer], dim, "q4"),
            unpack_rows(self.gate[layer], self.rank, "q4") if self.gate.shape[1] else None,
            unpack_rows(self.up[layer], self.rank, "q4"),
        )

    def parts(self, layer: Layer, i: int) -> Iterator[tuple[str, str, np.ndarray, int]]:
        """Role, grid, stored rows and inputs."""
        yield "predictor_b", "q4", self.b[i], layer.up_proj.shape[1]
        if layer.gate_proj is not None:
            yield "predictor_gate", "q4", self.gate[i], self.rank
        yield "predictor_up", "q4", self.up[i], self.rank

    def check(self, spec: ModelSpec, where: str) -> None:
        """Raises UnsupportedError or InputError when it is not one of such a model."""
        rank = self.rank
        if not rank or rank % GROUP:
            raise UnsupportedError(f"{where}: rank {rank} is not a multiple of {GROUP}")
        n, small = spec.n_layers, row_bytes(rank, "q4")
        gate = (n, spec.ffn_dim if spec.gated else 0, small)
        shapes = [(n, rank, row_bytes(spec.dim, "q4")), gate, (n, spec.ffn_dim, small)]
        found = [getattr(self, name).shape for name in NAMES]
        if found != shapes:
            raise InputError(
                f"{where}: arrays of {found} where a predictor of rank {rank} has {shapes}; "
                "it was made for another model"
            )
        for name, cols in zip(NAMES, (spec.dim, rank, rank)):
            scales = np.ascontiguousarray(getattr(self, name)[..., cols // 2 :]).view("<f2")
            if not np.all(np.abs(scales.astype(np.float32)) < HALF_LIMIT):
                raise UnsupportedError(
                    f"{where}: a scale of {name} is {HALF_LIMIT:g} or more, or not a number, which "
                    "the device's integers cannot hold; train it again"
                )

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """``path`` (.npz), and the .json beside it: ``about``, rank and ahead."""
        write_arrays(path, b=self.b, gate=self.gate, up=self.up)
        write_json(path.with_suffix(".json"), {**about, "rank": self.rank, "ahead": self.ahead})


def load_predictor(path: Path, spec: ModelSpec, model_sha256: str, sha256: str = "") -> Predictor:
    """The predictor of ``path`` and the .json beside it.

    Args:
        spec: of the model it is for.
        model_sha256: of the file of that model's weights.
        sha256: of ``path``, when it is known beforehand.

    Raises:
        InputError: a file is missing, damaged, another one, or made for another model.
        UnsupportedError: the device cannot compute it.
    """
    try:
        data = path.read_bytes()
        about = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise InputError(f"{path}: SHA-256 is not that of the recipe; restore the file")
        with np.load(io.BytesIO(data), allow_pickle=False) as z:
            b, gate, up = (z[name] for name in NAMES)
        ahead, made_for = about.get("ahead", False), about["model_sha256"]
    except OSError as e:
        raise InputError(f"{e.filename or path}: {e.strerror}; the predictor is not there") from e
    except (ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{path} or its .json is damaged ({e}); restore or train it again") from e
    if made_for != model_sha256:
        raise InputError(
            f"{path} was trained for the weights {str(made_for)[:12]} and these are "
            f"{model_sha256[:12]}; train it for this model"
        )
    if any(a.ndim != 3 or a.dtype != np.uint8 for a in (b, gate, up)) or ahead not in (0, 1):
        raise InputError(f"{path}: b, gate and up are not bytes of (layers, rows, row bytes)")
    out = Predictor(b, gate, up, bool(ahead))
    out.check(spec, str(path))
    return out


def predictor_bytes(spec: ModelSpec, rank: int) -> float:
    """Bytes of a layer's predictor, all of which a token reads."""
    return rank * row_bytes(spec.dim, "q4") + (
        2.0 if spec.gated else 1.0
    ) * spec.ffn_dim * row_bytes(rank, "q4")
