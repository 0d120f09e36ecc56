"""The verb report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseflash.cli import console
from sparseflash.cli.options import DEFAULT_MODEL, BoardOption, ModelOption, examples, verbs

app = verbs()


@app.command(
    epilog=examples("report --model story", "report --model story --board pico --out page.html")
)
def report(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    out: Annotated[
        Path | None, typer.Option("--out", help="the file; default report.html beside the plan")
    ] = None,
) -> None:
    """One HTML page about a model on a board.

    It shows what was measured so far, and names the commands that measure the rest.
    """
    from sparseflash.pipeline.report import write_report

    with console.doing("writing the report"):
        path, missing = write_report(model, board, out)
    for command in missing:
        console.say(f"not measured yet: {command}")
    console.say(f"report {path}")
    console.result({"path": str(path), "missing": missing})
