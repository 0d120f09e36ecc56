"""Weights to the grids of the flash image (docs/SPEC.md, "Weights").

``q4``: affine 4-bit, groups of 32 along the input axis, w = d*q + m with d and m
halves; GGUF Q4_0 and Q4_1 tensors are already on it and pass bit for bit.
``q8``: symmetric 8-bit, groups of 32, w = d*q; GGUF Q8_0 passes bit for bit.
``r8``: symmetric 8-bit with one scale for a row, for cores that multiply halves.
"""

from __future__ import annotations

import numpy as np

from sparseflash.base.errors import UnsupportedError
from sparseflash.model.spec import Matrix, Q4Blocks, Q8Blocks, R8Blocks, as_float32

GROUP = 32
FORMATS = ("q4", "q8", "r8")
HALF_LIMIT = 64.0
"""Scales are read as integers of 2^-24 in 32 bits, so they must stay below this."""

ROW_SCALE_LEAST = np.float32(2.0**-24)
"""A smaller scale of a row becomes this, so that results stay normal floats."""

Blocks = Q4Blocks | Q8Blocks | R8Blocks


def pad_columns(w: np.ndarray) -> np.ndarray:
    """(out, in) with ``in`` filled up with zeros to whole groups."""
    extra = -w.shape[1] % GROUP
    return np.pad(w, ((0, 0), (0, extra))) if extra else w


def to_q4(w: np.ndarray) -> Q4Blocks:
    """float32 (out, in) to affine 4-bit by minimum and range of each group."""
    out = w.shape[0]
    x = pad_columns(w.astype(np.float32)).reshape(out, -1, GROUP)
    low = x.min(-1).astype(np.float16)
    d = ((x.max(-1) - low.astype(np.float32)) / np.float32(15)).astype(np.float16)
    step = d.astype(np.float32)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    q = np.rint((x - low.astype(np.float32)[..., None]) * inverse[..., None])
    return Q4Blocks(np.clip(q, 0, 15).astype(np.uint8).reshape(out, -1), d, low)


def to_q8(w: np.ndarray) -> Q8Blocks:
    """float32 (out, in) to symmetric 8-bit by the largest magnitude of each group."""
    out = w.shape[0]
    x = pad_columns(w.astype(np.float32)).reshape(out, -1, GROUP)
    d = (np.abs(x).max(-1) / np.float32(127)).astype(np.float16)
    step = d.astype(np.float32)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    q = np.rint(x * inverse[..., None])
    return Q8Blocks(np.clip(q, -127, 127).astype(np.int8).reshape(out, -1), d)


def to_r8(w: np.ndarray) -> R8Blocks:
    """float32 (out, in) to symmetric 8-bit by the largest magnitude of each row."""
    x = pad_columns(w.astype(np.float32))
    top = np.abs(x).max(-1)
    d = np.where(top > 0, np.maximum(top / np.float32(127), ROW_SCALE_LEAST), np.float32(0))
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    q = np.rint(x * inverse[:, None])
    return R8Blocks(np.clip(q, -127, 127).astype(np.int8), d.astype(np.float32))


def quantize(matrix: Matrix, fmt: str, where: str = "matrix") -> Blocks:
    """The matrix on the grid ``fmt``; already quantised blocks pass unchanged.

    Raises:
        UnsupportedError: a scale is too large for the device's integers.
    """
    blocks: Blocks
    if fmt == "q4":
        blocks = matrix if isinstance(matrix, Q4Blocks) else to_q4(as_float32(matrix))
    elif fmt == "r8":
        blocks = matrix if isinstance(matrix, R8Blocks) else to_r8(as_float32(matrix))
    else:
        blocks = matrix if isinstance(matrix, Q8Blocks) else to_q8(as_float32(matrix))
    scales = [blocks.d, blocks.m] if isinstance(blocks, Q4Blocks) else [blocks.d]
    for s in scales:
        if not np.all(np.abs(s.astype(np.float32)) < HALF_LIMIT):
            raise UnsupportedError(
                f"{where}: a weight scale is {HALF_LIMIT:g} or more, or not a number, which the "
                "device's integers cannot hold; check that the model file is not damaged"
            )
    return blocks


def pack_nibbles(q: np.ndarray) -> np.ndarray:
    """uint8 (..., 32*k) in 0..15 to bytes (..., 16*k): elements i and i+16 of a group share one."""
    g = q.reshape(*q.shape[:-1], -1, 2, GROUP // 2)
    packed = g[..., 0, :] | (g[..., 1, :] << 4)
    return np.ascontiguousarray(packed.reshape(*q.shape[:-1], q.shape[-1] // 2))


def unpack_nibbles(b: np.ndarray) -> np.ndarray:
    """Inverse of :func:`pack_nibbles`."""
    g = b.reshape(*b.shape[:-1], -1, GROUP // 2)
    q = np.stack([g & 15, g >> 4], axis=-2)
    return np.ascontiguousarray(q.reshape(*b.shape[:-1], b.shape[-1] * 2))


def pack_halves(q: np.ndarray) -> np.ndarray:
    """int8 (..., 2*k) of r8 as bytes: element i and i + 1 are a half, q_i + 256 q_i+1."""
    w = q.astype("<i2")
    return np.ascontiguousarray((w[..., 1::2] << 8) + w[..., ::2]).view(np.uint8)


def unpack_halves(b: np.ndarray) -> np.ndarray:
    """Inverse of :func:`pack_halves`."""
    w = np.ascontiguousarray(b).view("<i2")
    low = w.astype(np.int8)
    return np.stack([low, (w - low) >> 8], axis=-1).astype(np.int8).reshape(b.shape)


def _halves_of_groups(q: np.ndarray) -> np.ndarray:
    """Rows of r8 without their scales, uint8: of each group minus the sum of the products of even
    elements 4 apart, which the device's products leave behind, then its halves."""
    w = q.reshape(len(q), -1, GROUP // 8, 8).astype("<i4")
    left = -(w[..., 0] * w[..., 4] + w[..., 2] * w[..., 6]).sum(-1, dtype="<i4")
    halves = pack_halves(q).reshape(len(q), -1, GROUP)
    groups = np.concatenate([left[..., None].view(np.uint8), halves], axis=-1)
    return groups.reshape(len(q), -1)


def row_bytes(cols: int, fmt: str) -> int:
    """Bytes of a packed row with its scales, a multiple of 4."""
    groups = -(-cols // GROUP)
    if fmt == "r8":
        return groups * (GROUP + 4) + 4
    n = groups * (20 if fmt == "q4" else 34)
    return -(-n // 4) * 4


def pack_scales(blocks: Blocks) -> np.ndarray:
    """Scales as bytes: (out, groups*4) for q4 ({d, m} pairs), (out, groups*2) q8, (out, 4) r8."""
    if isinstance(blocks, Q4Blocks):
        pair = np.stack([blocks.d, blocks.m], axis=-1)
        return np.ascontiguousarray(pair).view(np.uint8).reshape(pair.shape[0], -1)
    return np.ascontiguousarray(blocks.d).view(np.uint8).reshape(blocks.d.shape[0], -1)


def pack_rows(blocks: Blocks) -> np.ndarray:
    """Rows as bytes (out, row_bytes): the integers, then the scales."""
    if isinstance(blocks, Q4Blocks):
        body, fmt = pack_nibbles(blocks.q), "q4"
    elif isinstance(blocks, R8Blocks):
        body, fmt = _halves_of_groups(blocks.q), "r8"
    else:
        body, fmt = blocks.q.view(np.uint8), "q8"
    rows = np.concatenate([body, pack_scales(blocks)], axis=1)
    return np.pad(rows, ((0, 0), (0, row_bytes(blocks.shape[1], fmt) - rows.shape[1])))


def unpack_rows(rows: np.ndarray, cols: int, fmt: str) -> Blocks:
    """Inverse of :func:`pack_rows` for ``cols`` columns (a multiple of 32)."""
    n = rows.shape[0]
    groups = cols // GROUP
    if fmt == "r8":
        body = rows[:, : groups * (GROUP + 4)].reshape(n, groups, -1)[..., 4:].reshape(n, cols)
        d32 = np.ascontiguousarray(rows[:, groups * (GROUP + 4) :]).view("<f4")[:, 0]
        return R8Blocks(unpack_halves(body), d32)
    if fmt == "q4":
        pair = np.ascontiguousarray(rows[:, cols // 2 : cols // 2 + 4 * groups]).view(np.float16)
        pair = pair.reshape(n, groups, 2)
        return Q4Blocks(unpack_nibbles(rows[:, : cols // 2]), pair[..., 0], pair[..., 1])
    d = np.ascontiguousarray(rows[:, cols : cols + 2 * groups]).view(np.float16)
    return Q8Blocks(np.ascontiguousarray(rows[:, :cols]).view(np.int8), d)
