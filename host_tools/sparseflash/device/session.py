"""A device under the plan that was flashed on it."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import InputError, LinkError, MismatchError, ToolError, UsageError
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.host_board import HostProcess
from sparseflash.device.link.client import Device
from sparseflash.device.ports import find_port
from sparseflash.device.runners import reply_seconds, start_board
from sparseflash.image.formats import THRESHOLDS
from sparseflash.image.sfm import Image
from sparseflash.plan.boards import Board
from sparseflash.plan.kept import plan_digest, read_plan

RECONNECT = 10.0
"""Seconds in which a restarted board comes back."""


class Session:
    """A device under its plan: starts its process, or opens ``port``. A context manager.

    flashed: the folder with what was flashed, plan.json and model.sfm among it; threads: of a Linux
    board's process, 0: one for each core.
    """

    def __init__(
        self, board: Board, flashed: Path, model: str, port: str | None = None, threads: int = 0
    ) -> None:
        self.board = board
        plan_path = flashed / "plan.json"
        if not plan_path.is_file():
            raise UsageError(
                f"{model} is not flashed on {board.id}; run sparseflash generate, then flash, "
                f"each with --model {model} --board {board.id}"
            )
        self.plan: dict[str, Any] = read_plan(plan_path)
        self._flashed = flashed
        self._port = port
        self._threads = threads
        self._process: HostProcess | EmulatorProcess | None = None
        self._open()

    def _open(self) -> None:
        """Starts the process or opens the port, and greets."""
        try:
            self._greet()
        except (InputError, MismatchError, ToolError):
            _ = self.image  # a damaged one is named rather than what follows from it
            raise

    def _greet(self) -> None:
        board, port = self.board, self._port
        if port is None:
            self._process = start_board(board, self._flashed, self._threads)
            port = self._process.url if self._process is not None else find_port(board)
        timeout = reply_seconds(board)
        sha, digest = self.plan["model_sha"], plan_digest(self.plan)
        try:
            if isinstance(self._process, EmulatorProcess):
                self.device = Device.connect(self._process.port, port, sha, digest, timeout)
            else:
                self.device = Device.open(port, sha, digest, timeout=timeout)
        except BaseException:
            self._stop()
            raise

    @property
    def threads(self) -> int:
        """Threads that a Linux board's process has; 1 elsewhere."""
        if not isinstance(self._process, HostProcess):
            return 1
        tasks = Path(f"/proc/{self._process.process.pid}/task")
        return len(list(tasks.iterdir())) if tasks.is_dir() else self._threads or 1

    def reconnect(self, seconds: float = RECONNECT) -> Device:
        """Opens the device again after it restarted or its line broke; a process starts anew.

        Raises:
            LinkError: it does not answer within ``seconds``.
        """
        self.device.close()
        self._stop()
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._open()
                return self.device
            except LinkError:
                if self._port is None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)  # a port of a board that restarts is away for a moment

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self._stop()

    @cached_property
    def image(self) -> Image:
        """What was flashed, checked when it is first asked for: the device checks it too."""
        return Image(self._flashed / "model.sfm")

    @property
    def thresholds(self) -> np.ndarray:
        """Those of the mask: a predictor that only reads early has none."""
        out = np.array(self.plan["thresholds"], np.float32)
        if self.plan.get("speculate"):
            out[:, THRESHOLDS.index("predictor")] = 0
        return out
