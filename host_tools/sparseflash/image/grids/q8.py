"""``q8``: symmetric 8 bits in groups of 32 along the inputs, w = d*q (GGUF Q8_0)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

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
from sparseflash.model.spec import Q8Blocks


@register
class Q8(Grid):
    name, code, bits = "q8", 2, 8
    rows_of = columns_of = Q8Blocks

    def by_rows(self, w: np.ndarray) -> Q8Blocks:
        """By the largest magnitude of each group."""
        out = w.shape[0]
        x = pad_columns(w.astype(np.float32)).reshape(out, -1, GROUP)
        d = half_scale(np.abs(x).max(-1) / np.float32(127))
        step = d.astype(np.float32)
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
        q = np.rint(x * inverse[..., None])
        return Q8Blocks(np.clip(q, -127, 127).astype(np.int8).reshape(out, -1), d)

    def row_bytes(self, cols: int) -> int:
        n = 34 * (padded(cols) // GROUP)
        return -(-n // 4) * 4

    def pack_rows(self, blocks: Q8Blocks) -> np.ndarray:
        return aligned(np.concatenate([blocks.q.view(np.uint8), bytes_of(blocks.d)], axis=1))

    def unpack_rows(self, rows: np.ndarray, cols: int) -> Q8Blocks:
        d = np.ascontiguousarray(rows[:, cols : cols + 2 * (cols // GROUP)]).view(np.float16)
        return Q8Blocks(np.ascontiguousarray(rows[:, :cols]).view(np.int8), d)

    def column_bytes(self, outputs: int) -> int:
        return padded(outputs)

    def table_bytes(self, outputs: int) -> int:
        return 2 * padded(outputs)

    def tables(self, inputs: int) -> int:
        return padded(inputs) // GROUP

    def pack_columns(self, blocks: Q8Blocks) -> np.ndarray:
        return outputs_first(blocks.q).view(np.uint8)

    def pack_tables(self, blocks: Q8Blocks) -> np.ndarray:
        return tables_of(blocks.d[..., None])

    def unpack_columns(self, columns: np.ndarray, tables: np.ndarray, outputs: int) -> Q8Blocks:
        q = np.ascontiguousarray(columns).view(np.int8).T[:outputs]
        return Q8Blocks(q, scales_of(tables, outputs)[..., 0])

    def product(self, blocks: Q8Blocks) -> Callable[[Bfp], np.ndarray]:
        return grouped(blocks.q, half_units(blocks.d))
