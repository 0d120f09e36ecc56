"""Verbs about models: load, info, calibrate, models, export-gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparseflash.base.errors import SparseflashError
from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    MethodOption,
    ModelOption,
    SparsityOption,
    examples,
    verbs,
)

app = verbs()


@app.command(
    epilog=examples(
        "load --model story",
        "load --model smollm2-135m --texts",
        "load --model my.bin --tokenizer tok512.bin",
    )
)
def load(
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = DEFAULT_MODEL,
    texts: Annotated[bool, typer.Option("--texts", help="the declared texts too")] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="of a llama2.c .bin; later verbs know it")
    ] = None,
) -> None:
    """Downloads and checks a model; names one of your own."""
    from sparseflash.model import recipes
    from sparseflash.model.resolve import resolve

    given, model = model, resolve(model, tokenizer)
    if given != model:
        console.say(f"recipe {model}: {recipes.own_recipe_path(model)}")
    with console.doing(f"loading {model}"):
        path = recipes.fetch(recipes.load_recipe(model))
    console.say(f"model {path}")
    found = {}
    for name in recipes.text_sources() if texts else ():
        here = recipes.text_is_here(name)
        found[name] = str(recipes.text_path(name)) if here else None
        instead = f"{name}: not here, {recipes.evaluation_text()} stands in for it"
        console.say(f"text {found[name] or instead}")
    console.result({"model": model, "path": str(path), "texts": found})


@app.command(epilog=examples("info --model story", "info --model path/to/model.gguf --json"))
def info(model: ModelOption = DEFAULT_MODEL) -> None:
    """What a model is: shape, weights, tokenizer, licence."""
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages

    recipe = recipes.load_recipe(model)
    with console.doing(f"reading {model}"):
        facts = stages.facts_of(stages.open_model(recipe), recipe)
    rows = [(k.replace("_", " "), _cell(v)) for k, v in facts.items() if v not in ("", None)]
    console.table(("of the model", ""), rows, f"{model}: {recipe.title}")
    console.result(facts)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@app.command(epilog=examples("calibrate --model smollm2-135m"))
def calibrate(model: ModelOption = DEFAULT_MODEL) -> None:
    """Measures the magnitudes at every site of a model.

    Writes calibration.npz and .json.
    """
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.pipeline.places import Places

    recipe = recipes.load_recipe(model)
    with console.doing(f"calibrating {model}"):
        found = stages.calibrated(stages.open_model(recipe), recipe)
    console.say(f"calibration {Places(model).calibration}")
    console.result({"path": str(Places(model).calibration), **found.meta})


@app.command("export-gguf", epilog=examples("export-gguf --model smollm2-135m --out sparse.gguf"))
def export_gguf(
    out: Annotated[Path, typer.Option("--out", help="the .gguf to write")],
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "h",
    sparsity: SparsityOption = 30,
    order: Annotated[bool, typer.Option(help="the order of neurons in flash too")] = False,
) -> None:
    """Copies a GGUF, with thresholds under sparseflash.* keys."""
    from sparseflash.pipeline import stages

    percent = 30.0 if sparsity is None else sparsity
    with console.doing(f"writing {out}"):
        stages.export_gguf(model, out, method, percent, order)
    console.say(f"{out}: method {method} {percent:g} %")


@app.command(epilog=examples("models", "models --json"))
def models() -> None:
    """Lists the models.

    Those of your own come last, once a verb has taken them. One whose file is wrong is named, and
    the others are listed.
    """
    from sparseflash.model.recipes import load_recipe, own_recipe_names, recipe_names, where_from

    found = []
    for name in [*recipe_names(), *own_recipe_names()]:
        try:
            found.append(load_recipe(name))
        except SparseflashError as e:
            console.warn(str(e))
    rows = [(r.name, r.title, r.licence, where_from(r)) for r in found]
    console.table(("model", "what it is", "licence", "weights"), rows)
    keys = ("model", "title", "licence", "weights")
    console.result([dict(zip(keys, row, strict=True)) for row in rows])
