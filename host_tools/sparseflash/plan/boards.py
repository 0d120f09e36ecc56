"""Boards: one declarative file each, ``firmware/port/<board>/board.yaml``, and their CPUs in
``firmware/port/cpus.yaml``."""

from __future__ import annotations

import platform
import re
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sparseflash.base.errors import InputError, UsageError
from sparseflash.base.files import parse_yaml, root
from sparseflash.plan.board_file import check, check_complete


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
    cpu: str
    """Its entry in ``cpus.yaml``."""
    tier: str
    """Folder of the kernels that it is built with."""
    tiers: dict[str, list[str]]
    """Of a tier that is chosen at run time: folders, and the flags of each."""
    toolchain: dict[str, Any]
    """``cc``, ``machine``, ``cflags``, ``ldflags`` and so on of its CPU and its own."""
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


def tier_kernels(tier: str, tiers: dict[str, list[str]]) -> set[str]:
    """Kernels that a tier, or some tier of those at run time, has in place of plain C."""
    kernels = root() / "firmware" / "kernels"
    found: set[str] = set()
    for folder in (tier, *tiers):
        for name in ("tier.h", "has.h"):
            if (kernels / folder / name).is_file():
                found |= set(re.findall(r"X\(\w+, (\w+)\)", (kernels / folder / name).read_text()))
    return found


def native_tier() -> str:
    """The tier of this machine."""
    known = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
    return known.get(platform.machine().lower(), "plain")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(e).split())})") from e
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds no mapping of names to values; see that of board host")
    return raw


@cache
def _cpus_file(path: Path) -> dict[str, Any]:
    return _yaml(path)


def _cpus(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """cpus.yaml, and a CPU of it. Raises InputError when there is no such CPU."""
    path = root() / "firmware" / "port" / "cpus.yaml"
    raw = _cpus_file(path)
    if name not in raw["cpus"]:
        raise InputError(f"{path} has no CPU {name!r}; it has {', '.join(raw['cpus'])}")
    return raw, deepcopy(raw["cpus"][name])


def bare_cpus() -> list[str]:
    """CPUs whose boards have defaults, so that one file makes a board."""
    cpus = _cpus_file(root() / "firmware" / "port" / "cpus.yaml")["cpus"]
    return [name for name, cpu in cpus.items() if "board" in cpu]


def uart_drivers() -> list[str]:
    """What ``uart.driver`` of a board may be."""
    found = (root() / "firmware" / "port" / "common").glob("uart_*.c")
    return sorted(p.stem.removeprefix("uart_") for p in found)


def load_cpu(name: str, own: dict[str, Any]) -> tuple[str, dict[str, list[str]], dict[str, Any]]:
    """Tier, tiers at run time and toolchain of a CPU; lists of ``own`` follow those of the CPU.

    Raises:
        InputError: no such CPU.
    """
    raw, chain = _cpus(name)
    chain.pop("board", None)
    tier = str(chain.pop("tier"))
    if tier == "native":
        tier = native_tier()
    for key, value in own.items():
        chain[key] = [*chain.get(key, []), *value] if isinstance(value, list) else value
    return tier, raw["run_time"].get(tier, {}), chain


def _completed(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A board file with what its CPU gives a board that does not say otherwise.

    Sources are then those of the CPU, the driver of the UART, and every file of the folder.
    """
    given = _cpus(str(raw["cpu"]))[1].get("board", {})
    emulator, usual = given.get("emulator", {}), list(given.get("sources", []))
    out = {k: v for k, v in given.items() if k != "emulator"} | raw
    if usual and "sources" not in raw:
        uart = raw.get("uart", {})
        shared = [*usual, *raw.get("uses", [])]
        if "driver" in uart:
            if str(uart["driver"]) not in uart_drivers():
                raise InputError(
                    f"{folder / 'board.yaml'}: no UART driver {uart['driver']!r}; there are "
                    f"{', '.join(uart_drivers())}"
                )
            shared.append(f"uart_{uart['driver']}.c")
        own = sorted(p.name for p in folder.iterdir() if p.suffix in (".c", ".S"))
        shared += [] if "init.c" in own else ["no_init.c"]
        common = root() / "firmware" / "port" / "common"
        out["sources"] = [*own, *(str(common / s) for s in shared)]
    settings = raw.get("runners", {}).get("emulator") or {}
    if "machine" in settings and emulator:
        at = hex(int(raw["flash"]["base"]))
        words = {"{machine}": str(settings["machine"]), "{image_address}": at}
        command = list(emulator["command"])
        for word, value in words.items():
            command = [a.replace(word, value) for a in command]
        filled = {**emulator, "command": command, **settings}
        out["runners"] = raw["runners"] | {"emulator": filled}
    return out


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
        known = ", ".join(board_ids())
        raise UsageError(f"no board {name!r} under firmware/port; there are {known}")
    raw = _yaml(path)
    check(path, raw)
    try:
        raw = _completed(raw, folder)
        check_complete(path, raw)
        memories = tuple(_memory(m) for m in raw.get("memories", []))
        tier, tiers, chain = load_cpu(str(raw["cpu"]), raw.get("toolchain", {}))
        data = [m.length for m in memories if "data" in m.holds]
        return Board(
            id=raw["id"],
            folder=folder,
            description=raw["description"],
            kind=raw["kind"],
            sram_bytes=int(data[0] if data else raw["sram_bytes"]),
            flash_bytes=int(raw["flash"]["bytes"] if "flash" in raw else raw["flash_bytes"]),
            kv_len_default=int(raw["kv_len_default"]),
            cpu=str(raw["cpu"]),
            tier=tier,
            tiers=tiers,
            toolchain=chain,
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
