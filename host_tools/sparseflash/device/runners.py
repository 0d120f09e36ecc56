"""Runners: how a program and its image get onto a board.

A runner is either a folder that an emulator or a process reads, or a list of commands. Commands
are templates of ``board.yaml`` or of :data:`COMMANDS`, so that a dry run prints exactly what
would be executed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflash.base.errors import ToolError, TooSmallError, UsageError
from sparseflash.base.files import emulators, whole, write_bytes
from sparseflash.base.programs import missing, node_modules, run
from sparseflash.device.emulator import EmulatorProcess, start_emulator
from sparseflash.device.host_board import HostProcess, start_host_device
from sparseflash.device.ports import find_drive, find_port
from sparseflash.device.rp2040 import seal
from sparseflash.device.uf2 import uf2_bytes
from sparseflash.plan.boards import Board

FOLDER = ("process", "emulator")
"""Runners that read a folder instead of writing to hardware."""

COMMANDS: dict[str, list[list[str]]] = {
    "uf2": [["cp", "{uf2}", "{drive}/"]],
    "picotool": [
        ["picotool", "load", "--verify", "{uf2}"],
        ["picotool", "reboot"],
    ],
    "openocd": [
        ["openocd", "-f", "{interface}", "-f", "{target}",
         "-c", "program {elf} verify",
         "-c", "program {image} verify {image_address}",
         "-c", "reset run", "-c", "shutdown"],
    ],
    "st-flash": [
        ["st-flash", "write", "{bin}", "{address}"],
        ["st-flash", "--reset", "write", "{image}", "{image_address}"],
    ],
    "pyocd": [
        ["pyocd", "flash", "--target", "{target}", "--format", "elf", "{elf}"],
        ["pyocd", "flash", "--target", "{target}", "--format", "bin", "--base-address",
         "{image_address}", "{image}"],
        ["pyocd", "commander", "--target", "{target}", "--command", "compare {address} {bin}",
         "--command", "compare {image_address} {image}", "--command", "reset"],
    ],
    "esptool": [
        ["esptool", "--chip", "{chip}", "--port", "{port}", "write-flash", "{address}", "{bin}",
         "{image_address}", "{image}"],
        ["esptool", "--chip", "{chip}", "--port", "{port}", "verify-flash", "{address}", "{bin}",
         "{image_address}", "{image}"],
    ],
    "ssh": [
        ["ssh", "{host}", "mkdir -p sparseflash"],
        ["scp", "{elf}", "{image}", "{host}:sparseflash/"],
        ["ssh", "{host}", "cd sparseflash && printf '%s\\n' '{elf_sha}  {elf_name}' "
         "'{image_sha}  {image_name}' | sha256sum --check"],
    ],
}  # fmt: skip
"""Each ends with a read-back, or asks its program for one."""


@dataclass(frozen=True)
class Files:
    """What is to be put on a board."""

    firmware: Path
    image: Path
    plan: Path
    tokenizer: Path | None = None


def runner_commands(
    board: Board, runner: str, files: Files, asked: dict[str, str]
) -> list[list[str]]:
    """The commands that ``flash`` runs; ``asked`` is PORT, HOST and DRIVE of the user.

    Raises:
        UsageError: the runner is none of the board's, or needs a value nobody gave.
    """
    settings = board.settings(runner)
    values: dict[str, Any] = {
        "elf": files.firmware,
        "bin": f"{files.firmware}.bin",
        "uf2": f"{files.firmware}.uf2",
        "image": files.image,
        "elf_name": files.firmware.name,
        "elf_sha": _sha256(files.firmware),
        "image_sha": _sha256(files.image),
        "image_name": files.image.name,
        **_addresses(board),
        **{k: v for k, v in settings.items() if k != "commands"},
        **{k: v for k, v in asked.items() if v},
    }
    if "label" in settings and not asked.get("drive"):
        values["drive"] = find_drive(settings["label"]) or f"/media/$USER/{settings['label']}"
    templates = settings.get("commands") or COMMANDS.get(runner)
    if templates is None:
        raise UsageError(f"runner {runner!r} of board {board.id} has no commands; see runners.py")
    if "port" not in values and any("{port}" in a for c in templates for a in c):
        values["port"] = find_port(board)
    try:
        return [[str(a).format(**values) for a in c] for c in templates]
    except KeyError as e:
        name = str(e.args[0])
        raise UsageError(
            f"runner {runner!r} of board {board.id} needs --{name}; give it to sparseflash flash"
        ) from None


def _sha256(path: Path) -> str:
    """Of a file; a dry run may come before the build."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "SHA256"


def _addresses(board: Board) -> dict[str, str]:
    if not board.memories:
        return {}
    return {
        "address": f"{board.memory('code').origin:#010x}",
        "image_address": f"{board.flash['base']:#010x}",
    }


def write_uf2(board: Board, files: Files) -> Path:
    """Program and image as one UF2 file beside the program."""
    settings = board.raw["uf2"]
    program = Path(f"{files.firmware}.bin").read_bytes()
    if settings.get("boot_crc"):
        program = seal(program)
    start = board.memory("code").origin
    room = board.flash["base"] - start
    if len(program) > room:
        raise TooSmallError(
            f"board {board.id}: the program takes {len(program):,} bytes and the image begins "
            f"{room:,} bytes behind its start; move flash.base in board.yaml"
        )
    target = Path(f"{files.firmware}.uf2")
    regions = {start: program, board.flash["base"]: files.image.read_bytes()}
    write_bytes(target, uf2_bytes(regions, int(settings["family"])))
    return target


def _put(source: Path, target: Path, size: int = 0) -> None:
    """Copies and reads back; the rest up to ``size`` is zeros."""
    data = source.read_bytes()
    with whole(target) as temporary:
        temporary.write_bytes(data)
        if temporary.read_bytes() != data:
            raise ToolError(f"{target} does not read back what was written; check the disk")
        shutil.copymode(source, temporary)
        if size > len(data):
            os.truncate(temporary, size)


def flash_files(
    board: Board,
    files: Files,
    flashed: Path,
    runner: str | None = None,
    asked: dict[str, str] | None = None,
    dry: bool = False,
) -> list[list[str]]:
    """Puts ``files`` on the board and verifies them; returns the commands that did it.

    Raises:
        ToolError: a program is missing or failed.
    """
    name = runner or board.runner
    settings = board.settings(name)
    commands: list[list[str]] = []
    if name in FOLDER:
        pad = name == "emulator" and settings.get("pad", True)
        if dry:
            return commands
        _put(files.firmware, flashed / "firmware")
        if "uf2" in board.raw:
            _put(write_uf2(board, files), flashed / "flash.img")
        elif pad:
            _put(files.image, flashed / "flash.img", board.flash_bytes)
    else:
        commands = runner_commands(board, name, files, asked or {})
        if dry:
            return commands
        if "label" in settings and "$USER" in commands[0][-1]:
            raise ToolError(
                f"no drive {settings['label']} is mounted; hold BOOTSEL while you plug the board "
                "in, or give DRIVE="
            )
        for command in commands:
            absent = missing(command[0])
            if absent:
                raise ToolError(absent)
        if "uf2" in board.raw:
            write_uf2(board, files)
        for command in commands:
            if "Mismatched byte" in run(command):  # pyocd says it, and exits with 0
                raise ToolError(f"{command[0]}: the board does not hold what was written to it")
    _put(files.image, flashed / "model.sfm")
    if files.tokenizer is not None and files.tokenizer.is_file():
        _put(files.tokenizer, flashed / "tokenizer.json")
    else:
        (flashed / "tokenizer.json").unlink(missing_ok=True)
    _put(files.plan, flashed / "plan.json")
    return commands


def start_board(
    board: Board, flashed: Path, threads: int = 0
) -> HostProcess | EmulatorProcess | None:
    """The process of a board that is one, with ``threads`` (0: one a core); None for hardware."""
    settings = board.settings()
    if board.runner == "process":
        launcher = list(settings.get("launcher", []))
        return start_host_device(
            flashed / "firmware",
            flashed / "model.sfm",
            "tcp" if launcher else "pty",
            launcher=launcher,
            threads=threads,
        )
    if board.runner == "emulator":
        padded = flashed / "flash.img"
        command = [a.replace("{emulators}", str(emulators())) for a in settings["command"]]
        if "npm" in settings:
            modules = node_modules(emulators() / settings["npm"])
            command = [a.replace("{modules}", str(modules)) for a in command]
        return start_emulator(
            command,
            flashed / "firmware",
            padded if padded.is_file() else flashed / "model.sfm",
            seconds=float(settings.get("start_seconds", 30)),
            timeout=reply_seconds(board),
        )
    return None


def reply_seconds(board: Board) -> float:
    """How long a board may be silent over one request."""
    return float(board.settings().get("reply_seconds", 30.0))
