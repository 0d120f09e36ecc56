"""The verb demo: the others in a row."""

from __future__ import annotations

import time

import typer

from sparseflash.cli import console
from sparseflash.cli.build import flash, generate
from sparseflash.cli.device import bench, chat, validate
from sparseflash.cli.model import calibrate, fetch
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    BoardOption,
    HeadOption,
    MethodOption,
    ModelOption,
    SparsityOption,
)

app = typer.Typer()


@app.command()
def demo(
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    method: MethodOption = "h",
    sparsity: SparsityOption = 30,
    head: HeadOption = "exact",
) -> None:
    """The main job: pack, generate, build, flash, validate, bench, chat."""
    start = time.monotonic()
    question = "What is the capital of France?"
    for title, step in (
        ("fetch", lambda: fetch(model)),
        ("calibrate", lambda: calibrate(model)),
        ("generate", lambda: generate(model, board, method, sparsity, head=head)),
        ("flash", lambda: flash(model, board)),
        ("validate", lambda: validate(model, board)),
        ("bench", lambda: bench(model, board)),
        ("chat", lambda: console.say(f"> {question}")),
    ):
        console.rule(f"{title} ({time.monotonic() - start:.0f} s)")
        step()
    chat(question, model, board, most=60)
    console.rule(f"done ({time.monotonic() - start:.0f} s)")
