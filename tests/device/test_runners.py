"""Runners: what they would execute, what they need, and what they say when it goes wrong."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparseflash.base.errors import ToolError, UsageError
from sparseflash.base.programs import node_modules
from sparseflash.device.runners import FOLDER, Files, flash_files, runner_commands
from sparseflash.plan.boards import board_ids, load_board

ASKED = {"port": "/dev/ttyUSB0", "host": "pi@sbc", "drive": "/mnt/drive"}
PAIRS = [(b, r) for b in board_ids() for r in load_board(b).runners if r not in FOLDER]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    out = Files(tmp_path / "firmware", tmp_path / "model.sfm", tmp_path / "plan.json")
    for path in (out.firmware, out.image, out.plan, tmp_path / "firmware.bin"):
        path.write_bytes(path.name.encode())
    return out


@pytest.mark.parametrize(("board", "runner"), PAIRS)
def test_dry_run(board: str, runner: str, files: Files, tmp_path: Path) -> None:
    """Every command is complete, names the files, and nothing is executed or written."""
    commands = flash_files(load_board(board), files, tmp_path / "f", runner, ASKED, dry=True)
    words = " ".join(" ".join(c) for c in commands)
    assert commands and "{" not in words
    assert "firmware" in words
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("board", "runner"), PAIRS)
def test_verifies(board: str, runner: str, files: Files) -> None:
    """A runner reads back, or its program does so by itself (st-flash, a drive of a boot ROM)."""
    words = " ".join(" ".join(c) for c in runner_commands(load_board(board), runner, files, ASKED))
    own = {"st-flash", "uf2"}
    assert runner in own or any(w in words for w in ("verify", "compare", "sha256sum --check"))


def test_asks_for_what_it_needs(files: Files) -> None:
    with pytest.raises(UsageError, match="--host"):
        runner_commands(load_board("linux-sbc"), "ssh", files, {})
    with pytest.raises(UsageError, match="no runner 'esptool'"):
        runner_commands(load_board("pico2"), "esptool", files, ASKED)


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_programs(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program names its package; a failed or unequal read-back is an error."""
    board, tools, place = load_board("nucleo-h743zi2"), tmp_path / "bin", tmp_path / "flashed"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(ToolError, match=r"pyocd is not installed; install it \(pip"):
        flash_files(board, files, place, "pyocd", ASKED)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/bin{os.pathsep}/usr/bin")
    fake(tools, "pyocd", "echo no probe; exit 3")
    with pytest.raises(ToolError, match="no probe"):
        flash_files(board, files, place, "pyocd", ASKED)
    fake(tools, "pyocd", "echo 'Mismatched byte at 0x08000000'")
    with pytest.raises(ToolError, match="does not hold"):
        flash_files(board, files, place, "pyocd", ASKED)
    assert not place.exists()
    fake(tools, "pyocd", f'echo "$@" >> {tmp_path / "log"}')
    flash_files(board, files, place, "pyocd", ASKED)
    assert (place / "plan.json").read_bytes() == b"plan.json"
    assert "compare 0x08020000" in (tmp_path / "log").read_text()


def test_packages_of_an_emulator_are_installed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that need them at the same time: one installs, the other waits for it. Of a cache that
    is a link, npm is told the real folder: it fails through a link."""
    (tmp_path / "rp").mkdir()
    for name in ("package.json", "package-lock.json"):
        (tmp_path / "rp" / name).write_text("{}")
    place, tools, log = tmp_path / "real" / "npm" / "rp", tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / ".cache").symlink_to(tmp_path / "real")
    script = [f"echo $6 >> {log}", "sleep 0.3", f"mkdir {place}/node_modules"]
    script.append(f"echo there > {place}/node_modules/.package-lock.json")
    fake(tools, "npm", " && ".join(script))
    monkeypatch.setenv("SPARSEFLASH_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/bin{os.pathsep}/usr/bin")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(node_modules, [tmp_path / "rp"] * 2)) == [place] * 2
    assert log.read_text() == f"{place}\n"
