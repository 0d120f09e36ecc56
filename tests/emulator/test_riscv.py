"""The RISC-V boards: what has no emulator of its own is checked byte by byte."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import random_model
from sparseflash.base.files import root
from sparseflash.base.programs import missing, run
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.runners import Files, runner_commands
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import load_board
from sparseflash.plan.plan import make_plan

FREESTANDING = root() / "firmware" / "port" / "common" / "freestanding"


def test_direct_boot(tmp_path: Path) -> None:
    """esp32c3: two magic words, then the entry; constants and data at the offsets they claim."""
    board = load_board("esp32c3")
    for absent in filter(None, [missing(board.toolchain["cc"])]):
        pytest.skip(absent)
    pack(random_model(), tmp_path / "model.sfm", Formats())
    image = Image(tmp_path / "model.sfm")
    generate(make_plan(image, board, dense_thresholds(image)), tmp_path, board)
    elf = build_firmware(board, tmp_path, tmp_path / "firmware")
    flash = Path(f"{elf}.bin").read_bytes()
    tool = board.toolchain["objcopy"].removesuffix("objcopy")
    at = {
        line.split()[2]: int(line.split()[0], 16)
        for line in run([tool + "nm", str(elf)]).split("\n")
        if line
    }
    assert flash[:8] == bytes.fromhex("1d04dbae") * 2
    assert at["sf_start"] == 0x42000008
    code, data = board.memory("code"), board.constants
    assert data is not None and len(flash) <= code.length == board.flash["base"] - data.origin
    digest = flash[at["sf_plan_digest"] - data.origin :][:32]
    run([tool + "objcopy", "-O", "binary", "-j", ".data", str(elf), str(tmp_path / "data")])
    loaded = flash[at["sf_data_load"] - data.origin :]
    assert loaded.startswith(
        (tmp_path / "data").read_bytes()[: at["sf_data_end"] - at["sf_data_start"]]
    )
    assert at["sf_data_end"] > at["sf_data_start"]
    assert digest.hex() in (tmp_path / "sf_model.c").read_text().replace("0x", "").replace(", ", "")


def test_same_instruction_set() -> None:
    """riscv-virt runs in QEMU what esp32c3 is compiled to, but for the boot words."""
    real, emulated = load_board("esp32c3").toolchain, load_board("riscv-virt").toolchain
    assert real["machine"] == emulated["machine"]
    assert set(real["cflags"]) - set(emulated["cflags"]) == {"-DSF_BOOT_MAGIC=0xaedb041d"}
    assert set(emulated["cflags"]) <= set(real["cflags"])


def test_flash_commands(tmp_path: Path) -> None:
    board = load_board("esp32c3")
    files = Files(tmp_path / "firmware", tmp_path / "model.sfm", tmp_path / "plan.json")
    commands = runner_commands(board, "esptool", files, {"port": "/dev/ttyUSB0"})
    pair = ["0x0", f"{tmp_path}/firmware.bin", "0x40000", f"{tmp_path}/model.sfm"]
    start = ["esptool", "--chip", "esp32c3", "--port", "/dev/ttyUSB0"]
    assert commands == [[*start, "write-flash", *pair], [*start, "verify-flash", *pair]]
    offset = board.flash["base"] - 0x3C000000
    assert commands[0][-2] == f"{offset:#x}"
    moved = replace(board, runners={"esptool": {"chip": "esp32c3"}})
    assert "0x3c040000" in runner_commands(moved, "esptool", files, {"port": "x"})[0]


def test_without_a_library(tmp_path: Path) -> None:
    """freestanding.c against the host's library: the root of every kind of float, and blocks."""
    library = tmp_path / "freestanding.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-ffreestanding"]
    flags += ["-fno-tree-loop-distribute-patterns", "-nostdlib", "-shared", "-fPIC"]
    source = FREESTANDING / "freestanding.c"
    subprocess.run(["cc", *flags, f"-I{FREESTANDING}", source, "-o", library], check=True)
    own = ctypes.CDLL(str(library))
    own.sqrtf.argtypes, own.sqrtf.restype = [ctypes.c_float], ctypes.c_float
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 1 << 32, 20000, np.uint32)
    edges = [0, 1, 2, 3, 0x7FFFFF, 0x800000, 0x800001, 0x3F7FFFFF, 0x3F800000, 0x3F800001]
    edges += [0x40000000, 0x407FFFFF, 0x7F7FFFFF, 0x7F800000, 0x80000000, 0x80000001, 0xFF800000]
    x = np.concatenate([np.array(edges, np.uint32), bits, bits & 0x7FFFFF]).view(np.float32)
    got = np.array([own.sqrtf(v) for v in x], np.float32)
    with np.errstate(invalid="ignore"):
        want = np.sqrt(x)
    assert (np.isnan(got) == np.isnan(want)).all()
    real = ~np.isnan(want)
    assert (got.view(np.uint32)[real] == want.view(np.uint32)[real]).all()

    own.memcmp.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    own.strlen.restype = ctypes.c_size_t
    for n, a, b in ((0, 0, 0), (3, 1, 2), (16, 0, 4), (17, 4, 8), (33, 0, 1)):
        data = rng.bytes(64)
        source_, target = ctypes.create_string_buffer(data, 64), ctypes.create_string_buffer(64)
        own.memcpy(ctypes.byref(target, a), ctypes.byref(source_, b), ctypes.c_size_t(n))
        assert target.raw == bytes(a) + data[b : b + n] + bytes(64 - a - n)
        own.memset(ctypes.byref(target, a), 0x1A5, ctypes.c_size_t(n))
        assert target.raw == bytes(a) + b"\xa5" * n + bytes(64 - a - n)
    assert own.memcmp(b"abc", b"abd", 2) == 0
    assert own.memcmp(b"ab\x80", b"ab\x7f", 3) > 0 > own.memcmp(b"abc", b"abd", 3)
    assert own.strlen(b"seven..") == 7
