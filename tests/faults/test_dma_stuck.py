"""A DMA engine that never ends a transfer is an error after a second, and not a hang."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sparseflash.base.files import root
from sparseflash.codegen.build import STRICT, includes


def test_stuck_transfers_are_told(tmp_path: Path) -> None:
    common = root() / "firmware" / "port" / "common"
    sources = [Path(__file__).with_name("dma_stuck_main.c"), common / "dma_queue.c"]
    flags = [*STRICT, "-Wno-pointer-to-int-cast", "-O1", "-fsanitize=undefined"]
    exe = tmp_path / "stuck"
    subprocess.run(
        ["cc", *flags, *includes("plain"), *map(str, sources), "-o", str(exe)],
        check=True,
    )
    done = subprocess.run([exe], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
