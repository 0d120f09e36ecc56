"""The guides, followed literally: their commands run in the order in which a reader types them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_workspace
from sparseflash.base.files import root

GUIDES = ("docs/TUTORIAL.md", "docs/HOWTO.md")
LEFT_OUT = {
    r"^make |^\. \.venv": "sets up what this test runs in",
    r"path/to|my\.bin|mymethod": "stands for the reader's own",
    r"^sparseflash perplexity --tokens": "takes minutes; tests/pipeline measures a perplexity",
    r"--board mps2-an386": "tests/emulator runs it on that board",
}
"""Commands that do not run here, and why."""


def commands(guide: str) -> list[str]:
    """Lines of the code blocks, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", (root() / guide).read_text(), re.M | re.S)
    lines = [line.partition("  #")[0].strip() for b in blocks for line in b.splitlines()]
    return [line for line in lines if line]


def runs(line: str) -> bool:
    return not any(re.search(pattern, line) for pattern in LEFT_OUT)


def test_most_commands_run() -> None:
    found = [line for guide in GUIDES for line in commands(guide)]
    assert sum(map(runs, found)) >= 10
    for pattern in LEFT_OUT:
        assert any(re.search(pattern, line) for line in found), f"nothing is like {pattern}"


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_of_a_guide(guide: str, tmp_path: Path) -> None:
    base = make_workspace(tmp_path)
    tool = tmp_path / "bin" / "sparseflash"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sparseflash.cli "$@"\n')
    tool.chmod(0o755)
    environment = {**os.environ, "SPARSEFLASH_ROOT": str(base)}
    environment["PYTHONPATH"] = str(root() / "host_tools")
    environment["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
    # Both begin with a model that is flashed: the tutorial by make demo, the how-to after it.
    before = ["sparseflash generate --model story", "sparseflash flash --model story"]
    for line in [*before, *filter(runs, commands(guide))]:
        done = subprocess.run(
            ["sh", "-c", line],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout or line == "sparseflash chat --model story", line
        if line == "sparseflash bench --model story --json":  # the README shows this on a board
            decode = json.loads(done.stdout)[1]
            shown = (root() / "README.md").read_text()
            assert re.search(rf"^digest +{decode['digest']}$", shown, re.M)
            assert re.search(rf"^bytes per token +{decode['bytes_per_token']:,.0f}$", shown, re.M)
