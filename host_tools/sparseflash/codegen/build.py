"""Compiles generated C with the runtime: a board's firmware, or a shared library for the host."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sparseflash.base.errors import ToolError, TooSmallError
from sparseflash.base.files import root, whole
from sparseflash.base.programs import run
from sparseflash.plan.boards import Board

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


def _command(
    cc: str, flags: list[str], sources: list[Path], gen: Path, target: Path, show: bool
) -> None:
    fw = root() / "firmware"
    places = [gen, fw / "include", fw / "link", fw / "port" / "common"]
    includes = [f"-I{place}" for place in places]
    libraries = [] if "-c" in flags else ["-lm"]
    run(
        [cc, *STRICT, *flags, *includes, *map(str, sources), "-o", str(target), *libraries],
        show,
    )


def _compile(
    cc: str, flags: list[str], sources: list[Path], gen: Path, target: Path, show: bool
) -> Path:
    with whole(target) as temporary:
        _command(cc, flags, sources, gen, temporary, show)
    return target


def build_firmware(board: Board, gen: Path, target: Path, show: bool = False) -> Path:
    """The board's program at ``target``, from the sources generated in ``gen``.

    A bare board also gets ``objects/`` (with call graphs when GCC compiles), and ``target`` with
    the suffixes ``.bin`` and ``.map``.

    Raises:
        TooSmallError: it does not fit the memories of the board.
        ToolError: the compiler is missing or failed.
    """
    fw = root() / "firmware"
    sources = [
        gen / "sf_model.c",
        *runtime_sources("stream" if "stream" in board.raw else "map"),
        *sorted((fw / "link").glob("*.c")),
        *[(board.folder / s).resolve() for s in board.sources],
    ]
    chain = board.toolchain
    if not board.memories:
        flags = [*chain["cflags"], *chain.get("ldflags", [])]
        return _compile(chain["cc"], flags, sources, gen, target, show)

    graphs = ["-fcallgraph-info=su,da"] if chain["cc"].endswith("gcc") else []
    own = [f"-I{(board.folder / place).resolve()}" for place in chain.get("includes", [])]
    shutil.rmtree(target.parent / "objects", ignore_errors=True)
    objects = []
    for source in sources:
        part = "model" if source.parent == gen else source.parent.name
        objects.append(target.parent / "objects" / part / f"{source.stem}.o")
        objects[-1].parent.mkdir(parents=True, exist_ok=True)
        flags = [*chain.get("machine", []), *chain["cflags"], *own, *graphs, "-c"]
        _command(chain["cc"], flags, [source], gen, objects[-1], show)
    script = [f"-Wl,-T,{gen / 'board.ld'}", f"-Wl,-Map,{target}.map"]
    link = [
        chain.get("ld", chain["cc"]),
        *chain.get("machine", []),
        *chain["cflags"],
        *chain.get("ldflags", []),
        *script,
    ]
    try:
        with whole(target) as temporary:
            libraries = chain.get("libraries", ["-lm"])
            run([*link, *map(str, objects), "-o", str(temporary), *libraries], show)
    except ToolError as e:
        full = re.search(r"region `(\w+)' overflowed by (\d+) bytes", str(e))
        if not full:
            raise
        held = next(m for m in board.memories if m.name.upper() == full[1])
        raise TooSmallError(
            f"board {board.id}: {', '.join(held.holds)} of the linked program take "
            f"{held.length + int(full[2]):,} bytes of memory {held.name!r} and it has "
            f"{held.length:,}: shorten the KV cache (--kv-len) or choose a smaller model"
        ) from e
    if "objcopy" in chain:
        run([chain["objcopy"], "-O", "binary", str(target), f"{target}.bin"], show)
    return target


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
