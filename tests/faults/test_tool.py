"""The tool is killed, or finds its disk full, at every stage: nothing is lost or half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import make_workspace
from sparseflash.base.errors import Exit
from sparseflash.base.files import root

ALL = os.environ.get("SPARSEFLASH_FAULTS") == "all"
MODEL = ["--model", "conform"]
BOARD = [*MODEL, "--board", "host"]
STAGES = {
    "load": MODEL,
    "calibrate": MODEL,
    "generate": [*BOARD, "--method", "h", "--sparsity", "40"],
    "build": BOARD,
    "flash": BOARD,
    "validate": [*BOARD, "--positions", "4"],
    "bench": [*BOARD, "--tokens", "4"],
}
FIGURES = ("bench.json", "bench.csv")
"""They differ from run to run."""


def environment(base: Path) -> dict[str, str]:
    tools = str(root() / "host_tools")
    return {**os.environ, "SPARSEFLASH_ROOT": str(base), "PYTHONPATH": tools}


class Tool:
    """``broken_tool.py`` on a checkout of its own, and what lay there before each stage."""

    def __init__(self, folder: Path) -> None:
        self.base = make_workspace(folder, "-O0")  # compilers of a test need not be slow
        for name in (".cache", "build"):  # the real ones stay out of danger
            shutil.rmtree(self.base / name)
        self.states = folder / "states"
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("broken_tool.py")],
            env=environment(self.base),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, verb: str, at: int = 0, how: str = "", most: int = 0) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        arguments = [verb, *STAGES[verb], "--quiet"]
        run = {"arguments": arguments, "root": str(self.base), "at": at, "how": how, "most": most}
        self.process.stdin.write(json.dumps(run) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def keep(self, verb: str) -> None:
        for name in ("build", ".cache"):
            if (self.base / name).is_dir():
                shutil.copytree(self.base / name, self.states / verb / name)

    def restore(self, verb: str) -> None:
        for name in ("build", ".cache"):
            shutil.rmtree(self.base / name, ignore_errors=True)
            if (self.states / verb / name).is_dir():
                shutil.copytree(self.states / verb / name, self.base / name)
        # Kernels know nothing of a model, and take the longest.
        kernels = self.states / "end" / "build" / "kernels"
        shutil.copytree(kernels, self.base / "build" / "kernels", dirs_exist_ok=True)

    def files(self, place: Path | None = None) -> dict[str, bytes]:
        """Artefacts by their names."""
        place = place or self.base
        paths = [p for n in ("build", ".cache") for p in (place / n).rglob("*") if p.is_file()]
        return {
            str(p.relative_to(place)): b"" if p.name in FIGURES else p.read_bytes()
            for p in paths
            if p.parent.name != "kernels"
        }


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    tool = Tool(tmp_path_factory.mktemp("tool"))
    for verb in STAGES:
        tool.keep(verb)
        found = tool.run(verb)
        assert found["code"] == 0, found["said"]
    tool.keep("end")
    yield tool
    assert tool.process.stdin is not None
    tool.process.stdin.close()
    tool.process.wait(10)


def check(tool: Tool, verb: str, at: int | str) -> None:
    """Each file is the old one or the new one, and the next run has all of them."""
    following = [*STAGES, "end"][list(STAGES).index(verb) + 1]
    old, new = (tool.files(tool.states / v) for v in (verb, following))
    for name, data in tool.files().items():
        whole = (old.get(name), new.get(name))
        assert name.endswith(".part") or ".part/" in name or data in whole, (verb, at, name)
    again = tool.run(verb)
    assert again["code"] == 0, (verb, at, again["said"])
    assert tool.files() == new, (verb, at)


@pytest.mark.parametrize("verb", STAGES)
def test_killed(tool: Tool, verb: str, count: Counter[str]) -> None:
    """kill -9 before an operation on files: `make faults` takes each."""
    tool.restore(verb)
    operations = tool.run(verb)["operations"]
    assert operations > 1
    for at in range(1, operations + 1) if ALL else {operations // 2, operations}:
        tool.restore(verb)
        assert tool.run(verb, at, "kill")["code"] == -signal.SIGKILL
        check(tool, verb, at)
        count["kill -9 of the tool"] += 1


@pytest.mark.parametrize("verb", STAGES)
def test_disk_full(tool: Tool, verb: str, count: Counter[str]) -> None:
    """From some operation on nothing can be written, or no file grows beyond a size."""
    tool.restore(verb)
    operations = tool.run(verb)["operations"]
    faults = [(at, 0) for at in (range(1, operations + 1) if ALL else [operations // 2])]
    faults += [(0, most) for most in ((100, 1000, 5000, 20_000, 100_000) if ALL else (1000,))]
    failed = 0
    for at, most in faults:
        tool.restore(verb)
        found = tool.run(verb, at, "full", most)
        failed += found["code"] != 0
        said = [line for line in found["said"].splitlines() if line]
        assert found["code"] in (0, Exit.INPUT, Exit.TOOL), (verb, at, most, found)
        assert found["code"] != Exit.INPUT or len(said) == 1, found["said"]
        assert found["code"] == 0 or "error: " in found["said"], found["said"]
        assert "Traceback" not in found["said"], found["said"]
        check(tool, verb, at or f"{most} bytes")
        count["full disks of the tool"] += 1
    assert failed > 0


@pytest.mark.parametrize("same", [True, False])
def test_two_runs_in_one_folder(tool: Tool, same: bool) -> None:
    """At the same time, of the same plan or of two: both end well, and what lies there is whole."""
    for delay in range(5 if ALL else 1):
        tool.restore("generate")
        shutil.rmtree(tool.base / "build" / "host", ignore_errors=True)
        command = [sys.executable, "-m", "sparseflash.cli", "run", *BOARD, "--quiet"]
        other = ["--method", "dense"] if not same else ["--method", "h", "--sparsity", "40"]
        runs = [
            subprocess.Popen(
                [*command, *more],
                env=environment(tool.base),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for more in (["--method", "h", "--sparsity", "40"], other)
        ]
        for run in runs:
            said = run.communicate()[1]
            # Of two plans one host may find the plan of the other on the device, and says it.
            allowed = (0,) if same else (0, Exit.MISMATCH)
            # A device that runs while the other flashes again stops, and says it.
            flashed_anew = run.returncode == Exit.FAILED and "changed while it ran" in said
            assert run.returncode in allowed or flashed_anew, (delay, said)
            assert "Traceback" not in said
        for verb in ("flash", "validate"):
            found = tool.run(verb)
            assert found["code"] == 0, found["said"]
        assert not [p for p in (tool.base / "build").rglob("*.part")]
