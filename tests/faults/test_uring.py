"""io_uring on a kernel that refuses or puts off a submit: every read still gets its own bytes."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes

BLOCK, BLOCKS = 4096, 64


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("uring")
    fw = root() / "firmware"
    port = fw / "port" / "host-flash"
    sources = [Path(__file__).with_name("uring_main.c"), port / "flash_uring.c", port / "storage.c"]
    flags = [*STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    exe = folder / "reads"
    subprocess.run(
        [
            *("cc", *flags, *includes("plain"), *map(str, sources)),
            *("-Wl,--wrap=syscall", "-o", str(exe)),
        ],
        check=True,
    )
    data = folder / "blocks.bin"
    data.write_bytes(b"".join(bytes([k + 1]) * BLOCK for k in range(BLOCKS)))
    return exe, data


@pytest.mark.parametrize("times", [1, 3, 1000000])
@pytest.mark.parametrize("code", [0, errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
def test_submits_that_fail(program: tuple[Path, Path], code: int, times: int) -> None:
    exe, data = program
    for at in (1, 2, 9, 30, BLOCKS):
        done = subprocess.run(
            [exe, data, str(at), str(code), str(times)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "no io_uring" in done.stderr:
            pytest.skip("this kernel gives no io_uring")
        assert done.returncode == 0, (at, done.stdout, done.stderr)
