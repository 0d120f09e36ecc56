"""The tick counter of Cortex-M boards around its wraps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparseflash.base.files import root
from sparseflash.base.programs import missing, run
from sparseflash.codegen.build import STRICT

HERE = Path(__file__).parent


def test_ticks_around_wraps(tmp_path: Path) -> None:
    for absent in filter(None, [missing("cc")]):
        pytest.skip(absent)
    exe = tmp_path / "ticks"
    (tmp_path / "sf_board.h").touch()
    flags = ["-O1", *STRICT, f"-I{tmp_path}", f"-I{root() / 'firmware' / 'include'}"]
    run(["cc", *flags, str(HERE / "ticks_main.c"), "-o", str(exe)])
    done = subprocess.run([exe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "right\n"
