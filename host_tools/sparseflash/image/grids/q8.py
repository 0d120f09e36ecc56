"""``q8``: symmetric 8 bits in groups of 32 along the inputs, w = d*q (GGUF Q8_0)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparseflash.image.bfp import F32, GROUP, SHIFT_SPAN, Bfp, half_units, pow2
from sparseflash.image.grids.base import (
    Grid,
    aligned,
    bytes_of,
    half_scale,
    outputs_first,
    pad_columns,
    padded,
    register,
    scales_of,
    tables_of,
)
from sparseflash.model.spec import Q8Blocks


def sums(q: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Products of group g of rows (out, in) with inputs (T, 32): exact integers as float32."""
    rows, cols = q.shape
    w = np.ascontiguousarray(q.reshape(rows, cols // GROUP, GROUP).transpose(1, 2, 0))

    def of(x: np.ndarray, g: int) -> np.ndarray:
        # Products stay under 2^19 and float32 holds integers to 2^24: the sum is exact.
        return np.asarray(x.astype(F32) @ w[g].astype(F32))

    return of


def grouped(
    q: np.ndarray, d: np.ndarray, m: np.ndarray | None = None
) -> Callable[[Bfp], np.ndarray]:
    """The product of rows whose groups have scales d (out, G) and, affine, m (G, out); both in
    units of 2^-24."""
    isum, d = sums(q), np.ascontiguousarray(d.T)

    def product(v: Bfp) -> np.ndarray:
        acc = np.zeros((len(v.q), d.shape[1]), np.int64)
        for g in range(len(d)):
            acc += (isum(v.q[:, g], g).astype(np.int64) << v.k[:, g, None]) * d[g]
            if m is not None:
                acc += v.sum[:, g, None] * m[g]
        return np.asarray(acc.astype(F32) * pow2(-(24 + SHIFT_SPAN + v.s))[:, None])

    return product


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
