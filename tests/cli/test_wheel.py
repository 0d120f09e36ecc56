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
    assert (tmp_path / "build" / "ast1030-evb" / "random-8m" / "gen" / "plan.json").is_file()
    assert not (installed / "sparseflash" / "data" / "build").exists()


def test_packages_and_reports_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    arguments = ("--model", "conform", "--board", "mps2-an385")
    done = run(
        installed, tmp_path, "generate", *arguments, "--package", "cmake", "--method", "dense"
    )
    assert done.returncode == 0, done.stderr
    place = tmp_path / "build/mps2-an385/conform/packages/cmake/sparseflash_conform"
    assert "MIT" in (place / "LICENSE").read_text() and (place / "src" / "sf_model.c").is_file()
    done = run(installed, tmp_path, "report", *arguments)
    assert done.returncode == 0 and (tmp_path / "build/mps2-an385/conform/report.html").is_file()
    facts = "--cpu cortex-m3 --clock 25000000 --program 0x0:4K --sram 0x20000000:4K"
    facts += " --image 0x30000000:4K"
    new = ["boards", "new", "mine", *facts.split(), "--uart", "cmsdk@0x40004000", "--machine", "m"]
    done = run(installed, tmp_path, *new)
    assert done.returncode == 2 and "use a checkout" in done.stderr
