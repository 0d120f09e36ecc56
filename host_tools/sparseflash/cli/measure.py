"""Verbs that measure and train: perplexity, sparsity, train-predictor."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    AsvdOption,
    CountOrDefault,
    HeadOption,
    ModelOption,
    TextOption,
    examples,
    numbers,
    verbs,
)

app = verbs()


@app.command(
    epilog=examples(
        "perplexity --model story --text my.txt",
        "perplexity --methods h,cats --sparsities 30,50 --tokens 4096",
    )
)
def perplexity(
    model: ModelOption = DEFAULT_MODEL,
    text: TextOption = None,
    tokens: CountOrDefault = 0,
    window: CountOrDefault = 0,
    sparsities: Annotated[str, typer.Option(help="percents, with commas")] = "50",
    methods: Annotated[str, typer.Option(help="names, with commas")] = "h,cats,paper-gate-up",
    head: HeadOption = "exact",
    asvd: AsvdOption = 0,
) -> None:
    """Perplexity and bytes a token of sparse variants.

    Beside dense, with KL, the share of equal top tokens, and a plot.
    """
    from sparseflash.base.sizes import with_error
    from sparseflash.pipeline import stages

    wanted = [(m, s) for m in methods.split(",") for s in numbers("--sparsities", sparsities)]
    with console.bar("windows of all variants", 1) as progress:
        folder, rows, about = stages.perplexity_of(
            model, wanted, text, tokens, window, head, asvd, progress
        )
    lines = [
        (
            r.name,
            with_error(r.perplexity, r.error, 3),
            with_error(r.ratio, r.ratio_error, 4),
            f"{r.kl:.4f}",
            f"{100 * r.same_top:.1f} %",
            f"{r.bytes / 1e6:.2f}" if r.bytes else "-",
        )
        for r in rows
    ]
    columns = ("variant", "perplexity", "ratio to fp32", "KL", "same top", "MB/token")
    console.table(columns, lines)
    what = f"{about['text']}, {about['tokens']} tokens of {about['window']}"
    console.say(f"{folder / 'perplexity.png'}, .csv, .json: {what}")
    console.result({**about, "variants": [asdict(r) for r in rows]})


@app.command(epilog=examples("sparsity --model story --text my.txt --windows 8 --methods h,cats"))
def sparsity(
    model: ModelOption = DEFAULT_MODEL,
    text: TextOption = None,
    windows: Annotated[int, typer.Option("--windows", help="spread evenly; 0 takes all")] = 0,
    methods: Annotated[str, typer.Option("--methods", help="names, or all")] = "all",
    percents: Annotated[str, typer.Option("--percents", help="empty takes each method's own")] = "",
    ppl: Annotated[float, typer.Option("--ppl", help="also within p % of dense; 0: no")] = 1.0,
    kept: Annotated[str, typer.Option("--asvd", help="in factors too: percents of bytes")] = "",
    predict: Annotated[bool, typer.Option(help="how well active neurons are told")] = True,
    device: Annotated[str, typer.Option(help="torch's name of it: cpu, cuda")] = "cpu",
) -> None:
    """Every sparsity method on one page, with plots."""
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages
    from sparseflash.pipeline.places import Places
    from sparseflash.sparsity.page import bench

    folder = Places(model).folder
    with console.doing("reading the model") as progress:
        page = bench.run(
            partial(stages.open_study, model, text, windows, progress, device),
            folder,
            recipes.load_recipe(model),
            text,
            [] if methods == "all" else methods.split(","),
            numbers("--percents", percents) if percents else [],
            ppl,
            numbers("--asvd", kept) if kept else [],
            predict,
            device,
        )
    console.say(page)
    console.say(f"{folder / 'sparsity.md'}, .csv, .json, .png and three more plots")
    console.result(json.loads((folder / "sparsity.json").read_text(encoding="utf-8")))


@app.command(epilog=examples("prices --model smollm2-135m"))
def prices(
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option("--out", help="a copy, to keep with a recipe")] = None,
) -> None:
    """Measures what drops cost, for --method auto.

    Half an hour of one CPU for a model of 135 million weights.
    """
    from sparseflash.base.files import write_bytes
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages

    recipe = recipes.load_recipe(model)
    with console.doing("reading the model") as progress:
        path = stages.measure_prices(stages.open_model(recipe), recipe, progress)
    if out is not None:
        write_bytes(out, path.read_bytes())
    console.say(f"prices {out or path}")
    console.result({"path": str(out or path)})


@app.command(
    "train-predictor", epilog=examples("train-predictor --model smollm2-135m --out predictor.npz")
)
def train_predictor(
    out: Annotated[Path, typer.Option("--out", help="the .npz to write")],
    model: ModelOption = DEFAULT_MODEL,
    rank: Annotated[int, typer.Option(min=32, help="a multiple of 32")] = 128,
    ahead: Annotated[bool, typer.Option(help="predict from the input of attention")] = False,
    steps: Annotated[int, typer.Option(min=1, help="of training")] = 1200,
    write: Annotated[int, typer.Option(min=0, help="tokens that the model writes")] = 1_048_576,
    device: Annotated[str, typer.Option(help="torch's name of it")] = "cuda",
    seed: Annotated[int, typer.Option(help="of the draws")] = 1,
) -> None:
    """Trains a predictor of active neurons; wants a GPU."""
    from sparseflash.model import recipes
    from sparseflash.model.torch_model import check_device
    from sparseflash.pipeline import stages
    from sparseflash.sparsity.predict import train
    from sparseflash.sparsity.texts import calibration_settings

    check_device(device)
    recipe = recipes.load_recipe(model)
    source = stages.open_model(recipe)
    asked = calibration_settings(recipe)
    windows, texts = train.whole_texts(source, asked["texts"], int(asked["window"]))
    settings = train.Settings(rank, ahead, steps, seed=seed)
    train.train_predictor(source, windows, texts, settings, write, device, out, console.say)
    console.say(f"{out} and {out.with_suffix('.json').name}")
