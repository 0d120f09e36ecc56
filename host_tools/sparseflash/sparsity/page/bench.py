"""The page that compares the methods: `sparseflash sparsity`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sparseflash import __version__
from sparseflash.base.errors import UsageError
from sparseflash.image.formats import INPUTS
from sparseflash.model.recipes import Recipe
from sparseflash.model.torch_model import check_device
from sparseflash.sparsity.evaluate import Losses
from sparseflash.sparsity.levels import measured, ppl_level
from sparseflash.sparsity.page.report import Row, row_of, write_report
from sparseflash.sparsity.predict.predictability import predictability
from sparseflash.sparsity.registry import METHODS, method
from sparseflash.sparsity.study import Result, Study
from sparseflash.sparsity.texts import evaluation_text, validation_windows
from sparseflash.sparsity.windows import spread

PERCENTS: dict[str, tuple[float, ...]] = {
    "paper": (30, 50),
    "paper-gate-up": (30, 40, 50, 60, 70),
    "cats": (30, 40, 50, 60, 70),
    "h": (30, 40, 50, 60, 70),
    "h-norm": (50, 70),
    "teal-x": (30, 40, 50, 60, 70),
    "teal-attn": (25, 40),
    "teal": (15, 25, 40),
    "teal-greedy": (15, 25, 40),
    "wina": (15, 25, 40),
    "acttail": (15, 25, 40),
    "cett": (50, 70),
    "asvd-inputs": (15, 25, 40),
    "asvd-h": (50, 70),
    "prox-4": (50, 60, 70),
    "prox-3": (50, 60, 70),
    "prox-2": (50, 60, 70),
    "prox-1": (50, 60, 70),
    "prox-3-two": (50, 70),
    "signs": (50,),
    "svd-64": (50,),
    "svd-128": (50,),
    "marginal": (10, 15, 20, 25, 30, 40),
    "marginal-fisher": (10, 15, 20, 25, 30, 40),
    "h-fisher": (50, 70),
    "cats-fisher": (30, 50),
    "marginal-ffn-fisher": (10, 15, 20),
    "marginal-ffn": (10, 15, 20, 30),
    "marginal-h": (10, 13),
}
"""Levels of the page, percent: METHODS.md's table, and enough for a line against bytes."""
SEARCHED = ("cett", "h", "marginal")
"""Methods for which the sparsest setting within p % is looked for."""
PREDICTED = (0.5, 0.9)
PROMPTS = 8
PROMPT_TOKENS = 256
VALIDATION_TOKENS = 4096


def run(
    opened: Callable[..., Study],
    folder: Path,
    recipe: Recipe,
    text: str | None,
    names: list[str],
    percents: list[float],
    ppl: float,
    kept: list[float],
    predict: bool,
    device: str = "cpu",
) -> str:
    """Measures what is asked and not yet kept, writes the page to ``folder`` and gives its text.

    opened: the study; with ``asvd=`` that of the model in factors.
    device: torch's name of where the float model runs.
    """
    for name in names:
        method(name)
    check_device(device)
    with torch.device(device):  # of tensors that methods make beside the model
        return _page(opened, folder, recipe, text, names, percents, ppl, kept, predict)


def _page(
    opened: Callable[..., Study],
    folder: Path,
    recipe: Recipe,
    text: str | None,
    names: list[str],
    percents: list[float],
    ppl: float,
    kept: list[float],
    predict: bool,
) -> str:
    with torch.device("cpu"):
        study = opened()
    base = measured(study, "dense", 0.0)
    rows: list[Row] = [row_of(study, base, base.losses)]
    results: list[Result] = [base]
    for name in names or [n for n in PERCENTS if method(n).suits(study.model.spec)]:
        for percent in percents or PERCENTS.get(name, (50.0,)):
            try:
                result = measured(study, name, percent / 100)
            except UsageError as e:
                if "saves at most" not in str(e):
                    raise
                continue
            results.append(result)
            rows.append(row_of(study, result, base.losses))
    found = []
    if ppl > 0:
        assert study.calibration is not None
        tried = validation_windows(study.model, recipe, study.calibration)
        for name in [n for n in SEARCHED if not names or n in names]:
            level = ppl_level(study, METHODS[name], ppl, tried)
            result = measured(study, name, level)
            found.append((name, level))
            results.append(result)
            rows.append(row_of(study, result, base.losses))
    for share in kept:
        with torch.device("cpu"):  # the search for factors runs there
            factored = opened(asvd=share)
        rows += _asvd_rows(study, factored, share, names, percents, base.losses)
    predictions = []
    if predict:
        prompts = np.ascontiguousarray(spread(study.windows, PROMPTS)[:, :PROMPT_TOKENS])
        for level in PREDICTED:
            name = f"predictability-{level:g}-{len(prompts)}-{prompts.sum()}"
            predictions.append(study.table(name, partial(predictability, study, prompts, level)))
    about = {
        "model": recipe.name,
        "text": evaluation_text(recipe, text),
        "tokens": int(study.windows.size),
        "window": int(study.windows.shape[1]),
        "calibration": study.calibration.meta if study.calibration else {},
        "within": [{"method": n, "level": v, "percent": ppl} for n, v in found],
        "version": __version__,
        "model_sha256": study.model.source.get("sha256", ""),
    }
    write_report(study, rows, _one_a_method(results), about, folder, predictions)
    return (folder / "sparsity.md").read_text()


def _one_a_method(results: list[Result]) -> list[Result]:
    """For the plot of levels by layer: methods whose levels differ, the middle of each."""
    out = []
    for name in ("teal-greedy", "acttail", "cett", "asvd-inputs", "marginal", "marginal-ffn"):
        mine = [r for r in results if r.method == name]
        if mine:
            out.append(mine[len(mine) // 2])
    return out


def _asvd_rows(
    study: Study,
    factored: Study,
    share: float,
    names: list[str],
    percents: list[float],
    base: Losses,
) -> list[Row]:
    """The model in ASVD's factors: dense, and under those of the named methods that fit it."""
    about = {"source": "arXiv 2312.05821", "budget": "price a byte", "device": True}
    dense = row_of(study, measured(factored, "dense", 0.0), base, 100 - share)
    rows = [dense | about | {"method": "asvd", "what": "projections in two factors"}]
    for m in map(method, names):
        if m.name == "dense" or {*m.sites} & {*INPUTS}:
            continue
        for percent in percents or PERCENTS.get(m.name, (50.0,)):
            row = row_of(study, measured(factored, m, percent / 100), base)
            rows.append(row | {"method": f"{m.name}+asvd{share:g}"})
    return rows
