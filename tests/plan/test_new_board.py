"""New boards: the folder that is written loads, and a wrong value is one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conftest import make_workspace
from sparseflash.base.errors import UsageError
from sparseflash.plan.boards import bare_cpus, board_ids, load_board
from sparseflash.plan.new_board import NewBoard, board_yaml, region, write_board

BOARD = NewBoard(
    "mine",
    "cortex-m33",
    16_000_000,
    region("--program", "0x08000000:128K"),
    region("--sram", "0x20000000:0xc0000"),
    region("--image", "0x08020000:1920K"),
    "stm32@0x40013800",
    61,
    settings={"target": "stm32u575zitx"},
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = make_workspace(tmp_path)
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(base))
    return base


def test_it_equals_the_board_that_is_kept(place: Path) -> None:
    folder = write_board(BOARD)
    assert sorted(p.name for p in folder.iterdir()) == ["CHECKLIST.md", "board.yaml"]
    mine, kept = load_board("mine"), load_board("nucleo-u575zi-q")
    for name in ("cpu", "tier", "kind", "toolchain", "reserve", "clock_hz", "sram_bytes", "flash"):
        assert getattr(mine, name) == getattr(kept, name), name
    assert {k: v for k, v in mine.uart.items()} == kept.uart
    assert "make conform BOARD=mine" in (folder / "CHECKLIST.md").read_text()
    assert not list((place / "firmware" / "port").glob("*.part"))
    with pytest.raises(UsageError, match="board mine is there already"):
        write_board(BOARD)


@pytest.mark.parametrize("cpu", bare_cpus())
def test_every_cpu_has_defaults(cpu: str) -> None:
    write_board(replace(BOARD, cpu=cpu))
    board = load_board("mine")
    assert board.reserve["stack"] and board.kv_len_default
    assert all(Path(s).is_file() for s in board.sources if "/" in s)


def test_an_emulator_is_started_with_the_machine() -> None:
    write_board(replace(BOARD, runner="emulator", settings={"machine": "mps2-an505"}))
    command = load_board("mine").settings()["command"]
    assert command[:2] == ["qemu-system-arm", "-display"] and "mps2-an505" in command
    assert "loader,file={image},addr=0x8020000,force-raw=on" in command


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Mine!"}, "'Mine!' is no name"),
        ({"name": "host"}, "board host is there already"),
        ({"cpu": "z80"}, "no CPU 'z80'"),
        ({"uart": "stm32"}, r"is not DRIVER@ADDRESS; write stm32@0x40013800"),
        ({"uart": "usart@0x40013800"}, "the drivers are 16550, cmsdk"),
        (
            {"image": region("--image", "0x0801ff00:1M")},
            r"program 0x08000000:0x20000 reaches into image 0x0801ff00",
        ),
    ],
)
def test_wrong_values(change: dict[str, object], said: str) -> None:
    before = board_ids()
    with pytest.raises(UsageError, match=said):
        board_yaml(replace(BOARD, **change))  # type: ignore[arg-type]
    assert board_ids() == before


@pytest.mark.parametrize("text", ["128K", "0x0:0", "0x0:12Q", "0xffffffff:2", "x:1", "0x0:-1"])
def test_wrong_regions(text: str) -> None:
    with pytest.raises(UsageError, match="--sram"):
        region("--sram", text)
