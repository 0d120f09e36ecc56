"""Weight bytes a token reads, from how much of each matrix is active: the one model of it.

A matrix is read by rows, or, in layers where its input is masked, by columns: a column holds the
integers, and the scales of each group of 32 columns are one table with an entry for each output,
read when any column of the group lives (docs/SPEC.md stores down_proj so). Both ways cost the
same when dense, but for outputs that do not fill a group of 32. Of a projection in two factors B is
read in full, and rows of A like those of a matrix. Predictors, proxies and the norms that scores
need are read in full, for every token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseflash.image.bfp import GROUP
from sparseflash.image.formats import Formats, shape_of
from sparseflash.image.grids import column_bytes, row_bytes, table_bytes
from sparseflash.image.needs import Needs
from sparseflash.model.spec import ModelSpec, Position
from sparseflash.sparsity.reads import Reads

INPUT_SITES = {"qkv": ("q", "k", "v"), "o": ("o",), "gate": ("xg",), "up": ("xu",)}
"""Sites of the inputs of what an image stores by columns (``formats.MATRICES``)."""


@dataclass
class Extra:
    """What a method reads beside the weights, bytes a layer and token."""

    proxy: float = 0.0
    metadata: float = 0.0


@dataclass
class Bytes:
    """Bytes a token by part; layers are summed, ``by_layer`` (layers,) has their totals."""

    attention: float
    gate: float
    up: float
    down: float
    proxy: float
    metadata: float
    head: float
    embed: float
    by_layer: np.ndarray

    @property
    def ffn(self) -> float:
        return self.gate + self.up + self.down

    @property
    def layers(self) -> float:
        """All but embedding and head."""
        return float(self.by_layer.sum())

    @property
    def total(self) -> float:
        return self.layers + self.head + self.embed


def columns_of(levels: dict[str, np.ndarray]) -> tuple[str, ...]:
    """``Needs.columns`` for levels (layers,) by site: what loses inputs is stored by columns."""
    groups = {m: [s for s in sites if s in levels] for m, sites in INPUT_SITES.items()}
    n = max((len(v) for v in levels.values()), default=0)
    lines = [
        " ".join(m for m, sites in groups.items() if any(levels[s][i] > 0 for s in sites))
        for i in range(n)
    ]
    return tuple(lines) if any(lines) else ()


def bytes_a_token(
    spec: ModelSpec, formats: Formats, needs: Needs, reads: Reads, extra: Extra | None = None
) -> Bytes:
    """Bytes of a token from an image stored so, from sums over ``reads.tokens`` tokens."""
    extra = extra or Extra()
    n = max(reads.tokens, 1)
    zero = np.zeros(spec.n_layers)

    def stored(name: str, matrix: str, site: str, read: np.ndarray | None = None) -> np.ndarray:
        """Bytes (layers,) of a projection; ``read`` (layers,) of its rows, all of them if None."""
        outputs, inputs = shape_of(spec, name)
        fmt = formats.grid_of(name)
        read = zero + outputs if read is None else read
        rows = read * row_bytes(inputs, fmt)
        for i in range(spec.n_layers):
            if rank := needs.rank_of(i, name):
                rows[i] = rank * row_bytes(inputs, fmt) + read[i] * row_bytes(rank, fmt)
        by = np.array([needs.by_columns(i, matrix) for i in range(spec.n_layers)])
        kept = reads.kept.get(site, zero + n * inputs) / n * column_bytes(outputs, fmt)
        blocks = reads.blocks.get(site, zero + n * (-(-inputs // GROUP)))
        return np.where(by, kept + blocks / n * table_bytes(outputs, fmt), rows)

    attention = zero
    for name in "qkvo":
        attention = attention + stored(name, "o" if name == "o" else "qkv", name)
    gate = stored("gate", "gate", "xg", reads.gate_rows / n) if spec.gated else zero
    router = spec.experts * row_bytes(spec.dim, formats.embed)
    up = stored("up", "up", "xu", reads.up_rows / n)
    fmt = formats.ffn
    down = reads.columns / n * column_bytes(spec.dim, fmt)
    blocks = zero + 1 if fmt == "r8" else reads.column_blocks / n
    down = down + blocks * table_bytes(spec.dim, fmt)
    if needs.down == "rows":
        down = zero + spec.dim * row_bytes(spec.ffn_dim, fmt)
    layers = attention + gate + up + down + router + extra.proxy + extra.metadata
    row = row_bytes(spec.dim, formats.embed)
    embed = row * (2 if spec.position is Position.LEARNED else 1)
    return Bytes(
        attention=float(attention.sum()),
        gate=float(gate.sum()),
        up=float(up.sum()),
        down=float(down.sum()),
        proxy=extra.proxy * spec.n_layers,
        metadata=extra.metadata * spec.n_layers,
        head=float(spec.vocab * row),
        embed=float(embed),
        by_layer=np.asarray(layers),
    )
