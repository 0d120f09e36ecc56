"""The page that compares the methods: `sparseflash sparsity`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sparseflash import __version__
from sparseflash.base.errors import UsageError
from sparseflash.image.reference import INPUTS
from sparseflash.model import recipes
from sparseflash.model.recipes import Recipe
from sparseflash.model.spec import Model
from sparseflash.model.torch_model import TorchModel, check_device
from sparseflash.pipeline import stages as pipeline
from sparseflash.sparsity.calibrate import Calibration, assert_disjoint
from sparseflash.sparsity.evaluate import Losses, spread
from sparseflash.sparsity.page.report import Row, row_of, write_report
from sparseflash.sparsity.predict.predictability import predictability
from sparseflash.sparsity.registry import METHODS, method
from sparseflash.sparsity.search import ppl_level
from sparseflash.sparsity.study import Result, Study

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


def evaluation_windows(model: Model, recipe: Recipe, text: str | None, windows: int) -> np.ndarray:
    """Windows (n, tokens) of the recipe's protocol; ``windows`` of them, spread evenly."""
    if model.tokenizer is None:
        raise UsageError(f"{model.name} has no tokenizer, so it has no perplexity of a text")
    name = text or str(recipe.evaluation["text"])
    tokens = int(recipe.evaluation.get("tokens", 40960))
    window = int(recipe.evaluation.get("window", 1024))
    ids = np.array(model.tokenizer.encode(recipes.text(name)[: 12 * tokens]), np.int64)[:tokens]
    if len(ids) < window:
        raise UsageError(f"text {name} has {len(ids)} tokens, fewer than a window of {window}")
    ids = ids[: len(ids) // window * window].reshape(-1, window)
    return ids if windows <= 0 else spread(ids, windows)


def open_study(
    model_name: str,
    text: str | None = None,
    windows: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    device: str = "cpu",
    asvd: float = 0.0,
) -> Study:
    """A study of a recipe's model with its calibration and evaluation texts, kept under build/.

    asvd: percent of the projections' bytes that ASVD's factors leave; 0 has none.
    """
    recipe = recipes.load_recipe(model_name)
    model, formats = pipeline.in_factors(pipeline.open_model(recipe), recipe, asvd)
    calibration = pipeline.calibrated(model, recipe)
    ids, _ = pipeline.calibration_tokens(model, recipe)
    tested = evaluation_windows(model, recipe, text, windows)
    name = text or str(recipe.evaluation["text"])
    assert_disjoint(calibration, tested, recipes.file_sha256(recipes.text_path(name)))
    return Study(
        model,
        formats,
        ids,
        tested,
        pipeline.study_folder(recipe, asvd),
        calibration,
        TorchModel(model, device=device),
        progress,
        recipe.predictors,
    )


def validation_windows(study: Study, recipe: Recipe) -> np.ndarray:
    """Windows of the calibration texts that calibration did not see, for the search."""
    assert study.calibration is not None
    seed = int(pipeline.calibration_settings(recipe)["seed"])
    ids, _ = pipeline.calibration_tokens(study.model, recipe, seed + 1, 16384)
    kept = [row for row in ids if _unseen(study.calibration, row)]
    if not kept:
        raise UsageError("calibration saw all of its texts; calibrate on fewer tokens")
    return spread(np.array(kept), max(1, VALIDATION_TOKENS // ids.shape[1]))


def _unseen(calibration: Calibration, row: np.ndarray) -> bool:
    try:
        assert_disjoint(calibration, row)
    except UsageError:
        return False
    return True


def run(
    model_name: str,
    text: str | None,
    windows: int,
    names: list[str],
    percents: list[float],
    ppl: float,
    kept: list[float],
    predict: bool,
    progress: Callable[[str], None],
    device: str = "cpu",
) -> tuple[Path, str]:
    """Measures what is asked and not yet kept, and writes the page; its folder and its text.

    device: torch's name of where the float model runs.
    """
    for name in names:
        method(name)
    check_device(device)
    opened = partial(open_study, model_name, text, windows, progress, device)
    with torch.device(device):  # of tensors that methods make beside the model
        return _page(opened, model_name, text, names, percents, ppl, kept, predict)


def _page(
    opened: Callable[..., Study],
    model_name: str,
    text: str | None,
    names: list[str],
    percents: list[float],
    ppl: float,
    kept: list[float],
    predict: bool,
) -> tuple[Path, str]:
    with torch.device("cpu"):
        study = opened()
    recipe = recipes.load_recipe(model_name)
    base = study.measure("dense", 0.0)
    rows: list[Row] = [row_of(study, base, base.losses)]
    results: list[Result] = [base]
    for name in names or [n for n in PERCENTS if method(n).suits(study.model.spec)]:
        for percent in percents or PERCENTS.get(name, (50.0,)):
            try:
                result = study.measure(method(name), percent / 100)
            except UsageError as e:
                if "saves at most" not in str(e):
                    raise
                continue
            results.append(result)
            rows.append(row_of(study, result, base.losses))
    folder = pipeline.Places(model_name).folder
    found = []
    if ppl > 0:
        tried = validation_windows(study, recipe)
        for name in [n for n in SEARCHED if not names or n in names]:
            level = ppl_level(study, METHODS[name], ppl, tried)
            result = study.measure(name, level)
            found.append((name, level))
            results.append(result)
            rows.append(row_of(study, result, base.losses))
    for share in kept:
        with torch.device("cpu"):  # the search for factors runs there
            factored = opened(asvd=share)
        rows += _asvd_rows(study, factored, share, names, percents, base.losses)
    guesses = []
    if predict:
        prompts = np.ascontiguousarray(spread(study.windows, PROMPTS)[:, :PROMPT_TOKENS])
        for level in PREDICTED:
            name = f"predictability-{level:g}-{len(prompts)}-{prompts.sum()}"
            guesses.append(study.table(name, partial(predictability, study, prompts, level)))
    about = {
        "model": model_name,
        "text": text or str(recipe.evaluation["text"]),
        "tokens": int(study.windows.size),
        "window": int(study.windows.shape[1]),
        "calibration": study.calibration.meta if study.calibration else {},
        "within": [{"method": n, "level": v, "percent": ppl} for n, v in found],
        "version": __version__,
        "model_sha256": study.model.source.get("sha256", ""),
    }
    write_report(study, rows, _one_a_method(results), about, folder, guesses)
    text_of = (folder / "sparsity.md").read_text()
    return folder, text_of


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
    dense = row_of(study, factored.measure("dense", 0.0), base, 100 - share)
    rows = [dense | about | {"method": "asvd", "what": "projections in two factors"}]
    for m in map(method, names):
        if m.name == "dense" or {*m.sites} & {*INPUTS}:
            continue
        for percent in percents or PERCENTS.get(m.name, (50.0,)):
            row = row_of(study, factored.measure(m, percent / 100), base)
            rows.append(row | {"method": f"{m.name}+asvd{share:g}"})
    return rows
