"""A screened head: a 4-bit copy of the head picks the rows that are computed exactly.

docs/SPEC.md, "Screened head". The copy costs about half of the bytes of an 8-bit head; only the
picked rows of the stored head are read beside it.
"""

from __future__ import annotations

import numpy as np

from sparseflash.base.errors import UnsupportedError, UsageError
from sparseflash.image.grids import Blocks, quantize
from sparseflash.model.spec import Q4Blocks

DEFAULT_ROWS = 256
MOST_ROWS = 65536
"""Picked rows are indexed by 16 bits."""


def proxy_of(head: Blocks) -> Blocks:
    """The q4 proxy of stored head rows (vocab, dim)."""
    if isinstance(head, Q4Blocks):
        raise UnsupportedError(
            "a screened head needs a head in q8: its rows in q4 would be their own proxy; use "
            "the exact head"
        )
    return quantize(head.float32(), "q4", "head proxy")


def head_rows(option: str) -> int:
    """Rows K of ``--head``: ``exact`` is 0, ``screened`` the default, a number itself.

    Raises:
        UsageError: it is none of these.
    """
    if option == "exact":
        return 0
    if option == "screened":
        return DEFAULT_ROWS
    if option.isascii() and option.isdigit() and 0 < int(option) <= MOST_ROWS:
        return int(option)
    raise UsageError(
        f"--head {option!r} is neither auto, exact, screened nor a number of rows up to "
        f"{MOST_ROWS:,}"
    )


def check_rows(rows: int, vocab: int, proxy: bool) -> int:
    """``rows`` as the plan takes it: at most the vocabulary, and only with a proxy."""
    if rows and not proxy:
        raise UsageError(
            "this image has no head proxy, so its head cannot be screened; generate the model "
            "again with --head screened"
        )
    if rows and vocab > MOST_ROWS:
        raise UnsupportedError(
            f"a vocabulary of {vocab:,} exceeds the {MOST_ROWS:,} rows that a screened head can "
            "index; use the exact head"
        )
    return min(rows, vocab)


def order_key(x: np.ndarray) -> np.ndarray:
    """uint32 whose order is that of the float32 values ``x``, -0 below 0; same shape."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return np.where(u >> 31, ~u, u | np.uint32(0x80000000))


def largest(logits: np.ndarray, rows: int) -> np.ndarray:
    """Indices of the ``rows`` largest of each row of (T, vocab), the least index first among
    equals, ascending: int64 (T, rows)."""
    key = order_key(logits).astype(np.int64)
    order = np.argsort(-key, axis=-1, kind="stable")
    return np.sort(order[:, :rows], axis=-1)


def screened(proxy: np.ndarray, exact: np.ndarray, rows: int) -> np.ndarray:
    """Logits of a screened head from those of the proxy and of the stored rows (T, vocab)."""
    pick = largest(proxy, rows)
    out = proxy.copy()
    np.put_along_axis(out, pick, np.take_along_axis(exact, pick, axis=-1), axis=-1)
    return out
