"""Where a board is: its serial port by pyserial's list, its boot loader's drive by its mount."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serial.tools import list_ports

from sparseflash.base.errors import UsageError
from sparseflash.plan.boards import Board

MOUNTS = ("/media/*", "/run/media/*", "/media", "/mnt", "/Volumes")


def _told(port: Any) -> str:
    """A port as a person knows it: its name, what it says it is, its number."""
    number = f", number {port.serial_number}" if port.serial_number else ""
    return f"{port.device} ({port.description}{number})"


def find_port(board: Board) -> str:
    """The serial port of a board: the only one whose USB device ``usb`` of board.yaml names.

    Where none of those is plugged in, the only port of any USB device: an adapter at its pins.

    Raises:
        UsageError: there is none, or several fit; names them.
    """
    ports = [p for p in list_ports.comports() if p.vid is not None]
    known = {str(name).lower() for name in board.raw.get("usb", [])}
    own = [p for p in ports if f"{p.vid:04x}:{p.pid:04x}" in known]
    found = own or ports
    if not found:
        raise UsageError(
            f"no serial port is here that could be board {board.id}; plug it in, or give PORT="
        )
    if len(found) > 1:
        names = "; ".join(_told(p) for p in sorted(found, key=lambda p: str(p.device)))
        raise UsageError(f"several serial ports could be board {board.id}: {names}; give PORT=")
    return str(found[0].device)


def find_drive(label: str, mounts: Sequence[str] = MOUNTS, base: Path = Path("/")) -> Path | None:
    """Where the USB drive of a boot loader is mounted; None when it is not.

    Raises:
        UsageError: several are; names them.
    """
    found = sorted(
        {i.parent for m in mounts for i in base.glob(f"{m.lstrip('/')}/{label}*/INFO_UF2.TXT")}
    )
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UsageError(f"several drives {label} are mounted: {names}; give DRIVE=")
    return found[0] if found else None
