"""k-bit copies of gate and up that guess h (Prox): symmetric grids with a scale a group of 32.

``bits`` 1 keeps signs and the mean magnitude of the group; 2 to 4 round to 2^bits - 1 levels
around zero with the scale (of a few tried) that has the least squared error in the group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflash.quantize import GROUP
from sparseflash.spec import ModelSpec

SCALES = tuple(1.0 - 0.05 * i for i in range(11))
"""Shares of the largest magnitude that are tried as the end of the grid."""


def quantize_proxy(w: Tensor, bits: int) -> Tensor:
    """The matrix (out, in) on the proxy's grid, dequantised; ``in`` is a multiple of 32."""
    rows, cols = w.shape
    x = w.float().reshape(rows, cols // GROUP, GROUP)
    if bits == 1:
        y = torch.where(x < 0, -1.0, 1.0) * x.abs().mean(-1, keepdim=True)
        return y.reshape(rows, cols)
    top = 2 ** (bits - 1) - 1
    largest = x.abs().amax(-1, keepdim=True)
    best = torch.zeros_like(x)
    least = torch.full_like(largest, torch.inf)
    for share in SCALES:
        step = largest * share / top
        safe = torch.where(step == 0, torch.ones_like(step), step)
        y = torch.round(x / safe).clamp(-top, top) * step
        error = ((x - y) ** 2).sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, y, best), torch.where(better, error, least)
    return best.reshape(rows, cols)


def proxy_bytes(spec: ModelSpec, bits: int) -> float:
    """Bytes a layer of both proxies: the integers and a binary16 scale a group of 32."""
    groups = -(-spec.dim // GROUP)
    return 2 * spec.ffn_dim * (spec.dim * bits / 8 + 2 * groups)
