"""What the check of the image takes at start, of MODEL on some boards.

    .venv/bin/python tests/bench/boot_check.py [--model story] [--boards host,pico,ast1030-evb]

On host by its clock; on pico cycles in its model of core and flash; on ast1030-evb cycles of the
core in the model of ast1030_cycles.py; its flash is read meanwhile, at 4 cycles a byte.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "host_tools"))

from emulators.ast1030 import cycles
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.emulator import EmulatorProcess, start_emulator
from sparseflash.device.link.client import Device
from sparseflash.device.runners import Files, flash_files, reply_seconds, start_board
from sparseflash.measure.engine import dense_thresholds
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline import stages
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.plan import make_plan

MARKS = {"C": "sf_check_image", "D": "sf_flash_start"}


def core_cycles(board: Board, flashed: Path, folder: Path) -> int:
    """Between entry and end of the check, by the plugin m4_cycles.c."""
    known = cycles.symbols(board, flashed / "firmware")
    words = [str(cycles.build_plugin(folder)), f"out={folder / 'events'}"]
    words += [f"at={known[name][0]:#x}:{letter}" for letter, name in MARKS.items()]
    command, wait = board.settings()["command"], reply_seconds(board)
    extra = ["-plugin", ",".join(words)]
    image, elf = flashed / "flash.img", flashed / "firmware"
    with (
        start_emulator(command, elf, image, timeout=wait, extra=extra) as process,
        Device.connect(process.port, process.url, timeout=3 * wait),
    ):
        pass
    at = dict(line.split()[:2] for line in (folder / "events").read_text().splitlines())
    return int(at["D"]) - int(at["C"])


def measure(model: str, name: str, folder: Path) -> str:
    board, recipe = load_board(name), load_recipe(model)
    timed = name != "ast1030-evb"
    if timed:
        wrap = "-Wl,--wrap=sf_check_image,--wrap=sf_get_counters"
        chain = board.toolchain | {"ldflags": [*board.toolchain.get("ldflags", []), wrap]}
        own = str(Path(__file__).with_suffix(".c"))
        board = replace(board, toolchain=chain, sources=[*board.sources, own])
    image = stages.pack_model(stages.open_model(recipe), recipe)
    plan = make_plan(image, board, dense_thresholds(image), board.kv_len_default)
    generate(plan, folder / "gen", board)
    firmware = build_firmware(board, folder / "gen", folder / "firmware")
    flashed = folder / "flashed"
    flash_files(board, Files(firmware, image.path, folder / "gen" / "plan.json"), flashed)
    if not timed:
        took, rate = core_cycles(board, flashed, folder), board.clock_hz
    else:
        process = start_board(board, flashed)
        assert process is not None
        wait = reply_seconds(board)
        with process:
            if isinstance(process, EmulatorProcess):
                device = Device.connect(process.port, process.url, timeout=wait)
            else:
                device = Device.open(process.url, timeout=wait)
            with device:
                took = device.counters()["time_attn"]
                rate = device.info().ticks_per_second
    ms = 1000 * took / rate
    return (
        f"{name}: {took:,} ticks for {image.size:,} bytes, {took / image.size:.1f} a byte; "
        f"{ms:.0f} ms, {ms * 1e6 / image.size:.1f} ms a megabyte"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="story")
    parser.add_argument("--boards", default="host,pico,ast1030-evb")
    a = parser.parse_args()
    for name in a.boards.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(measure(a.model, name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
