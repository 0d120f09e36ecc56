"""k-bit proxies in the float model, on the grid that the device stores (``image.proxy``)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflash.image.proxy import proxy_blocks, proxy_row_bytes
from sparseflash.model.spec import ModelSpec


def quantize_proxy(w: Tensor, bits: int) -> Tensor:
    """The matrix (out, in) on the proxy's grid, dequantised; ``in`` is a multiple of 32."""
    return torch.from_numpy(proxy_blocks(w.float().cpu().numpy(), bits).float32()).to(w.device)


def proxy_bytes(spec: ModelSpec, bits: int) -> float:
    """Bytes a layer of its proxies: the integers and a binary16 scale a group of 32."""
    return (2.0 if spec.gated else 1.0) * spec.ffn_dim * proxy_row_bytes(spec.dim, bits)


def signs_of(w: Tensor) -> Tensor:
    """-1 where the matrix is below zero, 1 elsewhere."""
    return torch.where(w < 0, -1.0, 1.0)
