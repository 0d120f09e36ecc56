"""The verb demo: the others in a row."""

from __future__ import annotations

import time

import typer

from sparseflash.cli import console
from sparseflash.cli.build import flash, generate
from sparseflash.cli.device import bench, chat, validate
from sparseflash.cli.model import fetch
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
    method: MethodOption = "auto",
    sparsity: SparsityOption = None,
    head: HeadOption = "exact",
) -> None:
    """The main job: pack, generate, build, flash, validate, bench, chat."""
    from sparseflash.model.recipes import load_recipe

    start = time.monotonic()
    question = load_recipe(model).prompt
    for title, step in (
        ("fetch", lambda: fetch(model)),
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
