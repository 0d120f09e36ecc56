"""Grid s4: symmetric 4-bit weights whose scales lie beside what is read (docs/SPEC.md).

w = d*q with q in -8..7 and a binary16 d for each group of 32. The groups of a matrix by rows run
along its inputs, those of a matrix by columns along its outputs: a column that is read alone brings
its scales, and there are no tables. 18 bytes hold 32 weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparseflash.base.errors import UnsupportedError
from sparseflash.base.nibbles import pack_nibbles, unpack_nibbles
from sparseflash.image.bfp import F32, GROUP, SHIFT_SPAN, Bfp, half_units, pow2
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
)
from sparseflash.model.spec import S4Blocks, S4Columns

SHARES = tuple(F32(1.0 - 0.05 * j) for j in range(9))
"""Shares of the largest magnitude that are tried as the end of the grid."""
MOST_INPUTS = 8192
"""Of a matrix by columns: more could overflow the 32-bit sums."""


def _groups(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (..., 32) to q int8 (..., 32) and d float16 (...): the least squared error tried."""
    top = np.abs(x).max(-1)
    best = np.full(top.shape, np.inf, F32)
    q, d = np.zeros(x.shape, np.int8), np.zeros(top.shape, np.float16)
    for end in (7, 8):
        for share in SHARES:
            tried = half_scale(top * share / F32(end))
            step = tried.astype(F32)[..., None]
            inverse = np.divide(F32(1), step, out=np.zeros_like(step), where=step != 0)
            y = np.clip(np.rint(x * inverse), -8, 7)
            error = ((x - y * step) ** 2).sum(-1)
            better = error < best
            best, d = np.where(better, error, best), np.where(better, tried, d)
            q = np.where(better[..., None], y.astype(np.int8), q)
    return q, d


def _items(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Rows or columns as bytes: nibbles of q + 8, then the scales."""
    body = pack_nibbles((q + 8).astype(np.uint8))
    return aligned(np.concatenate([body, bytes_of(d.astype(np.float16))], axis=1))


def _of_items(items: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    groups = padded(length) // GROUP
    q = unpack_nibbles(items[:, : 16 * groups]).astype(np.int8) - np.int8(8)
    d = np.ascontiguousarray(items[:, 16 * groups : 18 * groups]).view(np.float16)
    return q, d


@register
class S4(Grid):
    name, code, bits = "s4", 4, 4
    rows_of, columns_of = S4Blocks, S4Columns

    def by_rows(self, w: np.ndarray) -> S4Blocks:
        x = pad_columns(w.astype(F32)).reshape(len(w), -1, GROUP)
        q, d = _groups(x)
        return S4Blocks(q.reshape(len(w), -1), d)

    def by_columns(self, w: np.ndarray) -> S4Columns:
        t = self.by_rows(np.ascontiguousarray(w.T))
        return S4Columns(np.ascontiguousarray(t.q.T[: len(w)]), np.ascontiguousarray(t.d.T))

    def row_bytes(self, cols: int) -> int:
        n = 18 * (padded(cols) // GROUP)
        return -(-n // 4) * 4

    def pack_rows(self, blocks: S4Blocks) -> np.ndarray:
        return _items(blocks.q, blocks.d)

    def unpack_rows(self, rows: np.ndarray, cols: int) -> S4Blocks:
        return S4Blocks(*_of_items(rows, cols))

    def column_bytes(self, outputs: int) -> int:
        return self.row_bytes(outputs)

    def pack_columns(self, blocks: S4Columns) -> np.ndarray:
        return _items(outputs_first(blocks.q), np.ascontiguousarray(blocks.d.T))

    def unpack_columns(self, columns: np.ndarray, tables: np.ndarray, outputs: int) -> S4Columns:
        q, d = _of_items(columns, outputs)
        return S4Columns(np.ascontiguousarray(q.T[:outputs]), np.ascontiguousarray(d.T))

    def shift(self, blocks: S4Blocks | S4Columns) -> int:
        """Bits that a product of activation and scale loses, so that it fits 16."""
        most = int(np.abs(half_units(blocks.d)).max(initial=0))
        return max(1, most.bit_length() + 4)

    def product(self, blocks: S4Blocks | S4Columns) -> Callable[[Bfp], np.ndarray]:
        if isinstance(blocks, S4Blocks):
            return grouped(blocks.q, half_units(blocks.d))
        return self._by_columns(blocks)

    def _by_columns(self, blocks: S4Columns) -> Callable[[Bfp], np.ndarray]:
        if blocks.shape[1] > MOST_INPUTS:
            raise UnsupportedError(
                f"a matrix of {blocks.shape[1]:,} inputs by columns of s4: the device adds up to "
                f"{MOST_INPUTS:,}; store it by rows"
            )
        outputs, shift = len(blocks.q), self.shift(blocks)
        q, d = outputs_first(blocks.q).astype(np.float64), half_units(blocks.d).T

        def product(v: Bfp) -> np.ndarray:
            t = len(v.q)
            a = (v.q.astype(np.int64) << v.k[..., None]).reshape(t, -1)[:, : len(d)]
            acc = np.zeros((t, q.shape[1]))
            for g in range(d.shape[1]):
                # 15 bits times 4 bits, up to 8,192 of them: doubles hold the sum exactly.
                factor = (a * d[:, g] + (1 << (shift - 1))) >> shift
                at = slice(g * GROUP, (g + 1) * GROUP)
                acc[:, at] = factor.astype(np.float64) @ q[:, at]
            scale = pow2(shift - (24 + SHIFT_SPAN + v.s))[:, None]
            return np.asarray(acc[:, :outputs].astype(F32) * scale)

        return product
