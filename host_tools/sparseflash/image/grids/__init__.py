"""Grids of weights: what a grid is, their registry, and what several of them share.

A grid stores weights as small integers with scales. Each is one file of this folder, which
registers itself; its C is one file of ``firmware/kernels``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import numpy as np

from sparseflash.base.errors import UnsupportedError
from sparseflash.image.bfp import F32, GROUP, SHIFT_SPAN, Bfp, pow2
from sparseflash.model.spec import (
    Matrix,
    Q4Blocks,
    Q8Blocks,
    R8Blocks,
    S4Blocks,
    S4Columns,
    as_float32,
)

Blocks = Q4Blocks | Q8Blocks | R8Blocks | S4Blocks | S4Columns
LEAST_SCALE = 2.0**-24
"""The least half above 0."""
HALF_LIMIT = 64.0
"""Scales are below this, so that 2^24 times one is an exact 32-bit integer."""


def padded(n: int) -> int:
    """Filled up to whole groups."""
    return -(-n // GROUP) * GROUP


class Grid(ABC):
    """Sizes, bytes and the exact product of one grid."""

    name: ClassVar[str]
    code: ClassVar[int]
    """In the image's table of weights."""
    bits: ClassVar[int]
    rows_of: ClassVar[type]
    """Blocks by rows."""
    columns_of: ClassVar[type]
    """Blocks by columns; the same type where groups run along the inputs either way."""

    @abstractmethod
    def by_rows(self, w: np.ndarray) -> Any:
        """float32 (out, in) on the grid, ``in`` filled up with zeros to whole groups."""

    def by_columns(self, w: np.ndarray) -> Any:
        """The same for a matrix stored by columns."""
        return self.by_rows(w)

    @abstractmethod
    def row_bytes(self, cols: int) -> int:
        """Bytes of a packed row with its scales, a multiple of 4."""

    @abstractmethod
    def pack_rows(self, blocks: Any) -> np.ndarray:
        """Rows as uint8 (out, row_bytes)."""

    @abstractmethod
    def unpack_rows(self, rows: np.ndarray, cols: int) -> Any:
        """Inverse of :meth:`pack_rows`; ``cols`` is a multiple of 32."""

    @abstractmethod
    def column_bytes(self, outputs: int) -> int:
        """Bytes of one packed column."""

    def table_bytes(self, outputs: int) -> int:
        """Bytes of a table of scales of columns; 0 when columns carry their own."""
        return 0

    def tables(self, inputs: int) -> int:
        """Tables of a matrix of so many columns."""
        return 0

    @abstractmethod
    def pack_columns(self, blocks: Any) -> np.ndarray:
        """Columns as uint8 (in, column_bytes)."""

    def pack_tables(self, blocks: Any) -> np.ndarray:
        """Tables as uint8 (tables, table_bytes)."""
        return np.zeros((0, 0), np.uint8)

    @abstractmethod
    def unpack_columns(self, columns: np.ndarray, tables: np.ndarray, outputs: int) -> Any:
        """Inverse of :meth:`pack_columns` and :meth:`pack_tables`."""

    @abstractmethod
    def product(self, blocks: Any) -> Callable[[Bfp], np.ndarray]:
        """y = W x, exact in integers: float32 (T, out)."""

    def shift(self, blocks: Any) -> int:
        """Number of the matrix that its product by columns needs; 0 where it needs none."""
        return 0


GRIDS: dict[str, Grid] = {}


def register(grid: type[Grid]) -> type[Grid]:
    """A class decorator: the grid is found by its name and its code."""
    GRIDS[grid.name] = grid()
    return grid


def grid(name: str) -> Grid:
    """The grid of that name."""
    return GRIDS[name]


def grid_of(blocks: Blocks) -> Grid:
    """The grid that blocks lie on."""
    return next(g for g in GRIDS.values() if isinstance(blocks, (g.rows_of, g.columns_of)))


def quantize(matrix: Matrix, fmt: str, where: str = "matrix", columns: bool = False) -> Blocks:
    """The matrix on the grid ``fmt``; blocks that are on it already pass unchanged.

    Raises:
        UnsupportedError: a scale is too large for the device's integers, or weights are too small
            for the least scale.
    """
    g = GRIDS[fmt]
    kind = g.columns_of if columns else g.rows_of
    make = g.by_columns if columns else g.by_rows
    blocks: Blocks = matrix if isinstance(matrix, kind) else make(as_float32(matrix))  # type: ignore[assignment]
    scales = [blocks.d, blocks.m] if isinstance(blocks, Q4Blocks) else [blocks.d]
    for s in scales:
        if not np.all(np.abs(s.astype(np.float32)) < HALF_LIMIT):
            raise UnsupportedError(
                f"{where}: a weight scale is {HALF_LIMIT:g} or more, or not a number, which the "
                "device's integers cannot hold; check that the model file is not damaged"
            )
    if not isinstance(matrix, kind):
        w, back = as_float32(matrix), blocks.float32()[: matrix.shape[0], : matrix.shape[1]]
        if columns and not g.tables(1):  # whose groups run along the outputs
            w, back = w.T, back.T
        _check_small(w, back, fmt, where)
    return blocks


def _check_small(w: np.ndarray, back: np.ndarray, fmt: str, where: str) -> None:
    """Refuses a matrix w, stored as back, of which a group would become zero though it counts.

    It counts unless the matrix holds weights 2^16 times larger, which round by more than it holds.
    """
    top = np.float32(np.abs(w).max(initial=0))
    if not 0 < top < LEAST_SCALE * 2**20:  # else what a scale can lose does not count
        return

    def tops(x: np.ndarray) -> np.ndarray:
        groups = pad_columns(x).reshape(len(x), -1, GROUP)
        return np.asarray(np.abs(groups).max(-1))

    lost = (tops(w) >= top * np.float32(2.0**-16)) & (tops(w) > 0) & (tops(back) == 0)
    if lost.any():
        raise UnsupportedError(
            f"{where}: weights of {tops(w)[lost].max():.1e} are too small for grid {fmt}, whose "
            f"least scale is {LEAST_SCALE:.1e}; scale the model's matrices up before"
        )


def half_scale(d: np.ndarray) -> np.ndarray:
    """Scales as halves; one that would round to 0 becomes the least, so that weights stay."""
    halves = d.astype(np.float16)
    return np.where((halves == 0) & (d > 0), np.float16(LEAST_SCALE), halves)


def row_bytes(cols: int, fmt: str) -> int:
    """Bytes of a packed row of grid ``fmt``."""
    return GRIDS[fmt].row_bytes(cols)


def pack_rows(blocks: Blocks) -> np.ndarray:
    """Rows as bytes (out, row_bytes)."""
    return grid_of(blocks).pack_rows(blocks)


def unpack_rows(rows: np.ndarray, cols: int, fmt: str) -> Blocks:
    """Inverse of :func:`pack_rows` for ``cols`` columns (a multiple of 32)."""
    blocks: Blocks = GRIDS[fmt].unpack_rows(rows, cols)
    return blocks


def column_bytes(outputs: int, fmt: str) -> int:
    """Bytes of one column of grid ``fmt``."""
    return GRIDS[fmt].column_bytes(outputs)


def table_bytes(outputs: int, fmt: str) -> int:
    """Bytes of a table of scales; 0 when columns carry their own."""
    return GRIDS[fmt].table_bytes(outputs)


def tables(inputs: int, fmt: str) -> int:
    """Tables of a matrix with so many inputs."""
    return GRIDS[fmt].tables(inputs)


def linear(blocks: Blocks) -> Callable[[Bfp], np.ndarray]:
    """y = W x, exact in integers: float32 (T, out) of a :class:`Bfp`."""
    return grid_of(blocks).product(blocks)


# Shared by grids -----------------------------------------------------------


def pad_columns(w: np.ndarray) -> np.ndarray:
    """(out, in) with ``in`` filled up with zeros to whole groups."""
    extra = -w.shape[1] % GROUP
    return np.pad(w, ((0, 0), (0, extra))) if extra else w


def bytes_of(a: np.ndarray) -> np.ndarray:
    """The array's bytes, uint8 (rows, n)."""
    a = np.ascontiguousarray(a)
    return a.view(np.uint8).reshape(len(a), -1)


def aligned(rows: np.ndarray) -> np.ndarray:
    """Rows of bytes filled up to a multiple of 4."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))


def outputs_first(q: np.ndarray) -> np.ndarray:
    """Columns (in, padded outputs) of integers (out, in)."""
    return np.ascontiguousarray(np.pad(q, ((0, -len(q) % GROUP), (0, 0))).T)


def tables_of(scales: np.ndarray) -> np.ndarray:
    """Scales (out, groups, n) as tables, uint8 (groups, bytes): an entry for each output."""
    scales = np.pad(scales, ((0, -len(scales) % GROUP), (0, 0), (0, 0)))
    return bytes_of(scales.transpose(1, 0, 2))


def scales_of(tables: np.ndarray, outputs: int) -> np.ndarray:
    """Inverse of :func:`tables_of`, float16 (out, groups, n)."""
    s = np.ascontiguousarray(tables).view("<f2")
    return s.reshape(len(tables), padded(outputs), -1)[:, :outputs].transpose(1, 0, 2)


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


for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
