"""Weights on the grid of training are the weights that an image holds."""

from __future__ import annotations

import numpy as np
import torch

from sparseflash.image.grids import grid as grid_named
from sparseflash.model.spec import S4Blocks
from sparseflash.train import grid


def test_s4_of_training_is_s4_of_the_image() -> None:
    """Scales and codes that training rounds to are packed, read back and dequantised alike."""
    rng = np.random.default_rng(5)
    w = torch.from_numpy(rng.standard_normal((24, 96)).astype(np.float32))
    w[3] = 0
    d = grid.s4_scales(w)
    q = grid.s4_codes(w, d)
    assert (d < 0).any() and (q == -8).any()
    s4 = grid_named("s4")
    blocks = S4Blocks(q.numpy(), d.numpy())
    rows = s4.pack_rows(blocks)
    read = s4.unpack_rows(rows, 96)
    assert np.array_equal(read.float32(), grid.s4_round(w).numpy())
    assert rows.size == grid.s4_bytes(24, 96) + 2 * 24  # a row is filled up to 4 bytes
    nibbles = grid.pack_nibbles(q).numpy()
    assert np.array_equal(rows[:, : nibbles.shape[1]], nibbles)
