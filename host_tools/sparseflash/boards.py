"""Boards: one declarative file each, ``firmware/port/<board>/board.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparseflash.errors import InputError, UsageError
from sparseflash.files import root


@dataclass(frozen=True)
class Board:
    """What the tools know of a board. Sizes are in bytes."""

    id: str
    folder: Path
    description: str
    kind: str
    sram_bytes: int
    flash_bytes: int
    kv_len_default: int
    toolchain: dict[str, Any]
    sources: list[str]
    runner: str
    raw: dict[str, Any] = field(default_factory=dict)


def board_ids() -> list[str]:
    return sorted(p.parent.name for p in (root() / "firmware" / "port").glob("*/board.yaml"))


def load_board(name: str) -> Board:
    """Reads a board file.

    Raises:
        UsageError: no such board.
        InputError: the file lacks a field.
    """
    folder = root() / "firmware" / "port" / name
    path = folder / "board.yaml"
    if not path.is_file():
        raise UsageError(f"no board {name!r} under firmware/port; there are {board_ids()}")
    raw = yaml.safe_load(path.read_text())
    try:
        return Board(
            id=raw["id"],
            folder=folder,
            description=raw["description"],
            kind=raw["kind"],
            sram_bytes=int(raw["sram_bytes"]),
            flash_bytes=int(raw["flash_bytes"]),
            kv_len_default=int(raw["kv_len_default"]),
            toolchain=raw["toolchain"],
            sources=list(raw["sources"]),
            runner=raw["runner"],
            raw=raw,
        )
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: field {e} is missing or of the wrong type; see host") from e
