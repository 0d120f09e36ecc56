"""Weight bytes a token reads, from how much of each matrix lives: the one model of it.

A matrix is read by rows, or, where its input is masked, by columns: a column holds the integers,
and the scales of each group of 32 columns are one table with an entry for each output, read when
any column of the group lives (docs/SPEC.md stores down_proj so). Both layouts cost the same when
dense. Where rows and columns of one matrix could both be skipped, the layout that reads less is
taken for that layer, since an image has only one. Predictors, proxies and the norms that scores
need are read in full, for every token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparseflash.columns import column_bytes, table_bytes
from sparseflash.methods.masks import Reads
from sparseflash.quantize import row_bytes
from sparseflash.sfm import Formats
from sparseflash.spec import ModelSpec


@dataclass
class Extra:
    """What a method reads beside the weights, bytes a layer and token."""

    proxy: float = 0.0
    metadata: float = 0.0
    all_columns: bool = False
    """One image: matrices whose inputs a method drops are stored by columns in every layer."""
    low_rank: dict[str, np.ndarray] = field(default_factory=dict)
    """Bytes (layers,) of the factors that replace q, k, v, o, gate, up or down; nan where none."""


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


def bytes_a_token(
    spec: ModelSpec, formats: Formats, reads: Reads, extra: Extra | None = None
) -> Bytes:
    """Bytes of a token, from sums over ``reads.tokens`` tokens."""
    extra = extra or Extra()
    n = max(reads.tokens, 1)
    zero = np.zeros(spec.n_layers)

    def columns(site: str, outputs: int, fmt: str) -> np.ndarray | None:
        if site not in reads.kept:
            return None
        body = reads.kept[site] / n * column_bytes(outputs, fmt)
        return np.asarray(body + reads.blocks[site] / n * table_bytes(outputs, fmt))

    def replaced(name: str, part: np.ndarray) -> np.ndarray:
        factors = extra.low_rank.get(name)
        return part if factors is None else np.where(np.isnan(factors), part, factors)

    attention = zero.copy()
    for site, outputs, cols in (
        ("q", spec.q_dim, spec.dim),
        ("k", spec.kv_dim, spec.dim),
        ("v", spec.kv_dim, spec.dim),
        ("o", spec.dim, spec.q_dim),
    ):
        part = columns(site, outputs, formats.attn)
        if part is None:
            part = zero + outputs * row_bytes(cols, formats.attn)
        attention += replaced(site, part)
    fmt = formats.ffn
    row = row_bytes(spec.dim, fmt)
    gate, up = reads.gate_rows / n * row, reads.up_rows / n * row
    for site in ("xg", "xu"):
        by_column = columns(site, spec.ffn_dim, fmt)
        if by_column is not None:
            by_row = gate if site == "xg" else up
            least = by_column if extra.all_columns else np.minimum(by_row, by_column)
            gate, up = (least, up) if site == "xg" else (gate, least)
    down = reads.columns / n * column_bytes(spec.dim, fmt)
    blocks = zero + 1 if fmt == "r8" else reads.column_blocks / n
    down = down + blocks * table_bytes(spec.dim, fmt)
    gate, up, down = replaced("gate", gate), replaced("up", up), replaced("down", down)
    layers = attention + gate + up + down + extra.proxy + extra.metadata
    embed = row_bytes(spec.dim, formats.embed)
    return Bytes(
        attention=float(attention.sum()),
        gate=float(gate.sum()),
        up=float(up.sum()),
        down=float(down.sum()),
        proxy=extra.proxy * spec.n_layers,
        metadata=extra.metadata * spec.n_layers,
        head=float(spec.vocab * embed),
        embed=float(embed),
        by_layer=np.asarray(layers),
    )
