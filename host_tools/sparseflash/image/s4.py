"""Grid s4: symmetric 4-bit weights whose scales lie beside what is read (docs/SPEC.md).

w = d*q with q in -8..7 and a binary16 d for each group of 32. The groups of a matrix by rows run
along its inputs, those of a matrix by columns along its outputs: a column that is read alone brings
its scales, and there are no tables. 18 bytes hold 32 weights.
"""

from __future__ import annotations

import numpy as np

from sparseflash.base.errors import UnsupportedError
from sparseflash.image.quantize import GROUP, pack_nibbles, unpack_nibbles
from sparseflash.image.reference import SHIFT_SPAN, Bfp, half_units, pow2
from sparseflash.model.spec import S4Blocks, S4Columns

F32 = np.float32
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
            tried = (top * share / F32(end)).astype(np.float16)
            step = tried.astype(F32)[..., None]
            inverse = np.divide(F32(1), step, out=np.zeros_like(step), where=step != 0)
            y = np.clip(np.rint(x * inverse), -8, 7)
            error = ((x - y * step) ** 2).sum(-1)
            better = error < best
            best, d = np.where(better, error, best), np.where(better, tried, d)
            q = np.where(better[..., None], y.astype(np.int8), q)
    return q, d


def to_s4(w: np.ndarray) -> S4Blocks:
    """float32 (out, in) by rows, ``in`` filled up with zeros to whole groups."""
    out, cols = w.shape
    x = np.pad(w.astype(F32), ((0, 0), (0, -cols % GROUP))).reshape(out, -1, GROUP)
    q, d = _groups(x)
    return S4Blocks(q.reshape(out, -1), d)


def to_s4_columns(w: np.ndarray) -> S4Columns:
    """float32 (out, in) by columns; the outputs' last group may be short."""
    t = to_s4(np.ascontiguousarray(w.T))
    return S4Columns(np.ascontiguousarray(t.q.T[: w.shape[0]]), np.ascontiguousarray(t.d.T))


def item_bytes(length: int) -> int:
    """Bytes of a row of ``length`` inputs or a column of ``length`` outputs, a multiple of 4."""
    groups = -(-length // GROUP)
    return -(-groups * 18 // 4) * 4


def _pack(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    body = pack_nibbles((q + 8).astype(np.uint8))
    scales = np.ascontiguousarray(d.astype(np.float16)).view(np.uint8).reshape(len(q), -1)
    items = np.concatenate([body, scales], axis=1)
    return np.pad(items, ((0, 0), (0, item_bytes(q.shape[1]) - items.shape[1])))


def _unpack(items: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    groups = -(-length // GROUP)
    q = unpack_nibbles(items[:, : 16 * groups]).astype(np.int8) - np.int8(8)
    d = np.ascontiguousarray(items[:, 16 * groups : 18 * groups]).view(np.float16)
    return q, d


def pack_s4(blocks: S4Blocks) -> np.ndarray:
    """Rows, uint8 (out, item_bytes(in))."""
    return _pack(blocks.q, blocks.d)


def unpack_s4(rows: np.ndarray, cols: int) -> S4Blocks:
    """Inverse of :func:`pack_s4`; ``cols`` is a multiple of 32."""
    return S4Blocks(*_unpack(rows, cols))


def pack_s4_columns(blocks: S4Columns) -> np.ndarray:
    """Columns, uint8 (in, item_bytes(out)); outputs are filled up with zeros to whole groups."""
    q = np.pad(blocks.q, ((0, -len(blocks.q) % GROUP), (0, 0)))
    return _pack(np.ascontiguousarray(q.T), np.ascontiguousarray(blocks.d.T))


def unpack_s4_columns(columns: np.ndarray, outputs: int) -> S4Columns:
    """Inverse of :func:`pack_s4_columns`."""
    q, d = _unpack(columns, outputs)
    return S4Columns(np.ascontiguousarray(q.T[:outputs]), np.ascontiguousarray(d.T))


def shift_of(blocks: S4Columns) -> int:
    """Bits that a product of activation and scale loses, so that it fits 16: from the largest d."""
    most = int(np.abs(half_units(blocks.d)).max(initial=0))
    return max(1, most.bit_length() + 4)


class ColumnsLinear:
    """y = W x for columns that carry their scales, exact in integers."""

    def __init__(self, blocks: S4Columns) -> None:
        if blocks.shape[1] > MOST_INPUTS:
            raise UnsupportedError(
                f"a matrix of {blocks.shape[1]:,} inputs by columns of s4: the device adds up to "
                f"{MOST_INPUTS:,}; store it by rows"
            )
        self.outputs = len(blocks.q)
        self.q = np.pad(blocks.q, ((0, -len(blocks.q) % GROUP), (0, 0))).T.astype(np.float64)
        self.d, self.shift = half_units(blocks.d).T, shift_of(blocks)

    def __call__(self, v: Bfp) -> np.ndarray:
        """float32 (T, outputs)."""
        t = len(v.q)
        a = (v.q.astype(np.int64) << v.k[..., None]).reshape(t, -1)[:, : len(self.d)]
        acc = np.zeros((t, self.q.shape[1]))
        for g in range(self.d.shape[1]):
            # 15 bits times 4 bits, up to 8,192 of them: doubles hold the sum exactly.
            factor = (a * self.d[:, g] + (1 << (self.shift - 1))) >> self.shift
            at = slice(g * GROUP, (g + 1) * GROUP)
            acc[:, at] = factor.astype(np.float64) @ self.q[:, at]
        scale = pow2(self.shift - (24 + SHIFT_SPAN + v.s))[:, None]
        return np.asarray(acc[:, : self.outputs].astype(F32) * scale)
