"""The verb conform."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sparseflash.base.errors import SparseflashError
from sparseflash.cli import console
from sparseflash.cli.options import BoardOption, PortOption, examples, verbs

app = verbs()


@app.command(epilog=examples("conform --board mps2-an386", "conform --board my-board --port COM3"))
def conform(
    board: BoardOption = "host",
    port: PortOption = None,
    drive: Annotated[str, typer.Option(help="folder of the drive of runner uf2")] = "",
) -> None:
    """The checks that every port of a board must pass.

    Builds and flashes a small model of random weights for them.
    """
    from sparseflash.pipeline.conform import conform as run

    checks = []
    with console.doing(f"conformance of {board}") as progress:
        for check in run(board, port, {"drive": drive}, progress):
            checks.append(check)
            console.say(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.seen}")
    console.result([asdict(c) for c in checks])
    failed = [c.name for c in checks if not c.passed]
    if failed:
        raise SparseflashError(f"board {board} does not conform: {', '.join(failed)}")
    console.say(f"board {board} conforms: {len(checks)} checks")
