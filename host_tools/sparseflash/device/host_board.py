"""The ``host`` board: starts its process and names its port."""

from __future__ import annotations

import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from sparseflash.base.errors import (
    InputError,
    LinkError,
    MismatchError,
    SparseflashError,
    ToolError,
)
from sparseflash.base.programs import missing

START_SECONDS = 30.0


class HostProcess:
    """A running device process. As a context manager it ends the process on exit."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
        self.process = process
        self.url = url
        self._log = log

    def stop(self) -> None:
        """Ends the process, if it still runs."""
        _end(self.process)
        self._log.close()

    def __enter__(self) -> HostProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()  # asks it to end, so that it can write what it keeps
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """What the process prints first; what there is of it when it exits or is too slow."""
    assert process.stdout is not None
    line = b""
    deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
            # One byte at a time: a buffered read could wait for more than the line.
            byte = process.stdout.read(1)
            if not byte:
                break
            line += byte
    return line


def start_host_device(
    exe: Path,
    image: Path,
    transport: Literal["pty", "tcp"] = "pty",
    launcher: Sequence[str] = (),
    threads: int = 0,
) -> HostProcess:
    """Starts ``exe`` with ``image`` as its flash, under ``launcher`` when its CPU is not ours.

    threads: how many compute; 0: one for each core.

    Raises:
        ToolError: the program is missing or does not start.
        MismatchError: it was built for another image.
    """
    absent = missing(launcher[0]) if launcher else None
    if absent:
        raise ToolError(absent)
    way = ["--pty"] if transport == "pty" else ["--tcp", "0"]
    more = ["--follow-stdin", *(["--threads", str(threads)] if threads else [])]
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
    try:
        process = subprocess.Popen(
            [*launcher, str(exe), "--flash", str(image), *way, *more],
            stdin=subprocess.PIPE,  # its end tells the process that we are gone
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )
    except OSError as e:
        log.close()
        raise ToolError(f"cannot start {exe}: {e.strerror}; build the host board first") from e
    line = _first_line(process).decode("utf-8", "replace").strip()
    if line.startswith("PORT "):
        return HostProcess(process, line.removeprefix("PORT "), log)
    code = process.poll()
    if code is None and not line:
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
    _end(process)
    log.seek(0)
    said = log.read().decode("utf-8", "replace").strip() or f"it printed {line!r}"
    log.close()
    kinds: dict[int | None, type[SparseflashError]] = {
        InputError.code: InputError,
        LinkError.code: LinkError,
        MismatchError.code: MismatchError,
    }
    raise kinds.get(code, ToolError)(f"{exe} did not start (exit {code}): {said}")
