"""Weights near the least scale of a half: kept, or refused by name, never zeroed in silence."""

from __future__ import annotations

import numpy as np
import pytest

from sparseflash.base.errors import UnsupportedError
from sparseflash.image.grids import quantize


def small(scale: float) -> np.ndarray:
    w = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    return w * np.float32(scale)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("fmt", ["q4", "q8", "r8", "s4"])
def test_small_weights_are_kept(fmt: str, columns: bool) -> None:
    """Scales that round to 0 become the least one: errors stay within half a step of it."""
    w = small(1e-7)
    back = quantize(w, fmt, "layer 3 up_proj", columns).float32()
    assert np.abs(back - w).max() <= 2.0**-25 * 1.001
    assert (back != 0).mean() > 0.5


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("fmt", ["q4", "q8", "r8", "s4"])
def test_weights_that_no_scale_holds_are_refused(fmt: str, columns: bool) -> None:
    with pytest.raises(
        UnsupportedError, match=r"layer 3 up_proj: weights of .*e-\d+ are too small"
    ):
        quantize(small(1e-9), fmt, "layer 3 up_proj", columns)


def test_a_column_that_would_vanish_is_seen() -> None:
    """By columns the groups of s4 run along the outputs: 32 of them may be small alone."""
    w = small(1e-6)
    w[:32, 7] *= np.float32(1e-3)
    with pytest.raises(UnsupportedError, match="too small for grid s4"):
        quantize(w, "s4", "down", columns=True)
    quantize(w, "s4", "down")


@pytest.mark.parametrize("fmt", ["q4", "q8", "r8", "s4"])
def test_what_does_not_count_may_vanish(fmt: str) -> None:
    """Zeros stay zero, and traces beside ordinary weights are no reason to refuse a model."""
    assert not quantize(np.zeros((64, 64), np.float32), fmt).float32().any()
    w = small(0.05)
    w[5, :32] *= np.float32(1e-12)
    back = quantize(w, fmt).float32()
    assert not back[5, :32].any() and back[5, 32:].any()
