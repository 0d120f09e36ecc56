"""Activations as integers that share powers of two (docs/SPEC.md, "Block floating point")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUP = 32
"""Elements that share a scale."""
SHIFT_SPAN = 12
"""Widest distance between group exponents of a vector."""
S_MIN, S_MAX = -40, 80
F32 = np.float32


def pow2(e: np.ndarray) -> np.ndarray:
    """2^e as float32, exact, for -126 <= e <= 127."""
    return ((np.asarray(e, np.int64) + 127).astype(np.uint32) << np.uint32(23)).view(F32)


def half_units(h: np.ndarray) -> np.ndarray:
    """float16 to int64 in units of 2^-24, exact."""
    return np.rint(h.astype(np.float64) * 2.0**24).astype(np.int64)


def magnitude(x: np.ndarray) -> np.ndarray:
    """Bits of |x|, whose order is that of the magnitudes."""
    return x.view(np.uint32) & np.uint32(0x7FFFFFFF)


def _exponent_for(top: np.ndarray, bits: int, limit: int) -> np.ndarray:
    return np.clip(bits - ((top >> np.uint32(23)).astype(np.int64) - 127), S_MIN, limit)


@dataclass
class Bfp:
    """Quantised activations of T positions: value = q * 2^-(s + span - k)."""

    q: np.ndarray  # int8 (T, G, 32)
    sum: np.ndarray  # int64 (T, G), of q << k
    k: np.ndarray  # int64 (T, G)
    s: np.ndarray  # int64 (T,)


def quantize_bfp(x: np.ndarray) -> Bfp:
    """float32 (T, n) to groups of 32 with power-of-two scales."""
    t, n = x.shape
    x = np.pad(x, ((0, 0), (0, -n % GROUP))).reshape(t, -1, GROUP)
    top = magnitude(x).max(-1)
    live = top >= 0x00800000
    s = _exponent_for(top, 6, S_MAX)
    lowest = np.where(live, s, S_MAX).min(-1)
    s = np.where(live, np.minimum(s, lowest[:, None] + SHIFT_SPAN), lowest[:, None])
    scale = np.where(live, pow2(s), F32(0))
    q = np.clip(np.rint(x * scale[..., None]), -127, 127).astype(np.int8)
    k = lowest[:, None] + SHIFT_SPAN - s
    return Bfp(q, q.astype(np.int64).sum(-1) << k, k, lowest)


def quantize_vector(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (..., n) to integers with one exponent a vector: (q int64, s int64 (...))."""
    top = magnitude(np.ascontiguousarray(x)).max(-1)
    live = top >= 0x00800000
    s = np.where(live, _exponent_for(top, bits - 2, 60), 60)
    scale = np.where(live, pow2(s), F32(0))
    limit = 2 ** (bits - 1) - 1
    q = np.clip(np.rint(x * scale[..., None]), -limit, limit).astype(np.int64)
    return q, s
