"""Grids of weights: ``q4``, ``q8``, ``r8`` and ``s4``, one file each."""

from sparseflash.image.bfp import GROUP
from sparseflash.image.grids import q4, q8, r8, s4
from sparseflash.image.grids.base import (
    GRIDS,
    HALF_LIMIT,
    Blocks,
    Grid,
    column_bytes,
    grid,
    grid_of,
    linear,
    pack_rows,
    padded,
    quantize,
    row_bytes,
    table_bytes,
    tables,
    unpack_rows,
)

__all__ = [
    "GRIDS",
    "GROUP",
    "HALF_LIMIT",
    "Blocks",
    "Grid",
    "column_bytes",
    "grid",
    "grid_of",
    "linear",
    "pack_rows",
    "padded",
    "q4",
    "q8",
    "quantize",
    "r8",
    "row_bytes",
    "s4",
    "table_bytes",
    "tables",
    "unpack_rows",
]
