"""Writes a folder for a new board: board.yaml from what a data sheet says, and a checklist."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from sparseflash.base.errors import SparseflashError, UsageError
from sparseflash.base.files import root, work, write_text
from sparseflash.plan.boards import bare_cpus, board_ids, load_board, uart_drivers

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""Of memories: powers of two, as data sheets count them."""
SLOWEST = 100_000
"""Hz of a CPU; less was meant as another unit."""


@dataclass(frozen=True)
class Region:
    """A piece of the memory map, in bytes."""

    name: str
    origin: int
    length: int

    def __str__(self) -> str:
        return f"{self.name} {self.origin:#010x}:{self.length:#x}"


@dataclass(frozen=True)
class NewBoard:
    """What has to be known of a board whose flash is mapped."""

    name: str
    cpu: str
    clock: int
    program: Region
    sram: Region
    image: Region
    uart: str
    """``driver@address``."""
    irq: int | None = None
    baud: int = 115200
    runner: str = "pyocd"
    settings: dict[str, str] = field(default_factory=dict)
    description: str = ""


def region(option: str, text: str) -> Region:
    """``0x08000000:128K`` as a region.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(0[xX][0-9a-fA-F]+):(0[xX][0-9a-fA-F]+|(\d+)([KMG]?))", text.strip())
    if not found:
        raise UsageError(f"{option} {text!r} is not ADDRESS:BYTES; write 0x08000000:128K")
    size = int(found[3]) * UNITS[found[4]] if found[3] else int(found[2], 16)
    origin = int(found[1], 16)
    if not 0 < size <= 1 << 32 or origin + size > 1 << 32:
        raise UsageError(f"{option} {text!r} does not lie within 32 bits of address")
    return Region(option.lstrip("-"), origin, size)


def _check(board: NewBoard) -> tuple[str, int]:
    """The UART's driver and address, after all that can be wrong was refused."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", board.name):
        raise UsageError(f"{board.name!r} is no name of a board; use a-z, 0-9 and -")
    if board.name in board_ids():
        raise UsageError(f"board {board.name} is there already, in firmware/port/{board.name}")
    if board.cpu not in bare_cpus():
        raise UsageError(f"no CPU {board.cpu!r}; firmware/port/cpus.yaml has {bare_cpus()}")
    if board.clock < SLOWEST:
        raise UsageError(f"--clock {board.clock} is in Hz; a CPU of 25 MHz has --clock 25000000")
    driver, _, base = board.uart.partition("@")
    if driver not in uart_drivers() or not re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}", base):
        raise UsageError(
            f"--uart {board.uart!r} is not DRIVER@ADDRESS; write stm32@0x40013800, the drivers are "
            f"{', '.join(uart_drivers())}"
        )
    regions = sorted((board.program, board.sram, board.image), key=lambda r: r.origin)
    for low, high in pairwise(regions):
        if low.origin + low.length > high.origin:
            raise UsageError(f"{low} reaches into {high}; give each its own addresses")
    return driver, int(base, 16)


def _uart(board: NewBoard, driver: str, base: int) -> str:
    """The line of the UART: what each driver asks for."""
    irq = "" if board.irq is None else f", irq: {board.irq}"
    if driver == "cmsdk":
        rate = f"divisor: {round(board.clock / board.baud)}"
    elif driver == "16550":
        rate = f"shift: 0, divisor: {max(1, round(board.clock / (16 * board.baud)))}"
    else:
        rate = f"clock: {board.clock}, baud: {board.baud}"
    return f"{{driver: {driver}, base: {base:#010x}, {rate}{irq}}}"


def board_yaml(board: NewBoard) -> str:
    """The file, after a check of what it says."""
    driver, base = _check(board)
    about = board.description or f"{board.name} ({board.cpu}); not run yet"
    settings = ", ".join(f"{k}: {v}" for k, v in board.settings.items())
    return "\n".join(
        [
            f"id: {board.name}",
            f"description: {about}",
            f"cpu: {board.cpu}",
            f"clock_hz: {board.clock}",
            "memories:",
            f"  - {{name: code, origin: {board.program.origin:#010x}, "
            f"length: {board.program.length:#x}, holds: [code]}}",
            f"  - {{name: sram, origin: {board.sram.origin:#010x}, "
            f"length: {board.sram.length:#x}, holds: [data, dma]}}",
            f"flash: {{base: {board.image.origin:#010x}, "
            f"bytes: {board.image.length:#x}}} # of the image",
            f"uart: {_uart(board, driver, base)}",
            f"runner: {board.runner}",
            "runners:",
            f"  {board.runner}: {{{settings}}}",
            "",
        ]
    )


def _checklist(board: NewBoard) -> str:
    emulated = board.runner == "emulator"
    port = "" if emulated else " PORT=/dev/tty…"
    init = (
        "- [ ] The machine is ready after reset, or `init.c` here has `sf_board_init()`."
        if emulated
        else "- [ ] `init.c` here has `sf_board_init()`: clocks, the pins of the UART, the flash "
        "window. Without it the board is taken as ready after reset. "
        "`../nucleo-u575zi-q/init.c` is an example."
    )
    name = board.name
    return f"""\
# {name}: what is left to do

- [ ] Compare `board.yaml` with the data sheet: addresses, sizes, the clock that is set.
{init}
- [ ] Other C and assembly files of this folder are compiled too; a known CPU and UART need none.
- [ ] `sparseflash flash --board {name} --model conform --dry-run` shows the right commands
      (after `sparseflash generate --board {name} --model conform`).
- [ ] `make conform BOARD={name}{port}`: every check passes.
- [ ] `make demo BOARD={name}{port}` with a model that fits.
- [ ] Remove this file, and add a row to the table of boards in README.md.
"""


def write_board(board: NewBoard) -> Path:
    """The folder of the board, with board.yaml and CHECKLIST.md; loaded once, so that it works.

    Raises:
        UsageError: a value is wrong, or the board is there already.
    """
    text = board_yaml(board)
    if work() != root():
        raise UsageError(
            "boards new writes into firmware/port, and this is an installed package: use a checkout"
        )
    target = root() / "firmware" / "port" / board.name
    temporary = target.with_name(f"{board.name}.{os.getpid()}.part")
    try:
        write_text(temporary / "board.yaml", text)
        write_text(temporary / "CHECKLIST.md", _checklist(board))
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        load_board(board.name)
    except SparseflashError:
        shutil.rmtree(target)
        raise
    return target
