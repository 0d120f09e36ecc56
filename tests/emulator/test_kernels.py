"""Each tier of the kernels against plain C, on the machine of the tier."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import random_model
from sparseflash.base.files import root
from sparseflash.base.programs import missing, run
from sparseflash.codegen.build import STRICT, build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.runners import Files, flash_files, start_board
from sparseflash.image.sfm import Formats, Image, pack
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import Board, board_ids, load_board
from sparseflash.plan.plan import make_plan

HERE = Path(__file__).parent
SOURCES = [HERE / "kernels_main.c", HERE / "plain_kernels.c"]
BARE = [
    b for b in board_ids() if b.startswith(("mps", "pico")) and "emulator" in load_board(b).runners
]
HOSTED = {
    "gcc": (["cc", "-march=native"], []),
    "clang": (["clang", "-march=native"], []),
    "cortex-a53": (["aarch64-linux-gnu-gcc", "-static", "-mcpu=cortex-a53"], ["qemu-aarch64"]),
    "cortex-a76": (
        ["aarch64-linux-gnu-gcc", "-static", "-mcpu=cortex-a76"],
        ["qemu-aarch64", "-cpu", "cortex-a76"],
    ),
}


def need(*programs: str) -> None:
    for absent in filter(None, map(missing, programs)):
        pytest.skip(absent)


@pytest.mark.parametrize("name", HOSTED)
def test_hosted(name: str, tmp_path: Path) -> None:
    cc, launcher = HOSTED[name]
    need(cc[0], *launcher[:1])
    fw = root() / "firmware"
    kernels = sorted((fw / "kernels").glob("*.c"))
    flags = ["-O3", *STRICT, f"-I{fw / 'include'}"]
    exe = tmp_path / "kernels"
    run([*cc, *flags, *map(str, [*SOURCES, *kernels]), "-o", str(exe), "-lm"])
    done = subprocess.run([*launcher, exe], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "equal\n"


def only_kernels(board: Board) -> Board:
    """The board with the comparison for its main program."""
    return with_main(board, SOURCES)


def with_main(board: Board, main: list[Path]) -> Board:
    sources = [s for s in board.sources if Path(s).name != "main.c"]
    return replace(board, sources=[*sources, *map(str, main)])


@pytest.mark.parametrize("name", BARE)
def test_bare(name: str, tmp_path: Path) -> None:
    assert said(only_kernels(load_board(name)), tmp_path) == b"equal\n"


def said(board: Board, folder: Path) -> bytes:
    """The first line of a board's main program."""
    settings = board.settings("emulator")
    need(board.toolchain["cc"], settings["command"][0], *(["npm"] if "npm" in settings else []))
    pack(random_model(), folder / "model.sfm", Formats(layout=board.raw.get("layout", "joint")))
    image = Image(folder / "model.sfm")
    generate(make_plan(image, board, dense_thresholds(image)), folder, board)
    elf = build_firmware(board, folder, folder / "firmware")
    (folder / "plan.json").write_text("{}")
    flash_files(board, Files(elf, image.path, folder / "plan.json"), folder / "flashed")
    process = start_board(board, folder / "flashed")
    assert isinstance(process, EmulatorProcess)
    with process as emulator:
        return bytes(emulator.port.readline())


FLOATS = HERE / "floats_main.c"


def test_floats(tmp_path: Path) -> None:
    """Our float arithmetic of Armv6-M gives the bits that this machine's unit gives."""
    need("cc")
    fw = root() / "firmware"
    exe = tmp_path / "floats"
    run(["cc", "-O1", *STRICT, f"-I{fw / 'include'}", str(FLOATS), "-o", str(exe), "-lm"])
    here = subprocess.run([exe], capture_output=True, check=True, timeout=60).stdout
    assert said(with_main(load_board("pico"), [FLOATS]), tmp_path) == here
