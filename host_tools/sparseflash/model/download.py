"""One wheel from the package registry, by pip; how far it is shows by what pip has written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE = re.compile(r"Downloading \S+ \((?P<size>[0-9.]+) (?P<unit>[kMG]?)B\)")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
EVERY = 0.2
Told = Callable[[str, float, float], None]
"""Is told what is done, how much of it, and how much there is."""


def download_wheel(package: str, folder: Path, at: Told) -> str:
    """Puts the wheel of a pinned package into ``folder``; returns why not, or nothing."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-color"]
    command += ["--dest", str(folder), package]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        environment = {**os.environ, "TMPDIR": name}
        with (place / "said").open("w") as said, _watching(f"downloading {package}", place, at):
            done = subprocess.run(
                command,
                stdout=said,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=environment,
            )
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    return lines[-1][6:].strip().rstrip(".") if lines else f"code {done.returncode}"


def fetched(place: Path) -> tuple[int, float]:
    """Bytes of the wheel that are there, and how many pip says it has; 0 before it says so."""
    found = SIZE.search((place / "said").read_text(errors="replace"))
    total = float(found["size"]) * UNITS[found["unit"]] if found else 0.0
    return sum(p.stat().st_size for p in place.rglob("*.whl")), total


@contextmanager
def _watching(what: str, place: Path, at: Told) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY):
            with suppress(OSError):  # pip moves what it has written
                have, total = fetched(place)
                if total:
                    at(what, min(have, 0.999 * total), total)
        at(what, 1, 1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
