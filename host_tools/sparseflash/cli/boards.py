"""The verb boards: lists them, and writes new ones."""

from __future__ import annotations

from typing import Annotated

import typer

from sparseflash.base.errors import SparseflashError, UsageError
from sparseflash.base.sizes import in_units
from sparseflash.cli import console
from sparseflash.cli.options import examples, verbs

app = verbs()
NEW = (
    "boards new mine --cpu cortex-m33 --clock 16000000 --program 0x08000000:128K "
    "--sram 0x20000000:768K --image 0x08020000:1920K --uart stm32@0x40013800 --irq 61 "
    "--runner pyocd --target stm32u575zitx"
)


@app.command(epilog=examples("boards", "boards --json", NEW))
def boards(
    action: Annotated[str, typer.Argument(help="new: writes a board; else they are listed")] = "",
    name: Annotated[str, typer.Argument(help="of the new board")] = "",
    cpu: Annotated[str, typer.Option("--cpu", help="one of firmware/port/cpus.yaml")] = "",
    clock: Annotated[int, typer.Option(min=0, help="of the CPU, in Hz")] = 0,
    program: Annotated[str, typer.Option(help="flash of the program, ADDRESS:BYTES")] = "",
    sram: Annotated[str, typer.Option(help="ADDRESS:BYTES")] = "",
    image: Annotated[str, typer.Option(help="mapped flash of the image, ADDRESS:BYTES")] = "",
    uart: Annotated[str, typer.Option(help="DRIVER@ADDRESS, as stm32@0x40013800")] = "",
    irq: Annotated[int, typer.Option(min=-1, help="of the UART; -1: polled")] = -1,
    runner: Annotated[str, typer.Option(help="what flashes it")] = "pyocd",
    target: Annotated[str, typer.Option(help="its name in pyocd, openocd or esptool")] = "",
    machine: Annotated[str, typer.Option(help="of QEMU, for a board without hardware")] = "",
) -> None:
    """Lists the boards; new writes a folder for another.

    One whose file is wrong is named, and the others are listed. docs/OWN_BOARD.md is the guide.
    """
    from sparseflash.plan.boards import board_ids, load_board

    if action == "new":
        given = {"--cpu": cpu, "--clock": clock, "--program": program, "--sram": sram}
        given |= {"--image": image, "--uart": uart, "a name": name}
        if lacking := [option for option, value in given.items() if not value]:
            raise UsageError(f"a new board needs {', '.join(lacking)}; for example {NEW}")
        settings = (machine, target, runner)
        _new(name, cpu, clock, (program, sram, image), uart, irq, settings)
        return
    if action:
        raise UsageError(f"boards {action}: no such action; there is boards new NAME, and boards")
    rows, figures = [], []
    for known in board_ids():
        try:
            b = load_board(known)
        except SparseflashError as e:
            console.warn(str(e))
            continue
        rows.append((b.id, in_units(b.sram_bytes), in_units(b.flash_bytes), b.description))
        figures.append(
            {
                "board": b.id,
                "sram_bytes": b.sram_bytes,
                "flash_bytes": b.flash_bytes,
                "cpu": b.cpu,
                "clock_hz": b.clock_hz,
                "runners": sorted({b.runner, *b.runners}),
                "description": b.description,
            }
        )
    console.table(("board", "SRAM", "flash", "what it is"), rows)
    console.result(figures)


TARGETS = {"openocd": "target", "pyocd": "target", "esptool": "chip"}
"""What the target is called in the settings of a runner."""


def _new(
    name: str,
    cpu: str,
    clock: int,
    regions: tuple[str, str, str],
    uart: str,
    irq: int,
    reached: tuple[str, str, str],
) -> None:
    from sparseflash.plan.new_board import NewBoard, region, write_board

    machine, target, runner = reached
    if machine:
        runner, settings = "emulator", {"machine": machine}
    elif runner in TARGETS and not target:
        raise UsageError(f"runner {runner} needs --target, the chip's name there")
    else:
        settings = {TARGETS[runner]: target} if runner in TARGETS else {}
        settings |= {"interface": "interface/stlink.cfg"} if runner == "openocd" else {}
    program, sram, image = (
        region(f"--{o}", text)
        for o, text in zip(("program", "sram", "image"), regions, strict=True)
    )
    number = None if irq < 0 else irq
    board = NewBoard(
        name,
        cpu,
        clock,
        program,
        sram,
        image,
        uart,
        number,
        runner=runner,
        settings=settings,
    )
    folder = write_board(board)
    console.say(f"{folder}: board.yaml, and CHECKLIST.md with what is left to do")
    console.result({"board": name, "folder": str(folder)})
