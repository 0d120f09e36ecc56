"""Matrices stored by columns, so that a dropped input leaves its column unread (docs/SPEC.md).

A column holds the integers of one input; the scales of 32 inputs are one table with an entry for
each output, as they are for down_proj. Outputs are filled up to whole groups of 32. TEAL, arXiv
2408.14690, drops inputs so.
"""

from __future__ import annotations

import numpy as np

from sparseflash.image.quantize import (
    GROUP,
    Blocks,
    pack_halves,
    pack_nibbles,
    pack_scales,
    unpack_halves,
    unpack_nibbles,
)
from sparseflash.model.spec import Q4Blocks, Q8Blocks, R8Blocks


def padded(outputs: int) -> int:
    """Outputs that a column holds."""
    return -(-outputs // GROUP) * GROUP


def column_bytes(outputs: int, fmt: str) -> int:
    """Bytes of one column, without its scales."""
    return padded(outputs) // 2 if fmt == "q4" else padded(outputs)


def table_bytes(outputs: int, fmt: str) -> int:
    """Bytes of the scales of 32 columns; with r8 of all columns."""
    return padded(outputs) * (2 if fmt == "q8" else 4)


def tables(inputs: int, fmt: str) -> int:
    """Tables of a matrix with so many inputs."""
    return 1 if fmt == "r8" else -(-inputs // GROUP)


def matrix_bytes(outputs: int, inputs: int, fmt: str) -> int:
    """Bytes of all columns and all tables; ``inputs`` are whole groups."""
    return inputs * column_bytes(outputs, fmt) + tables(inputs, fmt) * table_bytes(outputs, fmt)


def pack_integers(blocks: Blocks) -> np.ndarray:
    """The columns' integers, uint8 (in, column_bytes)."""
    extra = padded(blocks.shape[0]) - blocks.shape[0]
    q = np.ascontiguousarray(np.pad(blocks.q, ((0, extra), (0, 0))).T)
    if isinstance(blocks, R8Blocks):
        return pack_halves(q)
    return pack_nibbles(q) if isinstance(blocks, Q4Blocks) else q.view(np.uint8)


def pack_tables(blocks: Blocks) -> np.ndarray:
    """The scales, uint8 (tables, padded outputs, bytes of an entry)."""
    rows, cols = blocks.shape
    count = 1 if isinstance(blocks, R8Blocks) else cols // GROUP
    scales = pack_scales(blocks).reshape(rows, count, -1)
    scales = np.pad(scales, ((0, padded(rows) - rows), (0, 0), (0, 0)))
    return np.ascontiguousarray(scales.transpose(1, 0, 2))


def pack_columns(blocks: Blocks) -> bytes:
    """The columns, then the tables."""
    return pack_integers(blocks).tobytes() + pack_tables(blocks).tobytes()


def of_columns(body: np.ndarray, scales_of: np.ndarray, outputs: int, fmt: str) -> Blocks:
    """The matrix of :func:`pack_integers` and the bytes of :func:`pack_tables`."""
    if fmt == "r8":
        d = np.ascontiguousarray(scales_of).reshape(-1).view("<f4")
        return R8Blocks(np.ascontiguousarray(unpack_halves(body).T[:outputs]), d[:outputs])
    scales = np.ascontiguousarray(scales_of).view("<f2")
    scales = scales.reshape(len(body) // GROUP, padded(outputs), -1)[:, :outputs]
    if fmt == "q4":
        return Q4Blocks(unpack_nibbles(body).T[:outputs], scales[..., 0].T, scales[..., 1].T)
    return Q8Blocks(body.view(np.int8).T[:outputs], scales[..., 0].T)


def unpack_columns(data: np.ndarray, outputs: int, inputs: int, fmt: str) -> Blocks:
    """Inverse of :func:`pack_columns`, from uint8 (matrix_bytes,)."""
    size = inputs * column_bytes(outputs, fmt)
    body = np.ascontiguousarray(data[:size]).reshape(inputs, -1)
    return of_columns(body, data[size:], outputs, fmt)
