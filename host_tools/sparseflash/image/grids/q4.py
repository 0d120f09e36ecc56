"""``q4``: affine 4 bits in groups of 32 along the inputs, w = d*q + m with q in 0..15.

GGUF Q4_1 and Q4_0 arrive so, bit for bit. By columns the scales of 32 columns are a table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparseflash.base.nibbles import pack_nibbles, unpack_nibbles
from sparseflash.image.bfp import GROUP, Bfp, half_units
from sparseflash.image.grids import (
    Grid,
    aligned,
    bytes_of,
    grouped,
    half_scale,
    outputs_first,
    pad_columns,
    padded,
    register,
    scales_of,
    tables_of,
)
from sparseflash.model.spec import Q4Blocks


@register
class Q4(Grid):
    name, code, bits = "q4", 1, 4
    rows_of = columns_of = Q4Blocks

    def by_rows(self, w: np.ndarray) -> Q4Blocks:
        """By minimum and range of each group."""
        out = w.shape[0]
        x = pad_columns(w.astype(np.float32)).reshape(out, -1, GROUP)
        low = x.min(-1).astype(np.float16)
        d = half_scale((x.max(-1) - low.astype(np.float32)) / np.float32(15))
        step = d.astype(np.float32)
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
        q = np.rint((x - low.astype(np.float32)[..., None]) * inverse[..., None])
        return Q4Blocks(np.clip(q, 0, 15).astype(np.uint8).reshape(out, -1), d, low)

    def row_bytes(self, cols: int) -> int:
        return 20 * (padded(cols) // GROUP)

    def pack_rows(self, blocks: Q4Blocks) -> np.ndarray:
        pairs = np.stack([blocks.d, blocks.m], axis=-1)
        return aligned(np.concatenate([pack_nibbles(blocks.q), bytes_of(pairs)], axis=1))

    def unpack_rows(self, rows: np.ndarray, cols: int) -> Q4Blocks:
        pairs = np.ascontiguousarray(rows[:, cols // 2 :]).view(np.float16)
        pairs = pairs.reshape(len(rows), cols // GROUP, 2)
        return Q4Blocks(unpack_nibbles(rows[:, : cols // 2]), pairs[..., 0], pairs[..., 1])

    def column_bytes(self, outputs: int) -> int:
        return padded(outputs) // 2

    def table_bytes(self, outputs: int) -> int:
        return 4 * padded(outputs)

    def tables(self, inputs: int) -> int:
        return padded(inputs) // GROUP

    def pack_columns(self, blocks: Q4Blocks) -> np.ndarray:
        return pack_nibbles(outputs_first(blocks.q))

    def pack_tables(self, blocks: Q4Blocks) -> np.ndarray:
        return tables_of(np.stack([blocks.d, blocks.m], axis=-1))

    def unpack_columns(self, columns: np.ndarray, tables: np.ndarray, outputs: int) -> Q4Blocks:
        s = scales_of(tables, outputs)
        return Q4Blocks(unpack_nibbles(columns).T[:outputs], s[..., 0], s[..., 1])

    def product(self, blocks: Q4Blocks) -> Callable[[Bfp], np.ndarray]:
        m = np.ascontiguousarray(half_units(blocks.m).T)
        return grouped(blocks.q, half_units(blocks.d), m)
