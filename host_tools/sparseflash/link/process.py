"""The board ``host`` as a process."""

from __future__ import annotations

import select
import subprocess
from pathlib import Path

from sparseflash.errors import ToolError


class HostProcess:
    """Runs the device program; ``url`` is where pyserial finds it. A context manager."""

    def __init__(self, program: Path, image: Path, transport: str = "pty") -> None:
        where = ["--pty"] if transport == "pty" else ["--tcp", "0"]
        self._process = subprocess.Popen(
            [str(program), str(image), *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        line = self._process.stdout.readline() if ready else ""
        if not line.startswith("PORT "):
            self._process.kill()
            error = self._process.stderr.read().strip()
            raise ToolError(f"{program.name} did not start: {error or 'no port was given'}")
        self.url = line[5:].strip()

    def __enter__(self) -> HostProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
