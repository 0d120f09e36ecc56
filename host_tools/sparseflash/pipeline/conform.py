"""The conformance test of a port: a small model that every board has room for, and its checks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseflash.base.errors import SparseflashError
from sparseflash.base.files import write_bytes
from sparseflash.codegen import footprint
from sparseflash.codegen.build import build_firmware
from sparseflash.device.conform import Check, checks_of
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.host_board import HostProcess
from sparseflash.device.link.client import Device
from sparseflash.device.ports import find_port
from sparseflash.device.runners import Files, flash_files, reply_seconds, start_board
from sparseflash.image.sfm import Image
from sparseflash.model.recipes import load_recipe
from sparseflash.pipeline import stages
from sparseflash.pipeline.places import Places
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.kept import plan_digest

MODEL = "conform"
PERCENT = 50.0
"""Of the neurons that the program drops, so that masks are tested too."""


def _streams(plan: dict[str, Any]) -> bool:
    """Whether a token reads weights from flash."""
    return bool(plan["placement"]["total"]["streamed"])


class _Line:
    """Opens the device of a board again and again; ends its process in between."""

    def __init__(self, board: Board, flashed: Path, port: str | None, plan: bytes, sha: bytes):
        self._board, self._flashed, self._port = board, flashed, port
        self._expected = sha, plan
        self._process: HostProcess | EmulatorProcess | None = None

    def connect(self) -> Device:
        seconds = reply_seconds(self._board)
        if self._port is None and not isinstance(self._process, HostProcess):
            self.stop()  # an emulator takes one connection
            self._process = start_board(self._board, self._flashed)
            if self._process is None:
                self._port = find_port(self._board)
        if isinstance(self._process, EmulatorProcess):
            process = self._process
            return Device.connect(process.port, process.url, *self._expected, seconds)
        url = self._port or self._process.url  # type: ignore[union-attr]
        return Device.open(url, *self._expected, timeout=seconds)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


def _refuses_damage(
    board: Board, files: Files, place: Path, port: str | None, plan: bytes, sha: bytes
) -> Check:
    """A program whose image has one wrong bit says so and computes nothing."""
    name = "refuses a damaged image"
    data = bytearray(files.image.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = place.with_name("damaged.sfm")
    write_bytes(damaged, bytes(data))
    flashed = place.with_name("damaged")
    flash_files(board, replace(files, image=damaged), flashed, asked={"port": port or ""})
    line = _Line(board, flashed, port, plan, sha)
    try:
        with line.connect():
            return Check(name, False, "it starts as if nothing were wrong")
    except SparseflashError as e:
        return Check(name, "damaged" in str(e), str(e))
    finally:
        line.stop()
        shutil.rmtree(flashed, ignore_errors=True)


def conform(
    board_name: str,
    port: str | None = None,
    asked: dict[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Check]:
    """The checks of a board, as they are made: it is built and flashed for them.

    Raises:
        SparseflashError: it cannot be built or flashed, so nothing can be checked.
    """
    board, recipe = load_board(board_name), load_recipe(MODEL)
    progress("generating")
    model = stages.open_model(recipe)
    setting = stages.setting_for(model, recipe, "h", PERCENT)
    image = stages.pack_model(model, recipe, settings=[setting])
    plan = stages.plan_and_generate(image, board, setting, recipe)
    # Until some weights really stream: buffers may shrink first.
    while (pinned := plan["memory"].get("pinned weights", 0)) and not _streams(plan):
        less = plan["memory"]["total"] + sum(board.reserve.values()) - pinned // 2
        plan = stages.plan_and_generate(image, board, setting, recipe, ram=less)
    places = Places(MODEL, board.id)
    progress("building")
    firmware = build_firmware(board, places.generated, places.firmware)
    yield Check("builds and fits", True, f"{firmware.stat().st_size:,} bytes of program file")
    if board.memories:
        try:
            found = footprint.stack(board, firmware)
            yield Check("stack", True, f"{found.bytes:,} bytes of {found.limit:,}")
        except SparseflashError as e:
            yield Check("stack", False, str(e))
    digest = plan_digest(plan)
    files = Files(firmware, Path(image.path), places.plan)
    given = {"port": port or "", **(asked or {})}
    progress("a damaged image")
    damage = _refuses_damage(board, files, places.flashed, port, digest, image.sha256)
    progress("flashing")
    flash_files(board, files, places.flashed, asked=given)
    yield damage
    line = _Line(board, places.flashed, port, digest, image.sha256)
    try:
        streams, sparse = "stream" in board.raw, setting.thresholds
        for check in checks_of(line.connect, board.id, Image(image.path), sparse, streams):
            progress(check.name)
            yield check
    finally:
        line.stop()
