"""Where each part of the weights lies: mapped, pinned in RAM, or streamed from flash.

A part is a set of rows that are read together. Pinning a byte saves as many flash bytes a token as
that byte is read on average, so parts that are always read whole come first and down columns, of
which a mask skips a share, last. Parts of equal worth are pinned evenly across the layers: the
stream then has computing to hide behind everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparseflash.errors import TooSmallError
from sparseflash.quantize import row_bytes
from sparseflash.sfm import Image, Section, record_layout

KINDS = ("qkv", "o", "gate", "up", "scales", "down")
NOT_PINNED = 0xFFFFFFFF
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
    pin: int = NOT_PINNED

    @property
    def size(self) -> int:
        return (self.rows - 1) * self.stride + self.bytes

    @property
    def read(self) -> float:
        """Bytes a token reads of it."""
        return self.rows * self.bytes * self.use


def parts_of(image: Image, alive: float = 1.0, alive_up: float = 1.0) -> list[Part]:
    """The parts in order of use; ``alive`` is the share of neurons a mask keeps."""
    s, f = image.spec, image.formats
    lay = record_layout(s, f)
    row, o_row = row_bytes(s.dim, f.attn), row_bytes(s.q_dim, f.attn)
    heads = s.q_dim + 2 * s.kv_dim
    blocks = -(-s.ffn_dim // 32)
    table = s.dim * (4 if f.ffn == "q4" else 2)
    out = []
    for i in range(s.n_layers):
        attn = image.offset(Section.ATTN, i)
        rec = image.offset(Section.RECORDS, i)
        scales = image.offset(Section.SCALES, i)
        rs, cs, n = lay.row_stride, lay.column_stride, s.ffn_dim
        out += [
            Part("qkv", i, attn, row, row, heads, False),
            Part("o", i, attn + heads * row, o_row, o_row, s.dim, False),
            Part("gate", i, rec + lay.gate, rs, lay.row, n, True),
            Part("up", i, rec + lay.up, rs, lay.row, n, True, alive_up),
            Part("scales", i, scales, table, table, blocks, True),
            Part("down", i, rec + lay.down, cs, lay.column, n, True, alive),
        ]
    e_row = row_bytes(s.dim, f.embed)
    head = image.offset(Section.EMBED if s.tied_head else Section.HEAD)
    out.append(Part("head", s.n_layers, head, e_row, e_row, s.vocab, False))
    embed = image.offset(Section.EMBED)
    out.append(Part("embed", s.n_layers, embed, e_row, e_row, s.vocab, False, 1 / s.vocab))
    return out


def _even(parts: list[Part]) -> list[Part]:
    """Layers in bit-reversed order, so that every prefix is spread evenly."""
    bits = max(1, max(p.layer for p in parts).bit_length())
    return sorted(parts, key=lambda p: int(f"{p.layer:0{bits}b}"[::-1], 2))


def place(parts: list[Part], budget: int, tied: bool, where: str) -> list[Part]:
    """Pins parts into ``budget`` bytes of RAM; the others are streamed.

    Raises:
        TooSmallError: not even the scales fit, which a stream cannot do without.
    """
    rank = {"scales": 0, "head": 1, "qkv": 2, "o": 2, "gate": 3, "up": 4, "down": 5}
    order: list[Part] = []
    for level in range(6):
        some = [p for p in parts if rank.get(p.kind) == level]
        order += _even(some) if some else []
    pins: dict[tuple[str, int], int] = {}
    at = 0
    for p in order:
        size = -(-p.size // PIN_ALIGN) * PIN_ALIGN
        if at + size <= budget:
            pins[p.kind, p.layer] = at
            at += size
        elif p.kind == "scales":
            need = sum(-(-q.size // PIN_ALIGN) * PIN_ALIGN for q in parts if q.kind == "scales")
            raise TooSmallError(
                f"{where}: {budget:,} bytes of RAM are left for weights and the scales of "
                f"down_proj alone take {need:,}; give at least {need - budget:,} more (--ram)"
            )
    out = [replace(p, pin=pins.get((p.kind, p.layer), NOT_PINNED)) for p in parts]
    if tied:
        head = next(p for p in out if p.kind == "head")
        out = [replace(p, pin=head.pin) if p.kind == "embed" else p for p in out]
    return out


def summary(parts: list[Part]) -> dict[str, Any]:
    """Bytes by place: pinned, streamed (size, and read a token) and by kind."""
    kinds: dict[str, dict[str, float]] = {}
    for p in parts:
        k = kinds.setdefault(p.kind, {"pinned": 0, "streamed": 0, "read": 0.0})
        if p.kind == "embed" and p.pin != NOT_PINNED:
            continue
        if p.pin != NOT_PINNED:
            k["pinned"] += p.size
        else:
            k["streamed"] += 0 if p.kind == "embed" else p.rows * p.bytes
            k["read"] += p.read
    total = {n: sum(k[n] for k in kinds.values()) for n in ("pinned", "streamed", "read")}
    return {"kinds": kinds, "total": total}
