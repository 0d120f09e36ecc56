"""Windows of a recipe's texts: for calibration, beside it, and for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseflash.base.errors import UsageError
from sparseflash.base.files import file_sha256
from sparseflash.model import recipes
from sparseflash.model.recipes import Recipe
from sparseflash.model.spec import Model
from sparseflash.sparsity.calibrate import (
    DEFAULT_TEXTS,
    DEFAULT_TOKENS,
    DEFAULT_WINDOW,
    Calibration,
    assert_disjoint,
    calibration_windows,
)
from sparseflash.sparsity.windows import spread

VALIDATION_TOKENS = 4096
HELD_OUT = 16
"""Windows on which a plan is measured."""
SHARED = 16
"""Tokens in a row that no such window has in common with the calibration's."""


def calibration_settings(recipe: Recipe) -> dict[str, Any]:
    """texts, tokens, window and seed: the recipe's, and defaults for the rest."""
    return {
        "texts": DEFAULT_TEXTS,
        "tokens": DEFAULT_TOKENS,
        "window": DEFAULT_WINDOW,
        "seed": 1,
        **recipe.calibration,
    }


def calibration_tokens(
    model: Model, recipe: Recipe, seed: int = 0, tokens: int = 0
) -> tuple[np.ndarray, dict[str, str]]:
    """Calibration windows (n, tokens) and the SHA-256 of their texts; ``seed`` draws others."""
    settings = calibration_settings(recipe)
    return calibration_windows(
        model,
        list(settings["texts"]),
        tokens or int(settings["tokens"]),
        int(settings["window"]),
        seed or int(settings["seed"]),
    )


def held_out_windows(model: Model, recipe: Recipe, count: int = HELD_OUT) -> np.ndarray:
    """Windows (count or fewer, tokens) of the calibration's texts that share nothing with it."""

    def runs(row: np.ndarray) -> set[bytes]:
        return {row[i : i + SHARED].tobytes() for i in range(len(row) - SHARED + 1)}

    ids, _ = calibration_tokens(model, recipe)
    seen = set().union(*(runs(row) for row in ids))
    others, _ = calibration_tokens(model, recipe, seed=calibration_settings(recipe)["seed"] + 1)
    rows = [row for row in others if not runs(row) & seen]
    if not rows:
        raise UsageError(
            f"the texts of {model.name} are too short to hold windows that calibration did not "
            "see; give the recipe a longer text or fewer calibration tokens"
        )
    return spread(np.stack(rows), count)


def validation_windows(model: Model, recipe: Recipe, calibration: Calibration) -> np.ndarray:
    """Windows of the calibration texts that calibration did not see, for the search."""
    seed = int(calibration_settings(recipe)["seed"])
    ids, _ = calibration_tokens(model, recipe, seed + 1, 16384)
    kept = [row for row in ids if _unseen(calibration, row)]
    if not kept:
        raise UsageError("calibration saw all of its texts; calibrate on fewer tokens")
    return spread(np.array(kept), max(1, VALIDATION_TOKENS // ids.shape[1]))


def _unseen(calibration: Calibration, row: np.ndarray) -> bool:
    try:
        assert_disjoint(calibration, row)
    except UsageError:
        return False
    return True


def evaluation_text(recipe: Recipe, text: str | None) -> str:
    """Name of the text asked for, or of the recipe's, or of one in place of that."""
    name = text or str(recipe.evaluation.get("text", ""))
    if not text and name in recipes.text_sources() and not recipes.text_is_here(name):
        name = recipes.evaluation_text()
    if not name:
        raise UsageError(f"the recipe of {recipe.name} names no text for evaluation; give --text")
    return name


def evaluation_windows(
    model: Model, recipe: Recipe, text: str | None, tokens: int = 0, window: int = 0
) -> np.ndarray:
    """Windows (n, tokens) of the recipe's protocol, or of other numbers of tokens than its own."""
    if model.tokenizer is None:
        raise UsageError(f"{model.name} has no tokenizer, so it has no perplexity of a text")
    name = evaluation_text(recipe, text)
    tokens = tokens or int(recipe.evaluation.get("tokens", 40960))
    window = window or int(recipe.evaluation.get("window", 1024))
    if not 2 <= window <= model.spec.context:
        raise UsageError(f"--window {window} is not in 2 to the model's {model.spec.context}")
    ids = np.array(model.tokenizer.encode(recipes.text(name)[: 12 * tokens]), np.int64)[:tokens]
    if len(ids) < window:
        raise UsageError(f"text {name} has {len(ids)} tokens, fewer than a window of {window}")
    return ids[: len(ids) // window * window].reshape(-1, window)


def check_unseen(calibration: Calibration, windows: np.ndarray, text: str) -> None:
    """Refuses evaluation on text that calibration has seen."""
    assert_disjoint(calibration, windows, file_sha256(recipes.text_path(text)))
