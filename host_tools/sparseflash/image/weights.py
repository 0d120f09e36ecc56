"""The table of weights of an image: where each matrix lies, and on which grid (docs/SPEC.md).

``pack.py`` writes it; the reader, the reference, the placement, the plan and the C tables read
it, and nothing else computes where weights lie.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sparseflash.base.errors import InputError
from sparseflash.image.formats import BITS
from sparseflash.image.grids import GRIDS

ENTRY = struct.Struct("<24sHHBBBBQIIIIII")
"""name, layer, role, grid, columns, shift, 0, at, stride, size, count, outputs, inputs, CRC-32."""

MATRICES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_o"}
MATRICES |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
ROLES = (
    *("embed", "head", "head_proxy"),
    *(f"{m}{part}" for m in MATRICES for part in ("_b", "", "_scales")),
    *("predictor_b", "predictor_gate", "predictor_up"),
    *("positions", "router"),
)
"""What a row of the table is for; ``_b`` is B of a matrix A B, ``_scales`` tables of columns."""
GRID_CODES = {name: g.code for name, g in GRIDS.items()}
GRID_CODES |= {f"proxy{bits}": 20 + bits for bits in BITS} | {"signs": 32}


def name_of(role: str, layer: int) -> str:
    """``blk.3.ffn_gate``, ``blk.3.ffn_down.scales``, ``head``."""
    first, _, rest = role.partition("_")
    if first in MATRICES:
        return f"blk.{layer}.{MATRICES[first]}" + (f".{rest}" if rest else "")
    if first == "router":
        return f"blk.{layer}.ffn_router"
    if first == "predictor":
        return f"blk.{layer}.predictor.{rest}"
    return role


def is_ffn(role: str) -> bool:
    """Counts as FFN bytes: gate, up, down and what predicts."""
    return role.split("_", maxsplit=1)[0] in (*("gate", "up", "down", "predictor", "router"),)


@dataclass(frozen=True)
class Weight:
    """``count`` rows or columns of ``size`` bytes, the first at byte ``at`` of the image."""

    role: str
    layer: int
    grid: str
    columns: bool
    """The items are columns: one for each input."""
    at: int
    stride: int
    size: int
    count: int
    outputs: int
    inputs: int
    crc: int
    """CRC-32 of the items, one after the other."""
    shift: int = 0
    """What the product by columns of the grid needs; 0 for most."""

    @property
    def name(self) -> str:
        return name_of(self.role, self.layer)

    @property
    def end(self) -> int:
        return self.at + (self.count - 1) * self.stride + self.size

    @property
    def is_ffn(self) -> bool:
        return is_ffn(self.role)

    def packed(self) -> bytes:
        """The row of the table."""
        return ENTRY.pack(
            self.name.encode(),
            self.layer,
            ROLES.index(self.role),
            GRID_CODES[self.grid],
            int(self.columns),
            self.shift,
            0,
            *(self.at, self.stride, self.size, self.count, self.outputs, self.inputs, self.crc),
        )


def read_table(data: bytes, where: str, least: int, most: int) -> dict[tuple[int, str], Weight]:
    """The rows of a table by layer and role; every item lies in bytes ``least`` to ``most``.

    Raises:
        InputError: a row names something unknown or lies outside.
    """
    grids = {code: name for name, code in GRID_CODES.items()}
    out: dict[tuple[int, str], Weight] = {}
    if len(data) % ENTRY.size:
        raise InputError(f"{where}: the table of weights is cut off; pack it again")
    for i in range(len(data) // ENTRY.size):
        raw, layer, role, grid, columns, shift, zero, *numbers = ENTRY.unpack_from(
            data, i * ENTRY.size
        )
        name = raw.rstrip(b"\0").decode("ascii", "backslashreplace")
        if role >= len(ROLES) or grid not in grids or columns > 1 or zero:
            raise InputError(
                f"{where}: weight {i} ({name!r}) has role {role}, grid {grid}, orientation "
                f"{columns} and flags {zero}, which this tool does not know; pack it again"
            )
        at, stride, size, count, outputs, inputs, crc = numbers
        w = Weight(
            *(ROLES[role], layer, grids[grid], bool(columns), at, stride, size, count),
            *(outputs, inputs, crc, shift),
        )
        if w.name != name or (layer, w.role) in out:
            raise InputError(
                f"{where}: weight {i} is named {name!r}, not {w.name!r}, or named "
                "twice; pack it again"
            )
        if not count or not size or stride < size or at < least or w.end > most:
            raise InputError(f"{where}: weight {name!r} lies outside its section; pack it again")
        out[layer, w.role] = w
    return out
