"""host_tools/setup-base.sh: what a bare machine lacks is installed or named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparseflash.base.files import root


def program(place: Path, name: str, text: str) -> None:
    (place / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / name).chmod(0o755)


def setup(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(root() / "host_tools" / "setup-base.sh"), *arguments]
    environment = {**os.environ, "PATH": str(place)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_nothing_is_missing(tmp_path: Path) -> None:
    program(tmp_path, "cc", "")
    program(tmp_path, "python3", f'exec "{sys.executable}" "$@"')
    done = setup(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("programs", "arguments", "said"),
    [
        ({}, (), "these packages are missing, under the names that Debian gives them: gcc"),
        (
            {"apt-get": "exit 9", "id": "echo 1000"},
            (),
            "run: sudo apt-get install -y --no-install-recommends gcc libc6-dev python3-venv",
        ),
        (
            {"cc": "", "python3": "case $2 in *version_info*) exit 1;; *) echo 3.9.2;; esac"},
            (),
            "python3 is 3.9.2 and 3.11 or later is needed",
        ),
        ({"cc": ""}, ("python9",), "PYTHON=python9 is no program here"),
    ],
)
def test_one_sentence(
    programs: dict[str, str], arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    for name, text in programs.items():
        program(tmp_path, name, text)
    done = setup(tmp_path, *arguments)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


def test_root_installs(tmp_path: Path) -> None:
    program(tmp_path, "id", "echo 0")
    program(tmp_path, "apt-get", 'echo "$@"')
    done = setup(tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "update -qq",
        "install -y -qq --no-install-recommends gcc libc6-dev python3-venv",
    ]
