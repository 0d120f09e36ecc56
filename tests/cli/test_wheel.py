"""The wheel works in an empty folder: templates, firmware and recipes travel with it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sparseflash.base.files import root


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the wheel, as an installation lays them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (
        *("host_tools", "codegen_templates", "firmware", "models"),
        *("pyproject.toml", "setup.py", "README.md", "LICENSE"),
    ):
        (source / name).symlink_to(root() / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, empty: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "SPARSEFLASH_ROOT"}
    environment |= {"PYTHONPATH": str(installed), "COLUMNS": "120"}
    command = [sys.executable, "-m", "sparseflash.cli", *arguments]
    return subprocess.run(
        command, check=False, cwd=empty, env=environment, capture_output=True, text=True
    )


def test_boards_and_models(installed: Path, tmp_path: Path) -> None:
    boards, models = (run(installed, tmp_path, verb) for verb in ("boards", "models"))
    assert boards.returncode == 0 and models.returncode == 0
    assert "ast1030-evb" in boards.stdout and "smollm2-135m" in models.stdout


def test_work_goes_to_the_current_folder(installed: Path, tmp_path: Path) -> None:
    arguments = ("--board", "ast1030-evb", "--method", "dense", "--sparsity", "0")
    done = run(installed, tmp_path, "generate", "--model", "random-8m", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "build" / "ast1030-evb" / "random-8m" / "plan.json").is_file()
    assert not (installed / "sparseflash" / "data" / "build").exists()
