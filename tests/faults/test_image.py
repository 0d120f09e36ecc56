"""An image that was damaged, swapped or cut: refused at start, or an error while it runs."""

from __future__ import annotations

import ctypes
import os
import random
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.errors import InputError, LinkError, MismatchError
from sparseflash.codegen.build import build_firmware, build_library
from sparseflash.codegen.generate import generate
from sparseflash.device.host_board import start_host_device
from sparseflash.device.link.client import Device
from sparseflash.device.link.protocol import DeviceError
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import ENTRY, HEADER, Image
from sparseflash.measure.engine import Engine, dense_thresholds
from sparseflash.plan.boards import Board, load_board
from sparseflash.plan.plan import make_plan

SANITIZED = ["-O1", "-g1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
TRIES = 20_000 if os.environ.get("SPARSEFLASH_FAULTS") == "all" else 600


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("image") / "model.sfm"
    pack(random_model(n_layers=2), path, Formats())
    return Image(path)


class Target:
    """The C around an image that the test damages in memory."""

    def __init__(self, image: Image, folder: Path, board: Board, stream: bool) -> None:
        ram = 60_000 if stream else None
        generate(make_plan(image, board, dense_thresholds(image), 32, ram=ram), folder / "gen")
        flash = Path(__file__).with_name("fault_flash.c") if stream else None
        lib = build_library(folder / "gen", folder / "lib.so", "cc", SANITIZED, flash=flash)
        self.engine = Engine(lib, image)
        self.good = np.array(image.section_bytes())
        self.data = self.good.copy()
        self.want = self.logits()

    def start(self, n: int | None = None) -> int:
        lib = self.engine._lib
        size = ctypes.c_uint32(len(self.data) if n is None else n)
        lib.sf_library_image(self.data.ctypes.data_as(ctypes.c_void_p), size)
        return int(lib.sf_init())

    def logits(self) -> np.ndarray:
        self.engine.reset()
        out = [self.engine.step(t) for t in (3, 50, 7)]
        return np.stack([o for o in out if o is not None])

    def refuses(self) -> bool:
        """Refused, or the damage is where nothing is; then the logits are the same."""
        if self.start() != 0:
            return True
        assert np.array_equal(self.logits(), self.want), "other logits without a word"
        return False


@pytest.fixture(scope="module", params=["map", "stream"])
def target(
    request: pytest.FixtureRequest,
    image: Image,
    host: Board,
    tmp_path_factory: pytest.TempPathFactory,
) -> Target:
    stream = {"align": 512, "gap": 256, "ring_buffers": 3, "ring_bytes": 4096}
    stream |= {"pick_buffers": 2, "pick_bytes": 2048, "program_bytes": 1000}
    board = host
    if request.param == "stream":
        board = replace(host, raw={**host.raw, "stream": stream})
    folder = tmp_path_factory.mktemp(request.param)
    return Target(image, folder, board, request.param == "stream")


def test_flipped_bits(target: Target, count: Counter[str]) -> None:
    """One bit anywhere. Of the sections, none passes."""
    rng = random.Random(5)
    sections = np.zeros(len(target.good), bool)
    for offset, size in target.engine.image.sections.values():
        sections[offset : offset + size] = True
    missed = 0
    for _ in range(TRIES):
        at = rng.randrange(len(target.good))
        target.data[at] ^= 1 << rng.randrange(8)
        refused = target.refuses()
        assert refused or not sections[at], at
        missed += not refused
        target.data[at] = target.good[at]
    assert missed < TRIES // 20
    count["flipped bits of an image"] += TRIES
    assert target.start() == 0


def test_every_byte_of_header_and_tables(target: Target) -> None:
    """With every bit flipped, and 0, 1, 127, 128 and 255 in its place."""
    count = len(target.engine.image.sections)
    end = HEADER.size + 64 + ENTRY.size * count
    for at in range(end):
        was = int(target.good[at])
        for value in {was ^ 1 << bit for bit in range(8)} | {0, 1, 127, 128, 255}:
            target.data[at] = value
            target.refuses()
        target.data[at] = was
    assert target.start() == 0


def test_absurd_tables(target: Target) -> None:
    """Counts and places that would wrap 32 bits."""
    count = len(target.engine.image.sections)
    table = HEADER.size + 64
    for value in (0, 1, 2**31, 2**32 - 1, 2**32 - 64, len(target.good), len(target.good) + 1):
        word = np.frombuffer(struct.pack("<I", value), np.uint8)
        places = [12, 24, *(table + ENTRY.size * (count - 1) + k for k in (8, 12, 16, 20))]
        for at in places:
            target.data[at : at + 4] = word
            target.refuses()
            target.data[at : at + 4] = target.good[at : at + 4]
    assert target.start() == 0


def test_cut_images(target: Target) -> None:
    rng = random.Random(6)
    for n in {
        0,
        1,
        63,
        len(target.good) - 1,
        *(rng.randrange(len(target.good)) for _ in range(99)),
    }:
        if n >= 64:
            assert target.start(n) != 0, n
    assert target.start() == 0


@pytest.fixture(scope="module", params=["host", "host-flash"])
def program(
    request: pytest.FixtureRequest, image: Image, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    board = load_board(request.param)
    plan = make_plan(image, board, dense_thresholds(image), 32)
    generate(plan, folder / "gen")
    return build_firmware(board, folder / "gen", folder / "device")


def test_damaged_file_does_not_start(program: Path, image: Image, tmp_path: Path) -> None:
    data = bytearray(image.path.read_bytes())
    data[-100] ^= 4
    (tmp_path / "bad.sfm").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        start_host_device(program, tmp_path / "bad.sfm")
    with pytest.raises(MismatchError):
        (tmp_path / "short.sfm").write_bytes(data[:-1])
        start_host_device(program, tmp_path / "short.sfm")


@pytest.mark.parametrize("how", ["written", "replaced", "cut", "removed"])
def test_file_changes_while_it_runs(program: Path, image: Image, tmp_path: Path, how: str) -> None:
    """An error, told by the device or by its end; never other tokens."""
    path = tmp_path / "flash.sfm"
    path.write_bytes(image.path.read_bytes())
    with start_host_device(program, path) as process, Device.open(process.url, timeout=2) as d:
        want = d.step(5)
        d.reset()
        assert d.step(5) == want
        if how == "written":
            with path.open("r+b") as f:
                f.seek(len(image.section_bytes()) // 2)
                f.write(b"other weights")
        elif how == "replaced":
            (tmp_path / "new").write_bytes(image.path.read_bytes())
            (tmp_path / "new").replace(path)
        elif how == "cut":
            with path.open("r+b") as f:
                f.truncate(100)
        else:
            path.unlink()
        for _ in range(3):
            with pytest.raises((DeviceError, LinkError)):
                d.step(7)
        if process.process.poll() is not None:
            assert process.process.returncode == 3
