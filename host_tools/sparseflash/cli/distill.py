"""The verb distill: trains a model to read fewer FFN bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    ModelOption,
    TextOption,
    examples,
    numbers,
    verbs,
)

app = verbs()


@app.command(epilog=examples("distill --model smollm2-135m --texts texts --out build/sparse"))
def distill(
    out: Annotated[Path, typer.Option("--out", help="folder of the run; goes on if one is there")],
    model: ModelOption = DEFAULT_MODEL,
    texts: Annotated[
        Path | None, typer.Option(help="folder of .txt to train on; default the recipe's texts")
    ] = None,
    text: TextOption = None,
    budgets: Annotated[
        str, typer.Option(help="percent of the FFN's bytes, with commas")
    ] = "50,35,25",
    steps: Annotated[int, typer.Option(min=0, help="in all; 0: by --minutes")] = 0,
    minutes: Annotated[float, typer.Option(min=0.0, help="of this run")] = 30.0,
    later: Annotated[float, typer.Option(min=0.0, help="minutes of runs to come")] = 0.0,
    write: Annotated[
        float, typer.Option(min=0.0, help="minutes in which the model writes text, first run")
    ] = 0.0,
    windows: Annotated[int, typer.Option(min=1, help="a step and process")] = 32,
    window: Annotated[int, typer.Option(min=16, help="tokens of a window")] = 1024,
    lr: Annotated[float, typer.Option(min=0.0, help="learning rate at its highest")] = 9e-4,
    tested: Annotated[int, typer.Option(min=0, help="tokens to measure on; 0: recipe's")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="a finished model.delta of the model to train on from")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    seed: Annotated[int, typer.Option(min=1, help="of the draws")] = 1,
) -> None:
    """Distils a model to budgets of FFN bytes; wants a GPU.

    With several:

    torchrun --nproc_per_node 4 -m sparseflash.cli distill --out build/sparse --texts FOLDER
    """
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.sparsity.texts import evaluation_windows
    from sparseflash.train.run import Time, distill, read_texts, settings_for

    recipe = recipes.load_recipe(model)
    source = stages.open_model(recipe)
    settings = settings_for(numbers("--budgets", budgets), windows, window, lr, seed)
    if start is not None:  # it is sparse and rounded already
        settings = replace(settings, ramp=0.0, quantise_from=0.0)
    names = recipe.calibration.get("texts", [])
    found = read_texts(source, texts, {n: recipes.text_path(n) for n in names}, out, console.say)
    tests = {"test": evaluation_windows(source, recipe, text, tested, window)}
    time = Time(steps or None, 60 * minutes, 60 * later, 60 * write)
    distill(source, found, tests, out, settings, time, device, console.say, start)
    console.say(f"{out / 'model.delta'}, figures.json, curve.json, curve.png")
