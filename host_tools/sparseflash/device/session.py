"""A device under the plan that was flashed on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.device.emulator import EmulatorProcess
from sparseflash.device.host_board import HostProcess
from sparseflash.device.link.client import Device
from sparseflash.device.runners import reply_seconds, start_board
from sparseflash.image.formats import THRESHOLDS
from sparseflash.image.sfm import Image
from sparseflash.plan.boards import Board
from sparseflash.plan.kept import plan_digest, read_plan


class Session:
    """A device under its plan: starts its process, or opens ``port``. A context manager.

    flashed: the folder with what was flashed, plan.json and model.sfm among it.
    """

    def __init__(self, board: Board, flashed: Path, model: str, port: str | None = None) -> None:
        self.board = board
        plan_path = flashed / "plan.json"
        if not plan_path.is_file():
            raise UsageError(
                f"{model} is not flashed on {board.id}; run make generate flash BOARD={board.id} "
                f"MODEL={model}"
            )
        self.plan: dict[str, Any] = read_plan(plan_path)
        self.image = Image(flashed / "model.sfm")
        self._process: HostProcess | EmulatorProcess | None = None
        if port is None:
            self._process = start_board(board, flashed)
            if self._process is None:
                raise UsageError(f"board {board.id} needs PORT=, the serial port it is on")
            port = self._process.url
        timeout = reply_seconds(board)
        sha, digest = self.image.sha256, plan_digest(self.plan)
        try:
            if isinstance(self._process, EmulatorProcess):
                self.device = Device.connect(self._process.port, port, sha, digest, timeout)
            else:
                self.device = Device.open(port, sha, digest, timeout=timeout)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()
        self._stop()

    @property
    def thresholds(self) -> np.ndarray:
        """Those of the mask: a guess that only reads early has none."""
        out = np.array(self.plan["thresholds"], np.float32)
        if self.plan.get("speculate"):
            out[:, THRESHOLDS.index("guess")] = 0
        return out
