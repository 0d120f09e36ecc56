"""Where each part of the weights lies: mapped, pinned in RAM, or streamed from flash.

A part is a set of rows that are read together; its first rows can be pinned. Pinning a byte saves
as many flash bytes a token as that byte is read on average, so parts that are always read whole
come before down columns, of which a mask skips a share. Parts of equal worth are pinned to the same
fraction: the stream is then needed at an even pace and has computing to hide behind everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparseflash.columns import column_bytes, matrix_bytes, table_bytes, tables
from sparseflash.errors import TooSmallError
from sparseflash.factors import shape_of
from sparseflash.proxy import proxy_row_bytes
from sparseflash.quantize import row_bytes
from sparseflash.sfm import Formats, Image, Section, record_layout

KINDS = ("qkv", "o", "gate", "up", "scales", "down")
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
    pinned: int = 0
    """Rows from 0 on that stay in RAM."""
    pin: int = 0
    """Their offset in the pinned RAM."""

    @property
    def size(self) -> int:
        return (self.rows - 1) * self.stride + self.bytes

    @property
    def read(self) -> float:
        """Bytes a token reads of it."""
        return self.rows * self.bytes * self.use


def kinds_of(formats: Formats) -> tuple[str, ...]:
    """Parts of a layer in order of use; a matrix by columns has a part for its scales, one that can
    be in factors its A, after a part for B, which has no rows in layers where it is whole."""
    out: list[str] = []
    for kind in KINDS:
        matrices = ("q", "k", "v") if kind == "qkv" else (kind,)
        if formats.guesses and kind == ("qkv" if formats.ahead else "gate"):
            out += [*(["guess_b"] * (formats.rank > 0)), "guess_gate", "guess_up"]
        if formats.ranks and kind not in ("scales", "down"):
            out += [name for m in matrices for name in (f"{m}_b", m)]
        elif formats.attn_columns and kind in ("qkv", "o"):
            out += [name for m in matrices for name in (m, f"{m}_scales")]
        elif formats.ffn_columns and kind in ("gate", "up"):
            out += [kind, f"{kind}_scales"]
        else:
            out.append(kind)
    return tuple(out)


def _by_columns(
    kind: str, layer: int, at: int, outputs: int, inputs: int, fmt: str, use: float
) -> list[Part]:
    """A matrix stored by columns, and its scales."""
    column, table = column_bytes(outputs, fmt), table_bytes(outputs, fmt)
    ffn = kind in ("gate", "up")
    scales = at + inputs * column
    return [
        Part(kind, layer, at, column, column, inputs, ffn, use),
        Part(f"{kind}_scales", layer, scales, table, table, tables(inputs, fmt), ffn),
    ]


def _factored(
    image: Image, layer: int, at: int, names: tuple[str, ...], ffn: bool, use: float
) -> list[Part]:
    """B and A of projections, and the rows of those that are whole, which lie from ``at`` on."""
    s, f, out = image.spec, image.formats, []
    places = image.factor_offsets(layer)
    for name in names:
        rows, cols = shape_of(s, name)
        if name in places:
            b, a, wide, small = places[name]
            start = image.offset(Section.FACTORS, layer)
            out.append(Part(f"{name}_b", layer, start + b, wide, wide, (a - b) // wide, ffn))
            out.append(Part(name, layer, start + a, small, small, rows, ffn, use))
        else:
            row = row_bytes(cols, f.ffn if ffn else f.attn)
            out.append(Part(f"{name}_b", layer, 0, 0, 0, 0, ffn))
            out.append(Part(name, layer, at, row, row, rows, ffn, use))
            at += rows * row
    return out


def _guess_parts(image: Image, layer: int) -> list[Part]:
    """The proxies, or the low-rank predictor."""
    s, f = image.spec, image.formats
    at, out = image.offset(Section.GUESS, layer), []
    size = proxy_row_bytes(s.dim, f.guess)
    if f.rank:
        wide, size = row_bytes(s.dim, "q4"), row_bytes(f.rank, "q4")
        out.append(Part("guess_b", layer, at, wide, wide, f.rank, True))
        at += f.rank * wide
    for kind in ("guess_gate", "guess_up"):
        out.append(Part(kind, layer, at, size, size, s.ffn_dim, True))
        at += s.ffn_dim * size
    return out


def parts_of(
    image: Image,
    alive: float = 1.0,
    alive_up: float = 1.0,
    alive_gate: float = 1.0,
    inputs: float = 1.0,
    head_rows: int = 0,
) -> list[Part]:
    """The parts in order of use; ``alive`` is the share of neurons a mask keeps.

    inputs: the share of inputs that live at matrices stored by columns.
    head_rows: what a screened head computes exactly.
    """
    s, f = image.spec, image.formats
    row, o_row = row_bytes(s.dim, f.attn), row_bytes(s.q_dim, f.attn)
    heads = s.q_dim + 2 * s.kv_dim
    table = table_bytes(s.dim, f.ffn)
    out = []
    for i in range(s.n_layers):
        attn = image.offset(Section.ATTN, i)
        rec, lay = image.offset(Section.RECORDS, i), record_layout(s, f, i)
        scales = image.offset(Section.SCALES, i)
        rs, cs, n = lay.row_stride, lay.column_stride, s.ffn_dim
        if f.ahead:
            out += _guess_parts(image, i)
        if f.ranks:
            out += _factored(image, i, attn, ("q", "k", "v", "o"), False, 1.0)
        elif f.attn_columns:
            at = attn
            for kind, rows, cols in (
                ("q", s.q_dim, s.dim),
                ("k", s.kv_dim, s.dim),
                ("v", s.kv_dim, s.dim),
                ("o", s.dim, s.q_dim),
            ):
                out += _by_columns(kind, i, at, rows, cols, f.attn, inputs)
                at += matrix_bytes(rows, cols, f.attn)
        else:
            out += [
                Part("qkv", i, attn, row, row, heads, False),
                Part("o", i, attn + heads * row, o_row, o_row, s.dim, False),
            ]
        if f.guesses and not f.ahead:
            out += _guess_parts(image, i)
        if f.ranks:
            for kind, start, use in (("gate", lay.gate, alive_gate), ("up", lay.up, alive_up)):
                out += _factored(image, i, rec + start, (kind,), True, use)
        elif f.ffn_columns:
            for kind, start in (("gate", lay.gate), ("up", lay.up)):
                out += _by_columns(kind, i, rec + start, n, s.dim, f.ffn, inputs)
        else:
            out += [
                Part("gate", i, rec + lay.gate, rs, lay.row, n, True, alive_gate),
                Part("up", i, rec + lay.up, rs, lay.row, n, True, alive_up),
            ]
        out += [
            Part("scales", i, scales, table, table, tables(s.ffn_dim, f.ffn), True),
            Part("down", i, rec + lay.down, cs, lay.column, n, True, alive),
        ]
    e_row = row_bytes(s.dim, f.embed)
    head = image.offset(Section.EMBED if s.tied_head else Section.HEAD)
    if head_rows:
        proxy, p_row = image.offset(Section.HEAD_PROXY), row_bytes(s.dim, f.head_proxy)
        out.append(Part("head_proxy", s.n_layers, proxy, p_row, p_row, s.vocab, False))
    use = head_rows / s.vocab if head_rows else 1.0
    out.append(Part("head", s.n_layers, head, e_row, e_row, s.vocab, False, use))
    embed = image.offset(Section.EMBED)
    out.append(Part("embed", s.n_layers, embed, e_row, e_row, s.vocab, False, 1 / s.vocab))
    return out


def _padded(size: int) -> int:
    return -(-size // PIN_ALIGN) * PIN_ALIGN


def place(parts: list[Part], budget: int, tied: bool, ram: int, board: str) -> list[Part]:
    """Pins rows into ``budget`` bytes of RAM; the others are streamed.

    Raises:
        TooSmallError: working memory leaves nothing.
    """
    groups = [
        [p for p in parts if p.kind.endswith("scales")],
        sorted(
            (p for p in parts if p.rows and p.kind[-6:] != "scales" and p.kind != "embed"),
            key=lambda p: -p.use,
        ),
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
    for use in sorted({p.use for p in groups[1]}, reverse=True):
        some = [p for p in groups[1] if p.use == use]
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
    """By kind and in total: bytes pinned, bytes streamed, and those of them a token reads."""
    kinds: dict[str, dict[str, float]] = {}
    for p in parts:
        if p.kind == "embed":
            continue
        k = kinds.setdefault(p.kind, {"pinned": 0, "streamed": 0, "read": 0.0})
        k["pinned"] += p.pinned * p.bytes
        k["streamed"] += (p.rows - p.pinned) * p.bytes
        k["read"] += (p.rows - p.pinned) * p.bytes * p.use
    total = {n: sum(k[n] for k in kinds.values()) for n in ("pinned", "streamed", "read")}
    return {"kinds": kinds, "total": total}
