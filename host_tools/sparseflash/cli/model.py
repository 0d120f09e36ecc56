"""Verbs about models: fetch, calibrate, models."""

from __future__ import annotations

import typer

from sparseflash.cli import console
from sparseflash.cli.options import DEFAULT_MODEL, ModelOption

app = typer.Typer()


@app.command()
def fetch(model: ModelOption = DEFAULT_MODEL, texts: bool = False) -> None:
    """Downloads a model, and with --texts the declared texts."""
    from sparseflash.model import recipes

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


@app.command()
def models() -> None:
    """Lists the models."""
    from sparseflash.model.recipes import load_recipe, recipe_names

    rows = [(r.name, r.title, r.licence) for r in map(load_recipe, recipe_names())]
    console.table(("model", "what it is", "licence"), rows)
