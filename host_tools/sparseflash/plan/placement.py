"""Where each part of the weights lies: mapped, pinned in RAM, or streamed from flash.

A part is a set of rows that are read together; its first rows can be pinned. Pinning a byte saves
as many flash bytes a token as are read for it, so parts that are always read whole come before
down columns, of which a mask skips a share; where flash is read in large blocks, a mask may skip
none (``expected_reads``). Parts of equal worth are pinned to the same
fraction: the stream is then needed at an even pace and has computing to hide behind everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseflash.base.errors import TooSmallError
from sparseflash.image.columns import column_bytes, table_bytes, tables
from sparseflash.image.formats import INPUTS as INPUT_SITES
from sparseflash.image.formats import MATRICES, Formats, shape_of
from sparseflash.image.proxy import proxy_row_bytes
from sparseflash.image.quantize import row_bytes
from sparseflash.image.sfm import Image, Section, record_layout
from sparseflash.plan.reads import Reading
from sparseflash.sparsity.sites import Use

PIN_ALIGN = 64


@dataclass(frozen=True)
class Part:
    """Rows in flash; ``use`` is the expected share of them that a token reads."""

    kind: str
    layer: int
    at: int
    stride: int
    bytes: int
    rows: int
    ffn: bool
    use: float = 1.0
    fetched: float = 1.0
    """Bytes that are expected to be read from flash for each of its bytes."""
    input: str = ""
    """Site of the inputs whose columns the rows are; empty for a matrix by rows."""
    pinned: int = 0
    """Rows from 0 on that stay in RAM."""
    pin: int = 0
    """Their offset in the pinned RAM."""

    @property
    def size(self) -> int:
        return (self.rows - 1) * self.stride + self.bytes


def kinds_of(formats: Formats) -> tuple[str, ...]:
    """Parts of a layer in order of use, the same for all; a layer leaves those without rows that it
    does not need. A matrix by columns has a part for its scales after it, one that can be in
    factors its A after a part for B."""
    out: list[str] = []
    for matrix in MATRICES:
        stored = formats.stored(matrix)
        each = "qkv" if matrix == "qkv" else (matrix,)
        if formats.guesses and matrix == ("qkv" if formats.ahead else "gate"):
            out += [*(["guess_b"] * (formats.rank > 0)), "guess_gate"]
            out += ["guess_up"] * (not formats.signs)
        if formats.ranks:
            out += [name for m in each for name in (f"{m}_b", m)]
        elif matrix == "qkv":
            out += ["qkv"] * (stored != "columns")
            out += [n for m in each if stored != "rows" for n in (m, f"{m}_scales")]
        else:
            out += [matrix, *([f"{matrix}_scales"] * (stored != "rows"))]
    return (*out, *(["scales"] * (formats.down == "columns")), "down")


def use_of(levels: dict[str, np.ndarray]) -> Use:
    """What is read when sites drop these shares of their entries, (layers,) each."""
    if not levels:
        return {}
    none = np.zeros(len(next(iter(levels.values()))))

    def kept(site: str) -> np.ndarray:
        return 1.0 - np.asarray(levels.get(site, none))

    rows = np.minimum(np.minimum(kept("gate"), kept("act")), kept("proxy"))
    use = {s: kept(s) for s in INPUT_SITES if s in levels}
    # Gate and up outputs are nearly independent; h is small where act is.
    return use | {
        "gate": kept("proxy"),
        "up": rows,
        "down": np.minimum(rows * kept("up"), kept("h")),
    }


class _Layer:
    """The parts of one layer, by kind."""

    def __init__(self, image: Image, layer: int, use: Use) -> None:
        self.image, self.layer, self.use = image, layer, use
        self.parts: dict[str, Part] = {}

    def add(
        self, kind: str, at: int, stride: int, size: int, rows: int, ffn: bool, site: str = ""
    ) -> int:
        """Rows of ``size`` bytes; returns where they end. ``site``: of inputs, if they are its
        columns."""
        name = site or kind
        use = float(self.use[name][self.layer]) if name in self.use else 1.0
        self.parts[kind] = Part(kind, self.layer, at, stride, size, rows, ffn, use, input=site)
        return at + rows * stride

    def matrix(self, name: str, at: int, stride: int = 0) -> int:
        """A projection at ``at``, by rows (of a stride), by columns or in factors; returns where
        the next one lies."""
        s, f, ffn = self.image.spec, self.image.formats, name in ("gate", "up")
        rows, cols = shape_of(s, name)
        fmt = f.grid_of(name)
        size = row_bytes(cols, fmt)
        if f.by_columns(self.layer, "qkv" if name in "qkv" else name):
            site = {"gate": "xg", "up": "xu"}.get(name, name)
            column, table = column_bytes(rows, fmt), table_bytes(rows, fmt)
            end = self.add(name, at, column, column, cols, ffn, site)
            return self.add(f"{name}_scales", end, table, table, cols // 32, ffn)
        places = self.image.factor_offsets(self.layer) if f.ranks else {}
        if name in places:
            b, a, wide, small = places[name]
            start = self.image.offset(Section.FACTORS, self.layer)
            self.add(f"{name}_b", start + b, wide, wide, (a - b) // wide, ffn)
            self.add(name, start + a, small, small, rows, ffn)
            return at
        return self.add(name, at, stride or size, size, rows, ffn)

    def attention(self) -> None:
        """q, k, v and o."""
        s, f = self.image.spec, self.image.formats
        at = self.image.offset(Section.ATTN, self.layer)
        if f.ranks or f.by_columns(self.layer, "qkv"):
            for name in "qkv":
                at = self.matrix(name, at)
        else:
            row = row_bytes(s.dim, f.attn)
            at = self.add("qkv", at, row, row, s.q_dim + 2 * s.kv_dim, False)
        self.matrix("o", at)

    def guess(self) -> None:
        """The proxies, the low-rank predictor, or the signs of gate."""
        s, f = self.image.spec, self.image.formats
        at, size = self.image.offset(Section.GUESS, self.layer), proxy_row_bytes(s.dim, f.guess)
        if f.rank:
            wide, size = row_bytes(s.dim, "q4"), row_bytes(f.rank, "q4")
            at = self.add("guess_b", at, wide, wide, f.rank, True)
        if f.signs:
            self.add("guess_gate", at, s.dim // 8, s.dim // 8, s.ffn_dim, True)
            return
        for kind in ("guess_gate", "guess_up"):
            at = self.add(kind, at, size, size, s.ffn_dim, True)

    def ffn(self) -> None:
        """Gate, up, and down with its scales."""
        s, f = self.image.spec, self.image.formats
        records = self.image.offset(Section.RECORDS, self.layer)
        gate, up, down = record_layout(s, f, self.layer)
        self.matrix("gate", records + gate.at, gate.stride)
        self.matrix("up", records + up.at, up.stride)
        if f.down == "rows":
            self.add("down", records + down.at, down.stride, down.size, s.dim, True)
            return
        table, scales = table_bytes(s.dim, f.ffn), self.image.offset(Section.SCALES, self.layer)
        self.add("scales", scales, table, table, tables(s.ffn_dim, f.ffn), True)
        self.add("down", records + down.at, down.stride, down.size, s.ffn_dim, True)


def parts_of(image: Image, use: Use | None = None, head_rows: int = 0) -> list[Part]:
    """The parts in order of use, those that a layer does not need with no rows.

    use: what a token is expected to read; head_rows: what a screened head computes exactly.
    """
    s, f = image.spec, image.formats
    kinds = kinds_of(f)
    out = []
    for i in range(s.n_layers):
        layer = _Layer(image, i, use or {})
        layer.attention()
        layer.ffn()
        if f.guesses_in(i):
            layer.guess()
        ffn = {k for k in kinds if k.split("_")[0] in ("gate", "up")}
        out += [layer.parts.get(k, Part(k, i, 0, 0, 0, 0, k in ffn)) for k in kinds]
    e_row = row_bytes(s.dim, f.embed)
    head = image.offset(Section.EMBED if s.tied_head else Section.HEAD)
    if head_rows:
        proxy, p_row = image.offset(Section.HEAD_PROXY), row_bytes(s.dim, f.head_proxy)
        out.append(Part("head_proxy", s.n_layers, proxy, p_row, p_row, s.vocab, False))
    share = head_rows / s.vocab if head_rows else 1.0
    out.append(Part("head", s.n_layers, head, e_row, e_row, s.vocab, False, share))
    embed = image.offset(Section.EMBED)
    out.append(Part("embed", s.n_layers, embed, e_row, e_row, s.vocab, False, 1 / s.vocab))
    return out


def _padded(size: int) -> int:
    return -(-size // PIN_ALIGN) * PIN_ALIGN


def place(
    parts: list[Part], budget: int, tied: bool, ram: int, board: str, reading: Reading
) -> list[Part]:
    """Pins rows into ``budget`` bytes of RAM; the others are streamed as ``reading`` says.

    Raises:
        TooSmallError: working memory leaves nothing.
    """
    parts = [
        replace(p, fetched=float(reading.share(p.bytes, p.use))) if p.rows else p for p in parts
    ]
    groups = [
        [p for p in parts if p.rows and p.kind.endswith("scales")],
        [p for p in parts if p.rows and not p.kind.endswith("scales") and p.kind != "embed"],
    ]
    if budget < 0:
        raise TooSmallError(
            f"board {board}: of {ram:,} bytes of RAM none are left for weights, working memory "
            f"alone takes {ram - budget:,}; the least that works is --ram {ram - budget}"
        )
    need = sum(_padded(p.size) for p in groups[0])
    # Scales are all or nothing: those that are not pinned are read block by block.
    scales = groups[0] if need <= budget else []
    rows = {(p.kind, p.layer): p.rows for p in scales}
    left = budget - (need if scales else 0)
    for worth in sorted({p.fetched for p in groups[1]}, reverse=True):
        some = [p for p in groups[1] if p.fetched == worth]
        share = min(1.0, left / sum(_padded(p.size) for p in some))
        for p in some:
            n = p.rows if share >= 1.0 else max(0, int((p.size * share - PIN_ALIGN) // p.stride))
            rows[p.kind, p.layer] = n
            left -= _padded(n * p.stride)
    out, at = [], 0
    for p in parts:
        n = rows.get((p.kind, p.layer), 0)
        out.append(replace(p, pinned=n, pin=at if n else 0))
        at += _padded(n * p.stride)
    if tied:
        head = next(p for p in out if p.kind == "head")
        out = [
            replace(p, pinned=head.pinned, pin=head.pin) if p.kind == "embed" else p for p in out
        ]
    return out


def pinned_bytes(parts: list[Part]) -> int:
    """RAM that the pinned rows take."""
    return max((p.pin + _padded(p.pinned * p.stride) for p in parts), default=0)


def summary(parts: list[Part]) -> dict[str, Any]:
    """By kind and in total: bytes pinned, bytes streamed, and those a token reads for them."""
    kinds: dict[str, dict[str, float]] = {}
    for p in parts:
        if p.kind == "embed":
            continue
        k = kinds.setdefault(p.kind, {"pinned": 0, "streamed": 0, "read": 0.0})
        k["pinned"] += p.pinned * p.bytes
        k["streamed"] += (p.rows - p.pinned) * p.bytes
        k["read"] += (p.rows - p.pinned) * p.bytes * p.fetched
    total = {n: sum(k[n] for k in kinds.values()) for n in ("pinned", "streamed", "read")}
    return {"kinds": kinds, "total": total}
