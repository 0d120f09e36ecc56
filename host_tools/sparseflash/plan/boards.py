"""Boards: one declarative file each, ``firmware/port/<board>/board.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import root


@dataclass(frozen=True)
class Memory:
    """A region of the memory map and what the linker puts there."""

    name: str
    origin: int
    length: int
    holds: tuple[str, ...]
    """Of ``code``, ``constants`` (with the code, if no memory has them), ``data`` (with the stack)
    and ``dma``."""
    dma_from: int = 0
    """Lowest address a DMA engine writes to."""


@dataclass(frozen=True)
class Board:
    """What the tools know of a board. Sizes are in bytes."""

    id: str
    folder: Path
    description: str
    kind: str
    """``process`` (an operating system below) or ``bare`` (linked to a memory map)."""
    sram_bytes: int
    flash_bytes: int
    kv_len_default: int
    toolchain: dict[str, Any]
    sources: list[str]
    runner: str
    """How ``flash`` and the sessions reach it, unless another of ``runners`` is asked for."""
    runners: dict[str, dict[str, Any]] = field(default_factory=dict)
    clock_hz: int | None = None
    memories: tuple[Memory, ...] = ()
    reserve: dict[str, int] = field(default_factory=dict)
    """SRAM that the model cannot have: ``stack``, ``code``, ``runtime``."""
    flash: dict[str, Any] = field(default_factory=dict)
    uart: dict[str, Any] = field(default_factory=dict)
    irqs: dict[int, str] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    def memory(self, content: str) -> Memory:
        """The region that holds ``code``, ``data`` or ``dma``."""
        for m in self.memories:
            if content in m.holds:
                return m
        raise InputError(f"{self.folder / 'board.yaml'}: no memory holds {content!r}; add one")

    @property
    def constants(self) -> Memory | None:
        """A window of its own for constants, where they cannot be read beside the code."""
        return next((m for m in self.memories if "constants" in m.holds), None)

    def settings(self, runner: str | None = None) -> dict[str, Any]:
        """Settings of a runner of this board."""
        name = runner or self.runner
        if name not in self.runners and name != self.runner:
            raise UsageError(
                f"board {self.id} has no runner {name!r}; there are "
                f"{', '.join(sorted({self.runner, *self.runners}))}"
            )
        return self.runners.get(name, {})


def board_ids() -> list[str]:
    return sorted(p.parent.name for p in (root() / "firmware" / "port").glob("*/board.yaml"))


def _memory(raw: dict[str, Any]) -> Memory:
    return Memory(
        name=str(raw["name"]),
        origin=int(raw["origin"]),
        length=int(raw["length"]),
        holds=tuple(raw["holds"]),
        dma_from=int(raw.get("dma_from", 0)),
    )


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
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(e).split())})") from e
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds no mapping of names to values; see that of board host")
    try:
        memories = tuple(_memory(m) for m in raw.get("memories", []))
        data = [m.length for m in memories if "data" in m.holds]
        return Board(
            id=raw["id"],
            folder=folder,
            description=raw["description"],
            kind=raw["kind"],
            sram_bytes=int(data[0] if data else raw["sram_bytes"]),
            flash_bytes=int(raw["flash"]["bytes"] if "flash" in raw else raw["flash_bytes"]),
            kv_len_default=int(raw["kv_len_default"]),
            toolchain=raw["toolchain"],
            sources=list(raw["sources"]),
            runner=raw["runner"],
            runners={str(k): v or {} for k, v in raw.get("runners", {}).items()},
            clock_hz=raw.get("clock_hz"),
            memories=memories,
            reserve={str(k): int(v) for k, v in raw.get("reserve", {}).items()},
            flash=raw.get("flash", {}),
            uart=raw.get("uart", {}),
            irqs={int(k): str(v) for k, v in raw.get("irqs", {}).items()},
            raw=raw,
        )
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"{path}: a field is missing or of the wrong type ({e}); see that of board host"
        ) from e
