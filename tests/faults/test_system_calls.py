"""The n-th system call or allocation of the host boards fails: right tokens or a named error."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

from conftest import random_model
from sparseflash.base.errors import SparseflashError
from sparseflash.codegen.build import build_firmware
from sparseflash.codegen.generate import generate
from sparseflash.device.host_board import start_host_device
from sparseflash.device.link.client import Device
from sparseflash.image.formats import Formats
from sparseflash.image.pack import pack
from sparseflash.image.sfm import Image
from sparseflash.measure.engine import dense_thresholds
from sparseflash.plan.boards import load_board
from sparseflash.plan.plan import make_plan

ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
TOKENS = (3, 50, 7)
SAID = b"failed on purpose: "


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lib = tmp_path_factory.mktemp("shim") / "fail_nth.so"
    source = Path(__file__).with_name("fail_nth.c")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ldl"]
    subprocess.run(["cc", source, "-o", lib, *flags], check=True)
    return lib


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The program of a board, and its image."""

    @cache
    def build(board_id: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(board_id)
        pack(random_model(), folder / "m.sfm", Formats())
        image, board = Image(folder / "m.sfm"), load_board(board_id)
        generate(make_plan(image, board, dense_thresholds(image), 32), folder / "gen")
        return build_firmware(board, folder / "gen", folder / "device"), folder / "m.sfm"

    return build


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EINTR])
@pytest.mark.parametrize(
    ("board_id", "transport"), [("host", "pty"), ("host", "tcp"), ("host-flash", "pty")]
)
def test_any_call_may_fail(
    shim: Path,
    built: Callable[[str], tuple[Path, Path]],
    board_id: str,
    transport: Literal["pty", "tcp"],
    code: int,
    count: Counter[str],
) -> None:
    exe, image = built(board_id)

    def run(nth: int) -> tuple[list[int] | None, bool]:
        """Tokens, or None after an error of ours; whether a call failed."""
        launcher = ["env", f"LD_PRELOAD={shim}", f"FAIL_NTH={nth}", f"FAIL_ERRNO={code}"]
        try:
            host = start_host_device(exe, image, transport, launcher)
        except SparseflashError as e:
            assert SAID.decode() in str(e), e
            return None, True
        got: list[int] | None = None
        with host:
            try:
                with Device.open(host.url, timeout=1.0) as d:
                    got = [d.step(t) for t in TOKENS]
            except SparseflashError:
                got = None
            ended = host.process.poll()
            assert ended is None or 0 <= ended < 10, f"call {nth} ended it with {ended}"
            host._log.seek(0)
            return got, SAID in host._log.read()

    want, hit = run(1_000_000)
    assert want is not None and not hit
    hits, nth = 0, 1
    while True:
        got, hit = run(nth)
        assert got in (None, want), nth
        assert hit or got == want, nth
        if not hit or nth > 400:
            break
        hits += 1
        nth += 1 if ALL else 5
    assert hits > (15 if ALL else 3)
    count["failed system calls"] += hits


def test_no_thread_can_be_made(shim: Path, tmp_path: Path) -> None:
    """The reader with threads refuses to start; it does not wait for what nobody reads."""
    pack(random_model(), tmp_path / "m.sfm", Formats())
    image = Image(tmp_path / "m.sfm")
    board = load_board("host-flash")
    sources = [s.replace("flash_uring.c", "flash_pread.c") for s in board.sources]
    board = replace(board, sources=sources)
    generate(make_plan(image, board, dense_thresholds(image), 32), tmp_path / "gen")
    exe = build_firmware(board, tmp_path / "gen", tmp_path / "device")
    launcher = [
        "env",
        f"LD_PRELOAD={shim}",
        "FAIL_NAME=pthread_create",
        f"FAIL_ERRNO={errno.EAGAIN}",
    ]
    with pytest.raises(SparseflashError, match="cannot be read"):
        start_host_device(exe, image.path, "pty", launcher)
