"""The generated C as a component of an ecosystem: its metadata, an example main, and the image.

One layout for all: ``src`` holds the generated C, the runtime and the kernels of the board's tier.
What differs is in codegen_templates/package/<ecosystem>, a template a file.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflash import __version__
from sparseflash.base.errors import UsageError
from sparseflash.base.files import root, whole_folder, write_bytes, write_text
from sparseflash.codegen.build import kernel_sources, runtime_sources, tier_sources
from sparseflash.codegen.generate import environment, render
from sparseflash.plan.boards import Board

ECOSYSTEMS = ("cmake", "esp-idf", "arduino", "zephyr", "cmsis-pack")
EXACT = """\
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off") /* every build computes the same bits */
#endif
"""
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.M)


@dataclass(frozen=True)
class Example:
    """What the example of a package says: a prompt, its tokens, how many follow."""

    prompt: str
    tokens: list[int]
    count: int = 64


def check_package(ecosystem: str, board: Board) -> None:
    """Refuses what cannot be packaged, before anything is loaded."""
    if ecosystem not in ECOSYSTEMS:
        raise UsageError(f"no package {ecosystem!r}; there are {', '.join(ECOSYSTEMS)}")
    if "stream" in board.raw:
        raise UsageError(
            f"board {board.id} streams its weights by code of its own port; packages hold programs "
            "whose flash is mapped: give another board, such as mps2-an386 or esp32c3"
        )
    if ecosystem != "cmake" and not board.memories:
        raise UsageError(
            f"board {board.id} has an operating system, and a package for {ecosystem} is for "
            "microcontrollers: give a board with the same CPU, as --board mps2-an386"
        )


def _sources(board: Board) -> list[Path]:
    found = [*runtime_sources("map"), *tier_sources(board.tier)]
    return found + [s for tier in board.tiers for s in kernel_sources(tier)]


def _headers(files: list[Path], tier: str) -> list[Path]:
    """The headers of firmware/include, quoted includes of ``files`` and theirs; none generated."""
    fw = root() / "firmware"
    places = [fw / "include", fw / "kernels", fw / "kernels" / tier]
    found = sorted(places[0].glob("*.h"))
    left = [*files, *found]
    while left:
        source = left.pop()
        for name in _INCLUDE.findall(source.read_text(encoding="utf-8")):
            path = next((p / name for p in [source.parent, *places] if (p / name).is_file()), None)
            if path is not None and path not in found and path not in files:
                found.append(path)
                left.append(path)
    return found


def _place(path: Path, tier: str) -> str:
    """Where a file of firmware lies below ``src``."""
    kernels = root() / "firmware" / "kernels"
    if path == kernels / tier / "tier.h" or not path.is_relative_to(kernels):
        return path.name
    return str(path.relative_to(kernels))


def package_name(model: str) -> str:
    """``sparseflash_`` and the model's name, as a C identifier."""
    return "sparseflash_" + re.sub(r"\W+", "_", model)


def write_package(
    plan: dict[str, Any],
    board: Board,
    ecosystem: str,
    image: Path,
    target: Path,
    example: Example,
) -> Path:
    """The package as the folder ``target``; a pack of CMSIS lies in it as a .pack file.

    It appears as one; an older one is replaced.

    Raises:
        UsageError: the board or ecosystem cannot be packaged.
    """
    check_package(ecosystem, board)
    with whole_folder(target) as temporary:
        _write(plan, board, ecosystem, image, temporary, example)
    return target


def _write(
    plan: dict[str, Any], board: Board, ecosystem: str, image: Path, folder: Path, example: Example
) -> None:
    texts = {n: t for n, t in render(plan, board).items() if n.startswith("sf_model")}
    sources = _sources(board)
    for path in [*sources, *_headers(sources, board.tier)]:
        texts[_place(path, board.tier)] = path.read_text(encoding="utf-8")
    for name, text in texts.items():
        write_text(folder / "src" / name, EXACT + text if name.endswith(".c") else text)
    shutil.copyfile(image, folder / "model.sfm")
    compiled = sorted(n for n in texts if n.endswith((".c", ".S")))
    values = {
        "name": package_name(plan["name"]),
        "model": plan["name"],
        "version": __version__,
        "plan": plan,
        "board": board,
        "ecosystem": ecosystem,
        "sources": compiled,
        "headers": sorted(n for n in texts if n.endswith(".h")),
        "tier_flags": {s: f for t, f in board.tiers.items() for s in compiled if s.startswith(t)},
        "example": example,
        "image_address": f"{board.flash.get('base', 0):#010x}",
        "image_bytes": image.stat().st_size,
    }
    env = environment()
    base = root() / "codegen_templates" / "package"
    for template in sorted([*base.glob("*.j2"), *(base / ecosystem).rglob("*.j2")]):
        shared = template.parent == base
        if shared and template.name.startswith("_"):
            continue
        name = str(template.relative_to(base if shared else base / ecosystem))[: -len(".j2")]
        text = env.get_template(str(template.relative_to(base.parent))).render(values)
        write_text(folder / name.replace("NAME", values["name"]), text)
    if ecosystem == "cmsis-pack":
        _zip(folder, folder / f"Sparseflash.{values['name']}.{__version__}.pack")


def _zip(folder: Path, target: Path) -> None:
    """A pack: the files of the package, with fixed times."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    temporary = folder.with_suffix(".pack")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as z:
        for path in files:
            info = zipfile.ZipInfo(str(path.relative_to(folder)), (2026, 1, 1, 0, 0, 0))
            z.writestr(info, path.read_bytes())
    write_bytes(target, temporary.read_bytes())
    temporary.unlink()
