"""``r8``: symmetric 8 bits with one scale a row, w = d*q, for Cortex-M with DSP.

Two weights are one half, 256*q1 + q0 (docs/SPEC.md says why).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparseflash.image.bfp import F32, GROUP, SHIFT_SPAN, Bfp, pow2
from sparseflash.image.grids import (
    Grid,
    bytes_of,
    outputs_first,
    pad_columns,
    padded,
    register,
    sums,
)
from sparseflash.model.spec import R8Blocks

ROW_SCALE_LEAST = np.float32(2.0**-24)
"""A smaller scale of a row becomes this, so that results stay normal floats."""


def pack_halves(q: np.ndarray) -> np.ndarray:
    """int8 (..., 2*k) as bytes: element i and i + 1 are a half, q_i + 256 q_i+1."""
    w = q.astype("<i2")
    return np.ascontiguousarray((w[..., 1::2] << 8) + w[..., ::2]).view(np.uint8)


def unpack_halves(b: np.ndarray) -> np.ndarray:
    """Inverse of :func:`pack_halves`."""
    w = np.ascontiguousarray(b).view("<i2")
    low = w.astype(np.int8)
    return np.stack([low, (w - low) >> 8], axis=-1).astype(np.int8).reshape(b.shape)


@register
class R8(Grid):
    name, code, bits = "r8", 3, 8
    rows_of = columns_of = R8Blocks

    def by_rows(self, w: np.ndarray) -> R8Blocks:
        """By the largest magnitude of each row."""
        x = pad_columns(w.astype(np.float32))
        top = np.abs(x).max(-1)
        d = np.where(top > 0, np.maximum(top / np.float32(127), ROW_SCALE_LEAST), np.float32(0))
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
        q = np.rint(x * inverse[:, None])
        return R8Blocks(np.clip(q, -127, 127).astype(np.int8), d.astype(np.float32))

    def row_bytes(self, cols: int) -> int:
        return (padded(cols) // GROUP) * (GROUP + 4) + 4

    def pack_rows(self, blocks: R8Blocks) -> np.ndarray:
        """Of each group minus the sum of the products of even elements 4 apart, which the device's
        products leave behind, then its halves; last the scale."""
        w = blocks.q.reshape(len(blocks.q), -1, GROUP // 8, 8).astype("<i4")
        left = -(w[..., 0] * w[..., 4] + w[..., 2] * w[..., 6]).sum(-1, dtype="<i4")
        halves = pack_halves(blocks.q).reshape(len(w), -1, GROUP)
        groups = np.concatenate([left[..., None].view(np.uint8), halves], axis=-1)
        return np.concatenate([groups.reshape(len(w), -1), bytes_of(blocks.d)], axis=1)

    def unpack_rows(self, rows: np.ndarray, cols: int) -> R8Blocks:
        n, size = len(rows), (cols // GROUP) * (GROUP + 4)
        body = rows[:, :size].reshape(n, cols // GROUP, -1)[..., 4:].reshape(n, cols)
        d = np.ascontiguousarray(rows[:, size:]).view("<f4")[:, 0]
        return R8Blocks(unpack_halves(body), d)

    def column_bytes(self, outputs: int) -> int:
        return padded(outputs)

    def table_bytes(self, outputs: int) -> int:
        return 4 * padded(outputs)

    def tables(self, inputs: int) -> int:
        return 1

    def pack_columns(self, blocks: R8Blocks) -> np.ndarray:
        return pack_halves(outputs_first(blocks.q))

    def pack_tables(self, blocks: R8Blocks) -> np.ndarray:
        d = np.pad(blocks.d, (0, -len(blocks.d) % GROUP))
        return bytes_of(d[None])

    def unpack_columns(self, columns: np.ndarray, tables: np.ndarray, outputs: int) -> R8Blocks:
        d = np.ascontiguousarray(tables).reshape(-1).view("<f4")[:outputs]
        return R8Blocks(np.ascontiguousarray(unpack_halves(columns).T[:outputs]), d)

    def product(self, blocks: R8Blocks) -> Callable[[Bfp], np.ndarray]:
        isum, d = sums(blocks.q), blocks.d

        def product(v: Bfp) -> np.ndarray:
            acc = np.zeros((len(v.q), len(d)), np.int64)
            for g in range(v.q.shape[1]):
                acc += isum(v.q[:, g], g).astype(np.int64) << v.k[:, g, None]
            return np.asarray(acc.astype(F32) * pow2(-(SHIFT_SPAN + v.s))[:, None] * d)

        return product
