"""Four-bit numbers two to a byte, as the flash image, GGUF and our own checkpoints store them."""

from __future__ import annotations

import numpy as np

GROUP = 32


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
