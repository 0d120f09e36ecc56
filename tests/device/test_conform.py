"""The conformance test of ports: boards pass it, and a device that computes otherwise does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import make_workspace
from sparseflash.base.programs import missing
from sparseflash.pipeline import conform as stage
from sparseflash.plan.boards import load_board

NAMES = [
    "builds and fits",
    "stack",
    "refuses a damaged image",
    "starts and says who it is",
    "logits and sites equal the reference",
    "generates the reference's tokens",
    "refuses what it cannot do",
    "noise and repeated requests",
    "counters",
]

BOARDS = ["host", "host-flash", "linux-sbc", "mps2-an385", "ast1030-evb", "riscv-virt", "pico"]
"""One of each kind that runs here."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = make_workspace(tmp_path)
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(base))
    return base


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_conforms(name: str, place: Path) -> None:
    board = load_board(name)
    programs = [board.toolchain["cc"], *board.settings().get("command", [])[:1]]
    for absent in filter(None, map(missing, programs)):
        pytest.skip(absent)
    checks = list(stage.conform(name))
    assert [c for c in checks if not c.passed] == []
    want = [n for n in NAMES if n != "stack" or board.memories]
    assert [c.name for c in checks] == want


def test_a_device_that_computes_otherwise_fails(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks see it: the device drops half of the neurons, and is compared with dense."""
    real = stage.checks_of

    def against_dense(connect, board, image, thresholds, streams):  # type: ignore[no-untyped-def]
        return real(connect, board, image, 0 * thresholds, streams)

    monkeypatch.setattr(stage, "checks_of", against_dense)
    failed = {c.name: c.seen for c in stage.conform("host") if not c.passed}
    assert set(failed) == {
        "logits and sites equal the reference",
        "generates the reference's tokens",
        "counters",
    }
    assert "position 0, layer 0, site h" in failed["logits and sites equal the reference"]
