"""Paths of the artefacts, under ``build/``.

build/models/<model>/    model.sfm, known.json, calibration.npz and .json, prices.npz,
                         libsparseflash.so, perplexity.*
build/<board>/<model>/   gen/ (the C, plan.json, tokenizer.json), firmware, flashed/, bench.*
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparseflash.base.files import work
from sparseflash.plan.boards import Board
from sparseflash.plan.kept import read_plan


@dataclass(frozen=True)
class Places:
    """Paths of one model, and of it on one board."""

    model: str
    board: str = "host"

    @property
    def folder(self) -> Path:
        return work() / "build" / "models" / self.model

    @property
    def image(self) -> Path:
        """The image with the whole head, not in factors."""
        return self.image_of()

    def image_of(self, screened: bool = False, asvd: float = 0.0) -> Path:
        """model.sfm, and its twins with a head proxy or in factors."""
        names = ["model", *(["screened"] * screened)]
        return self.folder / ".".join([*names, *([f"asvd{asvd:g}"] * (asvd > 0)), "sfm"])

    @property
    def known(self) -> Path:
        """What the model is without its weights."""
        return self.folder / "known.json"

    def planned_image(self) -> Path:
        """The image that the plan was made for."""
        return self.folder / str(read_plan(self.plan)["image"]["file"])

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.npz"

    @property
    def prices(self) -> Path:
        """Measured here; those of models that ship lie beside their recipes."""
        return self.folder / "prices.npz"

    @property
    def target(self) -> Path:
        return work() / "build" / self.board / self.model

    @property
    def generated(self) -> Path:
        """The C, plan.json and tokenizer.json of one ``generate``."""
        return self.target / "gen"

    @property
    def plan(self) -> Path:
        return self.generated / "plan.json"

    def plans(self) -> list[Path]:
        """Of the model on all boards."""
        return sorted((work() / "build").glob(f"*/{self.model}/gen/plan.json"))

    @property
    def firmware(self) -> Path:
        return self.target / "firmware"

    @property
    def flashed(self) -> Path:
        return self.target / "flashed"


def curve_path(board: Board) -> Path:
    return work() / "build" / board.id / "flash_curve.json"
