"""Verbs that measure and train: perplexity, sparsity, train-predictor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    AsvdOption,
    Count,
    CountOrDefault,
    HeadOption,
    ModelOption,
    TextOption,
    numbers,
)

app = typer.Typer()


@app.command()
def perplexity(
    model: ModelOption = DEFAULT_MODEL,
    text: TextOption = None,
    tokens: CountOrDefault = 0,
    window: CountOrDefault = 0,
    sparsities: str = "50",
    methods: str = "h,cats,paper-gate-up",
    head: HeadOption = "exact",
    asvd: AsvdOption = 0,
) -> None:
    """Perplexity, KL, same top token and bytes of dense and sparse variants, and a plot."""
    from sparseflash.pipeline import stages

    wanted = [(m, s) for m in methods.split(",") for s in numbers("--sparsities", sparsities)]
    with console.bar("windows of all variants", 1) as progress:
        folder, rows, about = stages.perplexity_of(
            model, wanted, text, tokens, window, head, asvd, progress
        )
    lines = [
        (
            r.name,
            f"{r.perplexity:.3f} ± {r.error:.3f}",
            f"{r.ratio:.4f} ± {r.ratio_error:.4f}",
            f"{r.kl:.4f}",
            f"{100 * r.same_top:.1f} %",
            f"{r.bytes / 1e6:.2f}" if r.bytes else "-",
        )
        for r in rows
    ]
    columns = ("variant", "perplexity", "ratio to fp32", "KL", "same top", "MB a token")
    console.table(columns, lines)
    what = f"{about['text']}, {about['tokens']} tokens of {about['window']}"
    console.say(f"{folder / 'perplexity.png'}, .csv, .json: {what}")


@app.command()
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
    """Every sparsity method on one page: perplexity, bytes a token, plots."""
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


@app.command()
def prices(
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option("--out", help="a copy, to keep with a recipe")] = None,
) -> None:
    """Measures what drops of a model cost, for --method auto; half an hour of one CPU for 135M."""
    from sparseflash.base.files import write_bytes
    from sparseflash.model import recipes
    from sparseflash.pipeline import stages

    recipe = recipes.load_recipe(model)
    with console.doing("reading the model") as progress:
        path = stages.measure_prices(stages.open_model(recipe), recipe, progress)
    if out is not None:
        write_bytes(out, path.read_bytes())
    console.say(f"prices {out or path}")


@app.command("train-predictor")
def train_predictor(
    out: Annotated[Path, typer.Option("--out", help="the .npz to write")],
    model: ModelOption = DEFAULT_MODEL,
    rank: Annotated[int, typer.Option(min=32, help="a multiple of 32")] = 128,
    ahead: Annotated[bool, typer.Option(help="guess from the input of attention")] = False,
    steps: Count = 1200,
    write: Annotated[int, typer.Option(min=0, help="tokens that the model writes")] = 1_048_576,
    device: Annotated[str, typer.Option(help="torch's name of it")] = "cuda",
    seed: int = 1,
) -> None:
    """Trains a low-rank predictor of the FFN's neurons; wants a GPU."""
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
