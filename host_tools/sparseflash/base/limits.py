"""Thresholds of a vector in a byte each, as the flash image stores them.

The byte c stands for the float32 whose bits are base + c * 2**18: five bits of fraction below a
little less than eight octaves. Thresholds below that take c = 0.
"""

from __future__ import annotations

import numpy as np

STEP = 1 << 18
"""Of the bits of a float32, from one byte to the next."""


def pack_limits(x: np.ndarray) -> tuple[int, np.ndarray]:
    """The base and uint8 codes of finite float32 values (n,) of at least 0, to the nearest."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64)
    base = max(0, int(bits.max()) - 255 * STEP)
    codes = np.clip((bits - base + STEP // 2) // STEP, 0, 255)
    return base, codes.astype(np.uint8)


def unpack_limits(base: int, codes: np.ndarray) -> np.ndarray:
    """Inverse of :func:`pack_limits`, float32 (n,)."""
    return (np.uint32(base) + codes.astype(np.uint32) * np.uint32(STEP)).view(np.float32)


def round_limits(x: np.ndarray) -> np.ndarray:
    """Thresholds (n,) as the image will hold them, float32."""
    return unpack_limits(*pack_limits(x))
