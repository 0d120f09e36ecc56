"""Verbs about models: fetch, calibrate, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    MethodOption,
    ModelOption,
    SparsityOption,
)

app = typer.Typer()


@app.command()
def fetch(
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = DEFAULT_MODEL,
    texts: bool = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="of a llama2.c .bin; later verbs know it")
    ] = None,
) -> None:
    """Downloads a model, and with --texts the declared texts; names a model of your own."""
    from sparseflash.model import recipes
    from sparseflash.model.resolve import resolve

    given, model = model, resolve(model, tokenizer)
    if given != model:
        console.say(f"recipe {model}: {recipes.own_recipe_path(model)}")
    console.say(f"model {recipes.fetch(recipes.load_recipe(model))}")
    for name in recipes.text_sources() if texts else ():
        if recipes.text_is_here(name):
            console.say(f"text {recipes.text_path(name)}")
        else:
            console.say(f"text {name}: not here, tests that need it are skipped")


@app.command()
def calibrate(model: ModelOption = DEFAULT_MODEL) -> None:
    """Measures the magnitudes at every site: calibration.npz and .json."""
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.pipeline.places import Places

    recipe = recipes.load_recipe(model)
    stages.calibrated(stages.open_model(recipe), recipe)
    console.say(f"calibration {Places(model).calibration}")


@app.command("export-gguf")
def export_gguf(
    out: Annotated[Path, typer.Option("--out", help="the .gguf to write")],
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "h",
    sparsity: SparsityOption = 30,
    order: Annotated[bool, typer.Option(help="the order of neurons in flash too")] = False,
) -> None:
    """Writes a copy of a GGUF with the method's thresholds under sparseflash.* keys."""
    from sparseflash.pipeline import stages

    percent = 30.0 if sparsity is None else sparsity
    stages.export_gguf(model, out, method, percent, order)
    console.say(f"{out}: method {method} {percent:g} %")


@app.command()
def models() -> None:
    """Lists the models."""
    from sparseflash.model.recipes import load_recipe, recipe_names

    rows = [(r.name, r.title, r.licence) for r in map(load_recipe, recipe_names())]
    console.table(("model", "what it is", "licence"), rows)
