"""An emulator as a board: its process, and the TCP port that is its UART."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import serial

from sparseflash.base.errors import ToolError
from sparseflash.base.programs import missing

START_SECONDS = 30.0
TRIES = 5


def free_port() -> int:
    """A TCP port nobody listens on now; somebody may before it is used."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class EmulatorProcess:
    """A running emulator with its line open as ``port``. As a context manager it ends on exit."""

    def __init__(self, process: subprocess.Popen[bytes], port: Any, url: str, log: Any) -> None:
        self.process = process
        self.port = port
        self.url = url
        self._log = log

    def stop(self) -> None:
        """Closes the line and ends the process, if it still runs."""
        with contextlib.suppress(OSError):
            self.port.close()
        self.process.terminate()  # lets plugins write what they counted
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def __enter__(self) -> EmulatorProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_emulator(
    command: list[str],
    elf: Path,
    image: Path,
    seconds: float = START_SECONDS,
    timeout: float = START_SECONDS,
    extra: list[str] | None = None,
) -> EmulatorProcess:
    """Starts ``command`` with {elf}, {image} and {port} filled in, and opens its line.

    ``seconds`` is how long it may take to listen; ``timeout`` that of the opened line.

    Raises:
        ToolError: the emulator is missing, ends, or does not listen.
    """
    absent = missing(command[0])
    if absent:
        raise ToolError(absent)
    said = ""
    for _ in range(TRIES):
        number = free_port()
        filled = [a.format(elf=elf, image=image, port=number) for a in command]
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        process = subprocess.Popen(
            filled + (extra or []), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        url = f"socket://127.0.0.1:{number}"
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            # One connection only: the emulator takes the first for the line.
            with contextlib.suppress(serial.SerialException, OSError):
                port = serial.serial_for_url(url, timeout=timeout, write_timeout=timeout)
                return EmulatorProcess(process, port, url, log)
            time.sleep(0.02)
        late = process.poll() is None
        process.kill()
        process.wait()
        log.seek(0)
        said = " ".join(log.read().decode("utf-8", "replace").split())
        log.close()
        if late:
            raise ToolError(f"{command[0]} did not open its port within {seconds:g} s: {said}")
        if "in use" not in said:  # else somebody took the port first
            break
    raise ToolError(f"{command[0]} ended at once: {said or 'it printed nothing'}")
