"""The 4-bit grid ``s4`` and the 8-bit grid ``q8`` in torch: rounding, rounding in the loop, bytes.

``s4``: groups of 32 along the last axis share one half ``d``; w = d*q, q in -8..7, and ``d`` may be
negative, so that the largest magnitude of a group of either sign can take the code -8. A group is
16 bytes of nibbles (q + 8; elements i and i + 16 share a byte, i low) and 2 bytes of scale.
``q8``: the same groups with q in -127..127.
"""

from __future__ import annotations

import torch

from sparseflash.base import nibbles
from sparseflash.base.nibbles import GROUP

FACTORS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
"""Tried as multiples of the largest magnitude: clipping a group a little often errs less."""


def _groups(w: torch.Tensor) -> torch.Tensor:
    if w.shape[-1] % GROUP:
        raise ValueError(f"the last axis of {tuple(w.shape)} is not a multiple of {GROUP}")
    return w.float().reshape(*w.shape[:-1], -1, GROUP)


def _codes(g: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    step = d.float().unsqueeze(-1)
    safe = torch.where(step == 0, torch.ones_like(step), step)
    return torch.where(step == 0, torch.zeros_like(g), (g / safe).round().clamp(-8, 7))


def s4_scales(w: torch.Tensor) -> torch.Tensor:
    """The half ``d`` of each group (..., n/32) that errs least of those tried."""
    g = _groups(w)
    extreme = g.gather(-1, g.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best = torch.zeros_like(extreme)
    least = torch.full_like(extreme, torch.inf)
    for factor in FACTORS:
        for levels in (-8.0, 7.0):
            d = (extreme * (factor / levels)).half().float()
            error = (g - _codes(g, d) * d.unsqueeze(-1)).square().sum(-1)
            better = error < least
            best = torch.where(better, d, best)
            least = torch.where(better, error, least)
    return best.half()


def s4_codes(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """int8 codes in -8..7 of the shape of ``w``."""
    return _codes(_groups(w), d).to(torch.int8).reshape(w.shape)


def s4_round(w: torch.Tensor) -> torch.Tensor:
    """``w`` on the grid, float32."""
    g, d = _groups(w), s4_scales(w)
    return (_codes(g, d) * d.float().unsqueeze(-1)).reshape(w.shape)


def q8_scales(w: torch.Tensor) -> torch.Tensor:
    """The half ``d`` of each group (..., n/32)."""
    return (_groups(w).abs().amax(-1) / 127).half()


def q8_codes(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """int8 codes in -127..127 of the shape of ``w``."""
    step = d.float().unsqueeze(-1)
    safe = torch.where(step == 0, torch.ones_like(step), step)
    return (_groups(w) / safe).round().clamp(-127, 127).to(torch.int8).reshape(w.shape)


def q8_round(w: torch.Tensor) -> torch.Tensor:
    """``w`` on the grid, float32."""
    d = q8_scales(w)
    q = q8_codes(w, d).float().reshape(*d.shape, GROUP)
    return (q * d.float().unsqueeze(-1)).reshape(w.shape)


def through(w: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """``rounded`` with the gradient of ``w`` (straight through)."""
    return w + (rounded - w).detach()


def pack_nibbles(q: torch.Tensor) -> torch.Tensor:
    """int8 (..., 32k) in -8..7 to uint8 (..., 16k), on the CPU."""
    u = (q.to(torch.int16) + 8).to(torch.uint8)
    return torch.from_numpy(nibbles.pack_nibbles(u.cpu().numpy()))


def unpack_nibbles(b: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`pack_nibbles`."""
    return torch.from_numpy(nibbles.unpack_nibbles(b.cpu().numpy())).to(b.device, torch.int8) - 8


def s4_bytes(*shape: int) -> int:
    """Bytes of a matrix of this shape on ``s4``, scales included."""
    n = 1
    for size in shape:
        n *= size
    return n // GROUP * 18
