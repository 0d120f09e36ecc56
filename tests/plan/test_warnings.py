"""A plan says what a board computes slowly, from the kernels of its CPU's tier."""

from __future__ import annotations

import pytest

from sparseflash.base.errors import InputError
from sparseflash.image.formats import Formats
from sparseflash.plan.boards import board_ids, load_board, load_cpu, tier_kernels
from sparseflash.plan.plan import warnings

R8 = Formats("r8", "r8", "q8")


def test_a_grid_without_a_kernel() -> None:
    (sentence,) = warnings(R8, load_board("pico"))
    assert "format r8 is computed in plain C" in sentence and "q8" in sentence
    assert warnings(R8, load_board("mps2-an386")) == []
    assert warnings(Formats(), load_board("pico")) == []


def test_a_cpu_without_any() -> None:
    """Nothing is faster there, so nothing is advised."""
    assert tier_kernels(load_board("esp32c3").tier, {}) == set()
    assert warnings(R8, load_board("esp32c3")) == []


def test_every_board_has_a_cpu() -> None:
    for board in map(load_board, board_ids()):
        assert board.toolchain["cc"] and board.toolchain["cflags"], board.id


def test_unknown_cpu() -> None:
    with pytest.raises(InputError, match="has no CPU 'z80'; it has native"):
        load_cpu("z80", {})
