"""The fit report: its sums are those of the plan, and its advice holds when it is followed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.errors import TooSmallError
from sparseflash.image.formats import THRESHOLDS, Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.fit import STEP, Fit, fit_of, step_worth, token_figures
from sparseflash.plan.plan import make_plan, working_memory

KV = 64


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("fit") / "model.sfm"
    pack(random_model(), path, Formats("q8", "q8", "q8"))
    return Image(path)


@pytest.fixture(params=["ast1030-evb", "mps2-an386"])
def board(request: pytest.FixtureRequest) -> Board:
    """One that streams, and one whose flash is mapped."""
    return load_board(request.param)


def plan_on(
    image: Image, board: Board, kv_len: int = KV, ram: int | None = None
) -> dict[str, object]:
    none = np.zeros((image.spec.n_layers, len(THRESHOLDS)), np.float32)
    return make_plan(image, board, none, kv_len, ram=ram)


def number(pattern: str, said: str) -> int:
    """The figure of a sentence."""
    found = re.search(pattern, said)
    assert found, said
    return int(found[1].replace(",", ""))


def report(image: Image, board: Board, kv_len: int = KV) -> Fit:
    """As the verb makes it."""

    def needs(count: int) -> dict[str, int]:
        return working_memory(image, board, count)

    try:
        plan = plan_on(image, board, kv_len)
    except TooSmallError as e:
        return fit_of(image, board, kv_len, needs(kv_len), str(e), needs)
    return fit_of(image, board, kv_len, plan["memory"])


def test_lines_add_up(image: Image, board: Board) -> None:
    fit, plan = report(image, board), plan_on(image, board)
    assert not fit.refused and not fit.advice
    kept = sum(board.reserve.values())
    assert fit.sram_used == plan["memory"]["total"] + kept <= fit.sram_bytes
    assert fit.flash_used == image.size and fit.stack_bytes == board.reserve["stack"]
    figures = fit.figures()
    assert figures["fits"] is True and sum(figures["sram"].values()) == figures["sram_used"]


def shrunk(board: Board, image: Image, kv_len: int, over: int) -> Board:
    """The board with ``over`` bytes less of SRAM than ``kv_len`` positions take."""
    needs = working_memory(image, board, kv_len)["total"] + sum(board.reserve.values())
    return replace(board, sram_bytes=needs - over)


def test_advised_positions_fit_and_one_more_does_not(image: Image, board: Board) -> None:
    small = shrunk(board, image, KV, 3000)
    fit = report(image, small)
    (way,) = fit.advice
    most = number(r"^--kv-len (\d+) fits the SRAM$", way)
    assert 16 <= most < KV and f"--kv-len {most} fits" in fit.refused
    plan_on(image, small, most)
    with pytest.raises(TooSmallError):
        plan_on(image, small, most + 2)


def test_too_small_for_any_conversation(image: Image, board: Board) -> None:
    fit = report(image, shrunk(board, image, 16, 1))
    least = number(r"16 positions take ([\d,]+) bytes", fit.advice[0])
    plan_on(image, replace(board, sram_bytes=least), 16)
    with pytest.raises(TooSmallError):
        plan_on(image, replace(board, sram_bytes=least - 1), 16)


def test_advised_formats_fit_the_flash(image: Image, board: Board, tmp_path: Path) -> None:
    formats = Formats("q4", "q4", "q4")
    pack(random_model(), tmp_path / "q4.sfm", formats)
    smaller = Image(tmp_path / "q4.sfm").size
    small = replace(board, flash_bytes=(image.size + smaller) // 2)
    (way,) = report(image, small).advice
    said = number(r"^formats q4 of all weights take about ([\d,]+) bytes of flash$", way)
    assert smaller == pytest.approx(said, rel=0.02)
    tiny = replace(board, flash_bytes=1000)
    assert report(image, tiny).advice == [
        f"flash for {image.size:,} bytes, or a model with fewer weights"
    ]


def test_least_ram_of_a_streaming_board(tmp_path: Path) -> None:
    """The advice of a refused --ram works; one byte less does not."""
    pack(random_model(), tmp_path / "m.sfm", Formats("q8", "q8", "q8"))
    image, board = Image(tmp_path / "m.sfm"), load_board("host-flash")
    with pytest.raises(TooSmallError, match="--ram") as e:
        plan_on(image, board, KV, 1000)
    least = number(r"the least that works is --ram (\d+)", str(e.value))
    plan_on(image, board, KV, least)
    with pytest.raises(TooSmallError):
        plan_on(image, board, KV, least - 1)


def test_what_a_step_buys(image: Image, board: Board) -> None:
    """Positions that then fit, or bytes that are then not read."""
    least = shrunk(board, image, KV, 0)
    plan = plan_on(image, least)

    def again(other: Board, ram: int | None) -> Any:
        return plan_on(image, other, KV, ram)

    said = step_worth(image, least, plan, again, None)
    then = replace(least, sram_bytes=least.sram_bytes + STEP)
    if "stream" not in board.raw:
        more = number(r"^(\d+) more positions", said)
        plan_on(image, then, KV + more)
        assert KV + more == image.spec.context or more > 1
    else:
        saved = number(r"^([\d,]+) fewer bytes", said)
        now, less = (p["placement"]["total"]["read"] for p in (plan, plan_on(image, then)))
        assert saved == round(now - less) > 0


def test_bytes_of_a_token_name_their_source(image: Image, board: Board) -> None:
    found = {f.name: f for f in token_figures(plan_on(image, board), board, None, "")}
    weights = found["weight bytes"]
    assert weights.source == "all weights, by the plan"
    row = image.weight("embed").size
    every = sum(w.count * w.size for w in image.weights.values())
    assert weights.value == pytest.approx(every + row, rel=0.01)
    if "stream" in board.raw:
        assert found["bytes from flash"].source == "placement of the plan"
        timing = found["reading, at the least"]
        assert timing.unit == "ms" and "flash timing of board.yaml" in timing.source
        assert timing.value == pytest.approx(1e3 * found["bytes from flash"].value / 50e6)
