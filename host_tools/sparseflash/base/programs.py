"""Programs that are not Python: run them, and say which package a missing one comes from."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from sparseflash.base.errors import ToolError
from sparseflash.base.files import alone, work

PACKAGES = {
    "aarch64-linux-gnu-gcc": "Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm-none-eabi-gcc": "Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "arm-none-eabi-objcopy": "Debian: binutils-arm-none-eabi",
    "cc": "Debian: gcc libc6-dev",
    "clang": "Debian: clang",
    "esptool": "pip install esptool",
    "node": "Debian: nodejs",
    "npm": "Debian: npm",
    "openocd": "Debian: openocd",
    "picotool": "Debian 13: picotool",
    "pyocd": "pip install pyocd",
    "qemu-aarch64": "Debian: qemu-user",
    "qemu-system-arm": "Debian: qemu-system-arm",
    "qemu-system-riscv32": "Debian: qemu-system-misc",
    "riscv64-unknown-elf-gcc": "Debian: gcc-riscv64-unknown-elf",
    "riscv64-unknown-elf-objcopy": "Debian: binutils-riscv64-unknown-elf",
    "scp": "Debian: openssh-client",
    "ssh": "Debian: openssh-client",
    "st-flash": "Debian: stlink-tools",
    "xtensa-esp32s3-elf-gcc": "ESP-IDF: tools/idf_tools.py install xtensa-esp-elf; Debian has none",
}


def missing(program: str) -> str | None:
    """One sentence when ``program`` is not installed."""
    if shutil.which(program):
        return None
    package = PACKAGES.get(program)
    return f"{program} is not installed" + (f"; install it ({package})" if package else "")


def run(command: list[str], show: bool = False) -> str:
    """Runs a program to its end; returns what it printed.

    Raises:
        ToolError: it is missing or failed; its output is part of the sentence.
    """
    if show:
        print(shlex.join(command), file=sys.stderr, flush=True)
    absent = missing(command[0])
    if absent:
        raise ToolError(absent)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        raise ToolError(f"{command[0]} failed ({done.returncode}):\n{said}")
    return done.stdout + done.stderr


def node_modules(folder: Path) -> Path:
    """Where the packages that ``folder``/package-lock.json pins are; installs them on first use.

    Raises:
        ToolError: npm is missing or cannot install them.
    """
    place = (work() / ".cache" / "npm" / folder.name).resolve()  # npm ci fails through a link
    with alone(place):
        _install(folder, place)
    return place


def _install(folder: Path, place: Path) -> None:
    locks = [folder / "package.json", folder / "package-lock.json"]
    ready = place / "node_modules" / ".package-lock.json"
    copies = [place / lock.name for lock in locks]
    if ready.is_file() and all(
        c.is_file() and c.read_bytes() == lock.read_bytes() for c, lock in zip(copies, locks)
    ):
        return
    ready.unlink(missing_ok=True)  # it speaks of what was there before
    for copy, lock in zip(copies, locks):
        shutil.copyfile(lock, copy)
    try:
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(place)])
    except ToolError:
        copies[-1].unlink()  # so that the next use tries again
        raise
