"""The DMA engine of ast1030-evb: the bytes of the chip, and nothing beside the buffer."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.programs import missing
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import start_emulator
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import load_board
from sparseflash.plan.plan import make_plan

HERE = Path(__file__).parent
PLACES = (0, 16, (1 << 24) - 4096, 1 << 24, (1 << 26) + 20, (1 << 27) - 65536)


def test_reads_what_the_chip_holds(tmp_path: Path) -> None:
    board = load_board("ast1030-evb")
    command = list(board.settings("emulator")["command"])
    for absent in filter(None, map(missing, (board.toolchain["cc"], command[0]))):
        pytest.skip(absent)
    sources = [s for s in board.sources if Path(s).name not in ("main.c", "mapped_flash.c")]
    board = replace(board, sources=[*sources, str(HERE / "dma_main.c"), "../common/mapped_flash.c"])
    pack(random_model(), tmp_path / "model.sfm", Formats())
    image = Image(tmp_path / "model.sfm")
    generate(make_plan(image, board, dense_thresholds(image)), tmp_path, board)
    elf = build_firmware(board, tmp_path, tmp_path / "firmware")

    rng = np.random.default_rng(3)
    chip = tmp_path / "flash.img"
    held = {at: rng.bytes(65536) for at in PLACES}
    with chip.open("wb") as f:
        for at, data in held.items():
            f.seek(at)
            f.write(data)
    os.truncate(chip, board.flash_bytes)
    whole = np.memmap(chip, np.uint8, "r")

    with start_emulator(command, elf, chip) as emulator:
        assert emulator.port.read(1) == b"!"
        for at in PLACES:
            for size, parts in ((4, 1), (4096, 1), (16384, 4), (65536, 32)):
                emulator.port.write(struct.pack("<III", at, size, parts))
                damaged, _, refused = struct.unpack("<III", emulator.port.read(12))
                assert damaged == 0
                assert refused == 0 or parts > 16
                got = emulator.port.read(size)
                assert got == whole[at : at + size].tobytes(), f"{size} bytes at {at:#x}"
