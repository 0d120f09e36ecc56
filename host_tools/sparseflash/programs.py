"""Programs that are not Python: run them, and say which package a missing one comes from."""

from __future__ import annotations

import shutil
import subprocess

from sparseflash.errors import ToolError

PACKAGES = {
    "aarch64-linux-gnu-gcc": "Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm-none-eabi-gcc": "Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "arm-none-eabi-objcopy": "Debian: binutils-arm-none-eabi",
    "cc": "Debian: gcc libc6-dev",
    "clang": "Debian: clang",
    "esptool": "pip install esptool",
    "openocd": "Debian: openocd",
    "picotool": "Debian 13: picotool",
    "pyocd": "pip install pyocd",
    "qemu-aarch64": "Debian: qemu-user",
    "qemu-system-arm": "Debian: qemu-system-arm",
    "riscv64-unknown-elf-gcc": "Debian: gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
    "riscv64-unknown-elf-objcopy": "Debian: binutils-riscv64-unknown-elf",
    "scp": "Debian: openssh-client",
    "ssh": "Debian: openssh-client",
    "st-flash": "Debian: stlink-tools",
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
        print(" ".join(command), flush=True)
    absent = missing(command[0])
    if absent:
        raise ToolError(absent)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
