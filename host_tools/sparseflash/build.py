"""Compiles generated C with the runtime: a board's firmware, or a shared library for the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sparseflash.boards import Board
from sparseflash.errors import ToolError
from sparseflash.files import root

STRICT = [
    "-std=c11",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wdouble-promotion",
    "-Wshadow",
    "-Werror",
]


def runtime_sources(flash: str = "map") -> list[Path]:
    """Portable C that every build contains, with one way to reach the flash."""
    fw = root() / "firmware"
    sources = sorted((fw / "kernels").glob("*.c")) + sorted((fw / "runtime").glob("*.c"))
    return [*sources, fw / "flash" / f"{flash}.c"]


def run(command: list[str], show: bool = False) -> None:
    """Runs a build command.

    Raises:
        ToolError: the program is missing or failed; its output is part of the sentence.
    """
    if show:
        print(" ".join(command), flush=True)
    if shutil.which(command[0]) is None:
        raise ToolError(f"{command[0]} is not installed; install a C compiler (Debian: gcc)")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")


def _compile(
    cc: str, flags: list[str], sources: list[Path], gen: Path, target: Path, show: bool
) -> Path:
    fw = root() / "firmware"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    includes = [f"-I{gen}", f"-I{fw / 'include'}", f"-I{fw / 'link'}"]
    command = [cc, *STRICT, *flags, *includes, *map(str, sources), "-o", str(temporary), "-lm"]
    run(command, show)
    os.replace(temporary, target)
    return target


def build_firmware(board: Board, gen: Path, target: Path, show: bool = False) -> Path:
    """The board's program at ``target``, from the sources generated in ``gen``."""
    fw = root() / "firmware"
    sources = [
        gen / "sf_model.c",
        *runtime_sources("stream" if "stream" in board.raw else "map"),
        *sorted((fw / "link").glob("*.c")),
        *[board.folder / s for s in board.sources],
    ]
    chain = board.toolchain
    flags = [*chain["cflags"], *chain.get("ldflags", [])]
    return _compile(chain["cc"], flags, sources, gen, target, show)


def build_library(
    gen: Path,
    target: Path,
    cc: str = "cc",
    flags: list[str] | None = None,
    show: bool = False,
    faulty: bool = False,
) -> Path:
    """The same C as a shared library that the host calls (firmware/port/library).

    ``faulty`` streams from the flash that misbehaves on request, firmware/flash/fault.c.
    """
    port = root() / "firmware" / "port" / "library" / "port.c"
    sources = [gen / "sf_model.c", *runtime_sources("stream" if faulty else "map"), port]
    if faulty:
        sources.append(root() / "firmware" / "flash" / "fault.c")
    flags = flags if flags is not None else ["-O3", "-march=native"]
    return _compile(cc, [*flags, "-shared", "-fPIC"], sources, gen, target, show)
