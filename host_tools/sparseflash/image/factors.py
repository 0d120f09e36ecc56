"""Projections stored as two factors, W ~ A B: y = A (B x) in two Linear steps (docs/SPEC.md).

Each projection of each layer has a rank of its own, a multiple of 32, or stays whole. Both factors
are on the grid of the matrix that they replace. ``sparsity/asvd.py`` finds them.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparseflash.base.errors import InputError
from sparseflash.base.files import write_arrays
from sparseflash.image.formats import FACTORED, Formats, shape_of
from sparseflash.image.grids import Blocks, row_bytes, unpack_rows
from sparseflash.model.spec import Model, ModelSpec


def factor_bytes(rows: int, cols: int, rank: int, fmt: str) -> int:
    """Bytes of B (rank, cols) and A (rows, rank)."""
    return rank * row_bytes(cols, fmt) + rows * row_bytes(rank, fmt)


@dataclass(frozen=True)
class Factors:
    """Stored rows by layer and projection: B (rank, bytes of in) and A (out, bytes of rank), uint8.

    ``source`` is the SHA-256 of the model's weights, ``found`` says on what the ranks depend.
    """

    rows: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]
    source: str = ""
    found: str = ""

    def rank(self, layer: int, name: str) -> int:
        """0 for a projection that stays whole."""
        return len(self.rows[layer, name][0]) if (layer, name) in self.rows else 0

    @property
    def digest(self) -> str:
        """Of the rows, 16 hexadecimal digits."""
        h = hashlib.sha256()
        for (layer, name), pair in sorted(self.rows.items()):
            h.update(f"{layer} {name} ".encode())
            for rows in pair:
                h.update(rows.tobytes())
        return h.hexdigest()[:16]

    def blocks(self, spec: ModelSpec, layer: int, name: str, fmt: str) -> tuple[Blocks, Blocks]:
        """B (rank, in) and A (out, rank)."""
        b, a = self.rows[layer, name]
        return unpack_rows(b, shape_of(spec, name)[1], fmt), unpack_rows(a, len(b), fmt)

    def multiplied_out(self, model: Model, formats: Formats) -> Model:
        """The model in float that has A B in place of the projections; ``source`` names them."""
        layers = []
        for i, layer in enumerate(model.layers):
            changes = {}
            for name in FACTORED:
                if self.rank(i, name):
                    b, a = self.blocks(model.spec, i, name, formats.grid_of(name))
                    changes[f"{name}_proj"] = a.float32() @ b.float32()
            layers.append(replace(layer, **changes))
        return replace(model, layers=layers, source=model.source | {"factors": self.digest})

    def save(self, path: Path) -> None:
        """An .npz with ``<layer>.<name>.b`` and ``.a``."""
        arrays = {"source": np.array(self.source), "found": np.array(self.found)}
        for (i, name), (b, a) in sorted(self.rows.items()):
            arrays |= {f"{i}.{name}.b": b, f"{i}.{name}.a": a}
        write_arrays(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Factors:
        """Raises InputError when the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as z:
                names = sorted({k.rpartition(".")[0] for k in z.files if "." in k})
                rows = {
                    (int(k.split(".")[0]), k.split(".")[1]): (z[f"{k}.b"], z[f"{k}.a"])
                    for k in names
                }
                return cls(rows, str(z["source"]), str(z["found"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise InputError(f"{path} is missing or damaged ({e}); remove it, run again") from e
