"""A newcomer's checkpoint, from transformers' save_pretrained to a board in one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_resolve import save_checkpoint

from conftest import make_workspace
from sparseflash.base.files import root


@pytest.mark.parametrize("board", ["host", "mps2-an386"])
def test_one_command(board: str, tmp_path: Path) -> None:
    if board != "host":
        for program in ("qemu-system-arm", "arm-none-eabi-gcc"):
            if not shutil.which(program):
                pytest.skip(f"no {program}")
    save_checkpoint(tmp_path / "tiny")
    env = {**os.environ, "SPARSEFLASH_ROOT": str(make_workspace(tmp_path))}
    env["PYTHONPATH"] = str(root() / "host_tools")
    command = [sys.executable, "-m", "sparseflash.cli", "demo", "--model", "tiny"]
    command += ["--board", board, "--method", "dense"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "logits and 7 sites of 2 layers are bit-equal" in " ".join(done.stdout.split())
